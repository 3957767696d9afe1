import type { HalveSpec, MigrationState, UniteSpec } from '../../topology/migration.js';
import type { HalvesWork } from '../halves.js';
import { abortHalve, approveHalve, fillHalve, finishHalve, prepareHalve } from './halve.js';
import { cleanUnited, unite } from './unite.js';

type Step<Spec> = (h: HalvesWork<Spec>) => Promise<void>;

const SPLIT: Partial<Record<MigrationState, Step<HalveSpec>>> = {
  approved: approveHalve,
  preparing: prepareHalve,
  copying: fillHalve,
  verifying: finishHalve,
  aborting: abortHalve,
};

const UNITE: Partial<Record<MigrationState, Step<UniteSpec>>> = {
  approved: unite,
  cleaning: cleanUnited,
  aborting: async (u) => {
    u.row = await u.exec.transition(u.row, 'aborted'); // nothing was made
  },
};

function isHalve(h: HalvesWork): h is HalvesWork<HalveSpec> {
  return h.spec.kind === 'halve';
}

function isUnite(h: HalvesWork): h is HalvesWork<UniteSpec> {
  return h.spec.kind === 'unite';
}

/** What the next step of a migration that splits columns, or unites them, is; undefined: it rests. */
export function halvesStep(h: HalvesWork): (() => Promise<void>) | undefined {
  const { state } = h.row;
  if (isHalve(h)) {
    const step = SPLIT[state];
    return step && (() => step(h));
  }
  if (!isUnite(h)) return undefined;
  const step = UNITE[state];
  return step && (() => step(h));
}
