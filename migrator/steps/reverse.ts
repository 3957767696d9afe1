import { MigrationFailure } from '../executor.js';
import { arrivalAction } from '../guards.js';
import type { Move } from '../move.js';
import { isRefusal } from '../preflight-way-back.js';
import { advanceSlot, followAction, knowsOrigin, publicationAction, slotAction, subscribe } from '../replication.js';
import { doubtedTables, doubtText } from '../sampled.js';
import { Sampler } from '../sampler.js';
import { readWholeTable } from '../schema-partitions.js';
import { ShardExhaustedError } from '../shard-session.js';
import { Supervisor } from '../supervisor.js';
import { turned } from '../turned.js';
import { AS_OF_FLIP, compareAsOf } from './as-of-flip.js';
import { quietSource, readSourceTables } from './prepare.js';
import { answerRequests } from './verify.js';

/** How often the way back is looked at, ms. */
const LOOK_MS = 100;
const SUPERVISE_MS = 1000;

/**
 * Before the fence: from here on the destination keeps what will have to be done at the source once the interval is the destination's. A slot
 * waits for every transaction that writes there, so that it has no place behind the fence.
 */
export async function makeWayBack(m: Move): Promise<void> {
  const { wayBackMs } = m.options;
  if (wayBackMs === 0 && m.row.facts.wayBackMs === undefined) return;
  if (m.row.facts.wayBackMs === undefined) m.row = await m.exec.noteFacts(m.row, { wayBackMs });
  const back = turned(m);
  const infos = m.exec.dry ? [] : await readSourceTables(back);
  await quietSource(m);
  for (const [i, table] of back.tables.entries()) {
    const info = infos[i];
    if (info === undefined) continue;
    const action = arrivalAction(back.names, table, info);
    if (action !== null) await back.exec.perform(action);
  }
  await back.exec.perform(publicationAction(back));
  await m.exec.progress({ note: 'waiting for the transactions that now write at the destination' });
  await back.exec.perform(slotAction(back));
  await m.exec.progress({ note: null });
}

/**
 * Behind the fence, when the destination has everything: what it has got from the source is not to go back there. Where replication cannot tell
 * (before PostgreSQL 16), the slot begins here.
 */
export async function beginWayBackHere(m: Move): Promise<void> {
  if (m.row.state !== 'fencing' || m.row.facts.wayBackMs === undefined || knowsOrigin(m)) return;
  await advanceSlot(m.destination, turned(m).names);
  m.exec.at('after:advance-slot');
}

/**
 * reversing → rolling_back, or cleaning: the source follows the new owner, until somebody wants the interval back, or the way back no more, or its
 * time is over.
 */
export async function reverse(m: Move): Promise<void> {
  if (!(await compareAsOf(AS_OF_FLIP, m))) return;
  const back = turned(m);
  const known = m.row.facts.wayBackLost as string | undefined;
  let lost = known ?? (await follow(m, back));
  const supervisor = new Supervisor(back);
  const sampler = new Sampler(m, back);
  let supervisedAt = 0;
  let next: 'rolling_back' | 'cleaning' = 'cleaning';
  const until = m.exec.dry ? 0 : (await reversedAt(m)).getTime() + Number(m.row.facts.wayBackMs);
  await m.exec.wait(
    'somebody takes the migration back, or finishes it, or the time for that is over',
    async () => {
      if (m.exec.dry) return true;
      if (lost === null && performance.now() - supervisedAt > SUPERVISE_MS) {
        supervisedAt = performance.now();
        lost = await supervise(m, supervisor);
      }
      if (lost === null) {
        await answerRequests(m, back);
        await sampler.look();
      }
      const requested = await m.exec.requested();
      if (requested === 'rollback' && lost === null) next = 'rolling_back';
      if (requested === 'finish' || next === 'rolling_back') return true;
      // What differs is for a person to look at: the time does not run out on it.
      return m.exec.now.getTime() >= until && doubtedTables(m.row).length === 0;
    },
    { everyMs: LOOK_MS },
  );
  m.row = await m.exec.transition(m.row, next);
}

/** @returns why there is no way back; null: there is */
async function follow(m: Move, back: Move): Promise<string | null> {
  try {
    await subscribe(back, followAction(back, await readSourceTables(m, readWholeTable)));
    return null;
  } catch (error) {
    // Else somebody who wants to finish the migration would wait for the two servers to reach one another, or for room on a disk.
    const isGivenUp = error instanceof ShardExhaustedError && (await m.exec.requested()) === 'finish';
    if (!isRefusal(error) && !isGivenUp) throw error;
    return noWayBack(m, `shard "${m.spec.from}" cannot follow shard "${m.spec.to}": ${(error as Error).message}`);
  }
}

/** @returns why there is no way back any more; null: there is */
async function supervise(m: Move, supervisor: Supervisor): Promise<string | null> {
  try {
    const { lagBytes, note } = await supervisor.check();
    const doubted = doubtedTables(m.row);
    const open =
      doubted.length === 0 ? 'the way back is open' : `the way back is not to be trusted: ${doubtText(doubted)}`;
    await m.exec.progress({ lagBytes, note: note ?? open });
    return null;
  } catch (error) {
    if (!(error instanceof MigrationFailure)) throw error;
    return noWayBack(m, error.message);
  }
}

async function noWayBack(m: Move, why: string): Promise<string> {
  m.row = await m.exec.noteFacts(m.row, { wayBackLost: why });
  await m.exec.progress({ note: `there is no way back any more: ${why}` });
  return why;
}

/** When the way back was opened; a rollback that did not succeed changes nothing about that. */
async function reversedAt(m: Move): Promise<Date> {
  const { rows } = await m.catalog.pool.query<{ at: Date }>(
    "SELECT min(at) AS at FROM foreshard.migration_event WHERE migration_id = $1 AND state = 'reversing'",
    [m.row.id.toString()],
  );
  return (rows[0] as { at: Date }).at;
}
