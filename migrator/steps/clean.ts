import { assertGateSql } from '../guards.js';
import { isReference, type Move } from '../move.js';
import { GATE_CLOSED, GATE_OPEN } from '../names.js';
import { removeRows } from '../remove-rows.js';
import { Throttle } from '../throttle.js';
import { AS_OF_FLIP, compareAsOf } from './as-of-flip.js';
import { finish } from './open.js';
import { quietSource } from './prepare.js';

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
  if (!(await compareAsOf(AS_OF_FLIP, m))) return;
  // The way back, if there was one.
  await finish(m, 'subscription');
  await finish(m, 'slot');
  await finish(m, 'publication');

  if (m.row.facts.rowsRemoved === undefined) {
    await quietSource(m);
    await removeMovedRows(m);
  }
  m.exec.at('after:remove-rows');

  await finish(m, 'triggers');
  await finish(m, 'marker');
  await finish(m, 'guards');
  m.exec.at('after:drop-guards');
  // What the destination got is its own now, and the hold ended with the flip.
  for (const kind of [
    'table',
    'base-half',
    'hot-half',
    'function',
    'schema',
    'sequence',
    'type',
    'rows',
    'hold',
    'replica',
  ] as const)
    for (const record of await m.exec.openCleanup(kind)) await m.exec.markCleanupDone(record);
  await m.exec.progress({ note: null });
  m.row = await m.exec.transition(m.row, 'done');
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
