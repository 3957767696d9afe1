import { epochAckedByAll } from '../../topology/catalog/leases.js';
import type { Epoch } from '../../topology/topology.js';
import type { CrashPoint } from '../crash-points.js';
import { type DifferedAsOfFlip, type DifferedTable, remedyOf } from '../differed.js';
import type { Move } from '../move.js';
import { compareExactly } from './verify.js';

/** Keys of rows in the text of an error, per table. */
const KEYS_TOLD = 3;

/** The comparison that counts, of one of the two flips. */
interface AsOf {
  /** Facts: the epoch of the flip, and what came of the comparison. */
  readonly epoch: string;
  readonly exact: string;
  /** Where a test may kill us, when nobody reads at the old owner any more. */
  readonly point: CrashPoint;
  readonly flip: string;
  /** Who owns the interval since, and who did before. */
  readonly shards: (m: Move) => Pick<DifferedAsOfFlip, 'owner' | 'former'>;
}

export const AS_OF_FLIP: AsOf = {
  epoch: 'flipEpoch',
  exact: 'exact',
  point: 'after:proxies-acked',
  flip: 'flip',
  shards: ({ spec }) => ({ owner: spec.to, former: spec.from }),
};

export const AS_OF_FLIP_BACK: AsOf = {
  epoch: 'backEpoch',
  exact: 'backExact',
  point: 'back-after:proxies-acked',
  flip: 'flip back',
  shards: ({ spec }) => ({ owner: spec.from, former: spec.to }),
};

/**
 * Waits until nobody reads at the old owner any more, and compares both sides exactly, once. @param flown the migration in the direction of the flip: it
 * has the snapshot @returns whether they are the same; if not, the migration has failed
 */
export async function compareAsOf(asOf: AsOf, m: Move, flown: Move = m): Promise<boolean> {
  await m.exec.progress({ note: 'waiting until every proxy serves the new epoch' });
  await m.exec.wait(
    'every proxy serves the new epoch or has lost its lease',
    () => epochAckedByAll(m.catalog.pool, BigInt(m.row.facts[asOf.epoch] as string) as Epoch),
    { everyMs: 50 },
  );
  m.exec.at(asOf.point);
  if (m.exec.dry || m.row.facts[asOf.exact] !== undefined) return true;
  const tables = await compareExactly(flown);
  if (tables.length > 0) {
    const differed: DifferedAsOfFlip = { ...asOf.shards(m), tables };
    const difference = tables.map(textOf).join('; ');
    m.row = await m.exec.transition(m.row, 'failed', {
      facts: { differed },
      error: `the shards differ as of the ${asOf.flip}: ${difference}. ${remedyOf(differed, m.row.id)}`,
      detail: { difference },
    });
    return false;
  }
  // Without its snapshot (the process died in between) there is nothing exact to compare with; the live comparison has passed.
  const found = flown.snapshot === null ? 'skipped after a restart' : 'identical';
  m.row = await m.exec.noteFacts(m.row, { [asOf.exact]: found });
  await flown.snapshot?.close();
  m.snapshot = null;
  return true;
}

function textOf({ table, differing, missing, extra, changed }: DifferedTable): string {
  const keys = [...missing, ...extra, ...changed].slice(0, KEYS_TOLD);
  return `${differing} rows of "${table}"${keys.length === 0 ? '' : `, among them ${keys.join(', ')}`}`;
}
