import { epochAckedByAll } from '../../topology/catalog/leases.js';
import type { Epoch } from '../../topology/topology.js';
import type { CrashPoint } from '../crash-points.js';
import type { Move } from '../move.js';
import { compareExactly } from './verify.js';

/** The comparison that counts, of one of the two flips. */
interface AsOf {
  /** Facts: the epoch of the flip, and what came of the comparison. */
  readonly epoch: string;
  readonly exact: string;
  /** Where a test may kill us, when nobody reads at the old owner any more. */
  readonly point: CrashPoint;
  readonly flip: string;
  /** What is kept when they differ. */
  readonly kept: (m: Move) => string;
}

export const AS_OF_FLIP: AsOf = {
  epoch: 'flipEpoch',
  exact: 'exact',
  point: 'after:proxies-acked',
  flip: 'flip',
  kept: () => 'The rows at the source were kept; compare them with the destination’s',
};

export const AS_OF_FLIP_BACK: AsOf = {
  epoch: 'backEpoch',
  exact: 'backExact',
  point: 'back-after:proxies-acked',
  flip: 'flip back',
  kept: (m) => `The rows at shard "${m.spec.to}" were kept; compare them`,
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
  const difference = await compareExactly(flown);
  if (difference !== null) {
    m.row = await m.exec.transition(m.row, 'failed', {
      error: `the shards differ as of the ${asOf.flip}: ${difference}. ${asOf.kept(m)}, then "foreshard migrate accept ${m.row.id}"`,
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
