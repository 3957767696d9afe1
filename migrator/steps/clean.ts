import { epochAckedByAll } from '../../topology/catalog/leases.js';
import type { Epoch } from '../../topology/topology.js';
import { assertGateSql } from '../guards.js';
import { isReference, type Move } from '../move.js';
import { GATE_CLOSED, GATE_OPEN } from '../names.js';
import { removeRows } from '../remove-rows.js';
import { Throttle } from '../throttle.js';
import { finish } from './open.js';
import { compareExactly } from './verify.js';

/** cleaning → done: the source forgets the interval once nobody can read it there any more. No way leads back from here. */
export async function clean(m: Move): Promise<void> {
  await m.exec.perform({
    name: 'assert-source',
    on: 'source',
    text: 'the gate of the old owner is closed',
    mode: 'single',
    sql: [assertGateSql(m.names, GATE_CLOSED)],
  });
  await m.exec.perform({
    name: 'assert-destination',
    on: 'destination',
    text: 'the gate of the new owner is open',
    mode: 'single',
    sql: [assertGateSql(m.names, GATE_OPEN)],
  });
  if (!(await compareAsOfFlip(m))) return;
  // The way back, if there was one.
  await finish(m, 'subscription');
  await finish(m, 'slot');
  await finish(m, 'publication');

  if (m.row.facts.rowsRemoved === undefined) await removeMovedRows(m);
  m.exec.at('after:remove-rows');

  await finish(m, 'marker');
  await finish(m, 'guards');
  m.exec.at('after:drop-guards');
  // What the destination got is its own now, and the hold ended with the flip.
  for (const kind of ['table', 'schema', 'sequence', 'type', 'rows', 'hold', 'replica'] as const)
    for (const record of await m.exec.openCleanup(kind)) await m.exec.markCleanupDone(record);
  await m.exec.progress({ note: null });
  m.row = await m.exec.transition(m.row, 'done');
}

/**
 * Waits until nobody reads at the source any more, and compares both sides exactly, once. @returns whether they are the same; if not, the migration
 * has failed
 */
export async function compareAsOfFlip(m: Move): Promise<boolean> {
  await m.exec.progress({ note: 'waiting until every proxy serves the new epoch' });
  await m.exec.wait(
    'every proxy serves the new epoch or has lost its lease',
    () => epochAckedByAll(m.catalog.pool, BigInt(m.row.facts.flipEpoch as string) as Epoch),
    { everyMs: 50 },
  );
  m.exec.at('after:proxies-acked');
  if (m.exec.dry || m.row.facts.exact !== undefined) return true;
  const difference = await compareExactly(m);
  if (difference !== null) {
    m.row = await m.exec.transition(m.row, 'failed', {
      error: `the shards differ as of the flip: ${difference}. The rows at the source were kept; compare them with the destination’s, then "foreshard migrate accept ${m.row.id}"`,
      detail: { difference },
    });
    return false;
  }
  // Without its snapshot (the process died in between) there is nothing exact to compare with; the live comparison has passed.
  m.row = await m.exec.noteFacts(m.row, { exact: m.snapshot === null ? 'skipped after a restart' : 'identical' });
  await m.snapshot?.close();
  m.snapshot = null;
  return true;
}

/** Once: when the guards are gone, whatever comes to the interval at the source is not ours to delete. */
async function removeMovedRows(m: Move): Promise<void> {
  let removed = 0;
  const throttle = new Throttle(m);
  // Children before parents is not needed: as replica, foreign keys do not fire.
  for (const t of m.tables) {
    if (isReference(t)) continue;
    await m.exec.progress({ note: `removing the moved rows of ${t.schema}.${t.table} at the source` });
    if (m.exec.dry)
      await m.exec.perform({
        name: 'remove-rows',
        on: 'source',
        text: `remove the moved rows of ${t.schema}.${t.table}, some pages at a time`,
        mode: 'single',
        sql: [`DELETE FROM ${t.sql} WHERE ${t.predicate()}`],
      });
    else removed += await removeRows(m, 'source', t, throttle);
  }
  m.row = await m.exec.noteFacts(m.row, { rowsRemoved: removed });
}
