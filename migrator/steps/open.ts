import { setGateSql } from '../guards.js';
import type { CleanupRecord } from '../migration-row.js';
import type { Move } from '../move.js';
import { backNames, GATE_CLOSED, GATE_OPEN } from '../names.js';
import { restoreAction } from '../trigger-actions.js';
import { undo } from '../undo.js';

/**
 * Opens the destination's gate. Only after the flip, so that there never are two owners; a statement that comes in between is
 * refused by the guard, and its proxy tries again, unless it was made to wait.
 * @param sql what else is done, in the same message
 */
export async function openDestination(m: Move, ...sql: readonly string[]): Promise<void> {
  await m.exec.perform({
    name: 'open-destination',
    on: 'destination',
    text: 'open the gate of the new owner',
    mode: 'single',
    sql: [[setGateSql(m.names, GATE_OPEN), ...sql].join('; ')],
  });
}

/** The new owner's gate is open, the old owner's closed. */
export async function openGates(m: Move): Promise<void> {
  await openDestination(m);
  await m.exec.perform({
    name: 'assert-source',
    on: 'source',
    text: 'the gate of the old owner stays closed, also if its server lost it in a failover',
    mode: 'single',
    sql: [setGateSql(m.names, GATE_CLOSED)],
  });
}

/** flipped → reversing, or cleaning: replication ends. The source's rows must not be removed before: their deletion would be replicated. */
export async function open(m: Move): Promise<void> {
  await openGates(m);
  const isBack = isOfWayBack(m);
  const there = (record: CleanupRecord) => !isBack(record);
  await finish(m, 'subscription', there);
  m.exec.at('after:drop-subscription');
  await finish(m, 'slot', there);
  m.exec.at('after:drop-slot');
  await finish(m, 'publication', there);
  m.exec.at('after:drop-publication');
  m.row = await m.exec.transition(m.row, m.row.facts.wayBackMs === undefined ? 'cleaning' : 'reversing');
}

/** Whether a record names something of the way back. */
export function isOfWayBack({ names }: Pick<Move, 'names'>): (record: CleanupRecord) => boolean {
  const back = backNames(names).replication;
  return ({ object }) => object.name === back;
}

/** Takes back what the records of one kind name, and ticks them off. @param which of them; default: all */
export async function finish(
  m: Move,
  kind: CleanupRecord['kind'],
  which: (record: CleanupRecord) => boolean = () => true,
): Promise<void> {
  for (const record of await m.exec.openCleanup(kind)) {
    if (!which(record)) continue;
    if (m.exec.dry) {
      const on = record.shard === m.spec.from ? 'source' : 'destination';
      await m.exec.perform(
        kind === 'triggers'
          ? restoreAction(record, on)
          : { name: 'drop', on, text: `drop the ${kind} of this migration`, mode: 'single', sql: [] },
      );
    } else await undo(m, record);
    await m.exec.markCleanupDone(record);
  }
}
