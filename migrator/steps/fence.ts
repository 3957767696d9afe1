import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { CatalogClient } from '../../topology/catalog/change.js';
import { createHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import { errorCode } from '../../topology/connection.js';
import { ConflictError } from '../../topology/errors.js';
import type { MigrationState } from '../../topology/migration.js';
import { quoteLiteral, quoteTable } from '../../topology/quote.js';
import { StatementConflict } from '../action.js';
import { MigrationFailure } from '../executor.js';
import { goThroughGateSql, readGateSql, setGateSql, waitAtGateSql } from '../guards.js';
import { LeaseLostError } from '../lease.js';
import { isReference, type Move } from '../move.js';
import { GATE_CLOSED, GUARD_LOCK_CLASS } from '../names.js';
import { HOLD_MARGIN_MS } from '../options.js';
import { PartitionLocks } from '../partitions.js';
import { markerArrived, writeMarkerSql } from '../replication.js';
import type { SequenceInfo } from '../schema-read.js';
import { ShardSession } from '../shard-session.js';
import { writersInFlight } from '../writers-in-flight.js';
import { type FlipPlan, flip, foreseeFlip, planFlip } from './flip.js';
import { followOn } from './follow.js';
import { letGoOn, missed } from './missed-fence.js';
import { openDestination } from './open.js';
import { readSourceTables } from './prepare.js';
import { beginWayBackHere } from './reverse.js';

/** Values a sequence skips, so that those cached by sessions at the source are not given out again at the destination. */
const SEQUENCE_HEADROOM = 1000;
const FENCE_LOCK_TIMEOUT_MS = 250;
const NO_HOLD = 0n;
/** How long writes wait at most for the gate of a new owner whose migrator says nothing after the flip. */
const SILENCE_MS = 1000;

/** The clients that were held have more need of the servers than what follows has. */
const AFTER_FLIP_MS = 100;

/** The fence did not succeed in time; everything is as before it. */
class FenceMissed extends Error {}

/** fencing → flipped, or back to catching_up when a deadline passes. */
export async function fence(m: Move): Promise<void> {
  if (m.exec.dry) return dryFence(m);
  await cross(m, {
    to: 'flipped',
    timings: 'timings',
    missed: (why) =>
      missed(m, 'fenceTries', why, {
        again: (tries) => catchUpAgain(m, tries, why),
        enough: (error) => giveUp(m, error, why),
      }),
  });
}

/** What is particular to one direction. */
interface Crossing {
  readonly to: MigrationState;
  /** The fact that the parts of the pause are noted as. */
  readonly timings: string;
  /** A deadline has passed; nothing is changed. */
  missed(why: string): Promise<void>;
}

/**
 * The one stretch that clients can feel, in either direction; it runs through without looking at anything that can wait. What it leaves: the
 * snapshot of the destination from between drain and flip.
 */
export async function cross(m: Move, { to, timings, missed }: Crossing): Promise<void> {
  const sequences = (await readSourceTables(m)).flatMap((t) => t.sequences);
  // Connected before anybody is held, and asked before what they will be asked: each takes longer than all the rest.
  m.snapshot = await ShardSession.open(m.destination.shard, null);
  const sessions = [m.source, m.destination, m.snapshot];
  const partitions = new PartitionLocks();
  let catalog: pg.Client | null = null;
  let waiting = false;
  try {
    const why = await partitions.take(m);
    if (why !== null) throw new FenceMissed(why);
    catalog = await m.catalog.connectAlone();
    // Else what is asked again and again is planned anew the first five times.
    await catalog.query('SET plan_cache_mode = force_generic_plan');
    const plan = await planFlip(m, catalog);
    await foreseeFlip(m, plan, catalog);
    await together([
      holdStatus(catalog, NO_HOLD),
      m.source.query(readGateSql(m.names)),
      m.destination.query(flushSql(m)),
      m.snapshot.query(snapshotSql(m)),
    ]);
    const patienceMs = m.options.ackMs + (m.exec.controls.endTransactionsAfterMs ?? 0);
    const held = await hold(m, patienceMs, catalog);
    const pause = new Pause();
    await untilHeld(m, held, patienceMs, catalog);
    pause.took('hold');
    // Clients wait for what is left, and not for a server that has gone without a word.
    for (const session of sessions) session.answerWithin(m.options.fenceMs + m.options.drainMs);
    m.exec.at('after:acks');
    const token = randomUUID();
    waiting = true;
    await together([closeGate(m, token), waitAtGate(m)]);
    pause.took('fence');
    await drain(m, token);
    pause.took('drain');
    await together([
      assertGateClosed(m),
      beginSnapshot(m, m.snapshot),
      flush(m)
        .then(() => carrySequences(m, sequences))
        .then(() => beginWayBackHere(m)),
    ]);
    pause.took('carry');
    await flipAtEpoch(m, plan, catalog);
    pause.took('flip');
    await together([openDestination(m, goThroughGateSql(m.names)), m.exec.announceFlip(catalog)]);
    pause.took('open');
    m.log.info({ migration: m.row.id.toString(), timings: pause.parts }, to);
    await delay(AFTER_FLIP_MS);
    m.row = await m.exec.noteFacts(m.row, { [timings]: pause.parts });
    await m.exec.progress({ pauseMs: pause.ms, note: null });
  } catch (error) {
    if (m.row.state === to) throw error;
    await m.snapshot.close();
    m.snapshot = null;
    // A conflict: the epoch moved, the hold ran out, a proxy came that has not acknowledged. Nothing was written.
    const isMissed =
      error instanceof FenceMissed || (error instanceof ConflictError && !(error instanceof LeaseLostError));
    if (!isMissed) throw error;
    m.row = await m.exec.reload();
    if (m.row.state === to) return;
    await missed(error.message);
    if (waiting) await m.destination.query(goThroughGateSql(m.names));
  } finally {
    void catalog?.end().catch(() => undefined); // it is gone already
    for (const session of sessions) session.answerWithin(null);
    await partitions.release();
  }
}

/**
 * Another migration of other shards, or a declaration, may have raised the epoch meanwhile. All that was done for the flip still holds then, but for
 * the ranges that were read: they are read again, at once, while the hold lasts.
 */
async function flipAtEpoch(m: Move, plan: FlipPlan, catalog: CatalogClient): Promise<void> {
  for (let now = plan; ; now = await planFlip(m, catalog)) {
    try {
      return await flip(m, now, catalog);
    } catch (error) {
      if (!(error instanceof StatementConflict) || error.conflict !== 'epoch') throw error;
      m.log.info({ migration: m.row.id.toString(), epoch: now.epoch.toString() }, 'the epoch has moved: once more');
    }
  }
}

/** The same, as what would be done. */
async function dryFence(m: Move): Promise<void> {
  await m.exec.wait(
    `every proxy holds new statements for the interval and has none open on it (at most ${m.options.ackMs} ms)`,
    async () => true,
  );
  await m.exec.perform({
    name: 'fence',
    on: 'source',
    text: 'fence: wait for the writers in flight, close the gate, write the marker',
    mode: 'transaction',
    sql: fenceSql(m, randomUUID()),
  });
  await waitAtGate(m);
  await m.exec.wait(
    `the marker arrives at the destination (at most ${m.options.drainMs} ms, else the gate opens again)`,
    async () => true,
  );
  await m.exec.perform({
    name: 'flush-progress',
    on: 'destination',
    text: 'force what was applied to disk',
    mode: 'single',
    sql: [flushSql(m)],
  });
  await m.exec.perform({
    name: 'carry-sequences',
    on: 'destination',
    text: 'carry the sequences over, with head-room',
    mode: 'single',
    sql: [],
  });
  await flip(m, await planFlip(m)); // the next step opens the destination
}

/** How long what clients feel has taken, in parts: from the hold on, each begins where the last one ends. */
class Pause {
  /** ms. */
  readonly parts: Record<string, number> = {};
  readonly #since = performance.now();
  #last = this.#since;

  took(part: string): void {
    const now = performance.now();
    this.parts[part] = rounded(now - this.#last);
    this.#last = now;
  }

  /** All of it. */
  get ms(): number {
    return rounded(this.#last - this.#since);
  }
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}

/** Waits for all of them, also when one fails: nothing of it is to go on behind the back of what follows. */
async function together(work: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((w) => w.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

/** Asks the proxies to let nothing new start on the interval. @returns the hold's id */
async function hold(m: Move, patienceMs: number, catalog: CatalogClient): Promise<bigint> {
  m.exec.at('before:hold');
  await m.exec.record({ kind: 'hold', shard: '', object: { migration: m.row.id.toString() } });
  m.exec.at('recorded:hold');
  const { fenceMs, drainMs } = m.options;
  const deadlineMs = patienceMs + fenceMs + drainMs + HOLD_MARGIN_MS;
  const id = await m.exec.inLease(
    m.row,
    (client) =>
      createHold(client, {
        migrationId: m.row.id,
        keyspace: m.keyspace,
        lo: m.spec.lo,
        hi: m.spec.hi,
        referenceTables: m.tables.some(isReference),
        deadlineMs,
      }),
    catalog,
  );
  m.exec.at('after:hold');
  return id;
}

async function untilHeld(m: Move, id: bigint, patienceMs: number, catalog: CatalogClient): Promise<void> {
  const since = performance.now();
  let ending = false;
  let waitingFor: readonly string[] = [];
  const held = await m.exec.wait(
    'every proxy holds',
    async () => {
      const status = await holdStatus(catalog, id);
      if (status.remainingMs === 0) throw new FenceMissed('the hold is gone');
      waitingFor = status.waitingFor.map((p) => p.name);
      if (waitingFor.length === 0) return true;
      const { endTransactionsAfterMs } = m.exec.controls;
      if (!ending && endTransactionsAfterMs !== null && performance.now() - since >= endTransactionsAfterMs) {
        ending = true;
        m.exec.at('before:end-transactions');
        await m.exec.inLease(m.row, (client) => endTransactions(client, id), catalog);
        m.exec.at('after:end-transactions');
        m.log.info({ migration: m.row.id.toString(), proxies: waitingFor }, 'transactions on the interval are ended');
      }
      return false;
    },
    { everyMs: 1, deadlineMs: patienceMs },
  );
  if (!held)
    throw new FenceMissed(
      `proxies did not acknowledge the hold in ${patienceMs} ms: ${waitingFor.join(', ')}; they wait for transactions open on the interval${ending ? ' that could not be ended' : ''}`,
    );
}

function fenceSql(m: Move, token: string): string[] {
  return [
    `SET LOCAL lock_timeout = ${FENCE_LOCK_TIMEOUT_MS}`,
    'SET LOCAL synchronous_commit = on',
    `SELECT pg_advisory_xact_lock(${GUARD_LOCK_CLASS}, ${m.names.operation})`,
    setGateSql(m.names, GATE_CLOSED),
    writeMarkerSql(m.names, token),
  ];
}

async function closeGate(m: Move, token: string): Promise<void> {
  m.exec.at('before:fence');
  const deadline = performance.now() + m.options.fenceMs;
  for (;;) {
    try {
      // One message: every round trip here is a part of the pause.
      await m.source.query(['BEGIN', ...fenceSql(m, token), 'COMMIT'].join(';\n'));
      break;
    } catch (error) {
      if (errorCode(error) !== '55P03') throw error;
      await m.source.query('ROLLBACK');
      const blockers = await writersInFlight(m);
      if (performance.now() >= deadline)
        throw new FenceMissed(
          `transactions kept writing to the interval for ${m.options.fenceMs} ms: ${blockers.slice(0, 5).join(', ')}`,
        );
    }
  }
  m.exec.at('after:fence');
}

/**
 * Proxies hear of the flip while the gate is being opened, and may be there before it is. Should we fall silent, nobody is to wait for us: then
 * the closed gate refuses as before.
 */
function waitAtGate(m: Move): Promise<void> {
  return m.exec.perform({
    name: 'wait-at-gate',
    on: 'destination',
    text: 'have writes that come before the gate opens wait for that',
    mode: 'single',
    sql: [waitAtGateSql(m.names, m.options.fenceMs + m.options.drainMs + SILENCE_MS)],
  });
}

function flushSql(m: Move): string {
  return `SELECT pg_replication_origin_progress('pg_' || oid, true) FROM pg_subscription WHERE subname = ${quoteLiteral(m.names.replication)}`;
}

async function drain(m: Move, token: string): Promise<void> {
  const drained = await m.exec.wait('the marker arrives', () => markerArrived(m, token), {
    everyMs: 1,
    deadlineMs: m.options.drainMs,
  });
  if (!drained)
    throw new FenceMissed(`the destination did not apply everything within ${m.options.drainMs} ms of the fence`);
  m.exec.at('after:drain');
}

async function flush(m: Move): Promise<void> {
  // The apply worker commits asynchronously; a crash of the destination after the flip would lose what it has not flushed.
  const flushed = await m.destination.query<{ pg_replication_origin_progress: string | null }>(flushSql(m));
  if (flushed[0]?.pg_replication_origin_progress == null)
    throw new FenceMissed('the subscription has no replication origin');
  m.exec.at('after:flush-progress');
}

async function carrySequences(m: Move, sequences: readonly SequenceInfo[]): Promise<void> {
  if (sequences.length > 0) {
    const values = await m.source.query<{ i: number; value: string }>(
      sequences.map((s, i) => `SELECT ${i} AS i, last_value::text AS value FROM ${quoteTable(s)}`).join(' UNION ALL '),
    );
    const sets = values.map(({ i, value }) => {
      const s = sequences[i] as SequenceInfo;
      const step = BigInt(s.increment);
      const ahead = BigInt(value) + step * BigInt(SEQUENCE_HEADROOM);
      const clamped = ahead > BigInt(s.max) ? s.max : ahead < BigInt(s.min) ? s.min : ahead.toString();
      const name = quoteTable(s);
      // Another range of this keyspace may have taken the destination's further than ours.
      return `setval(${quoteLiteral(name)}::regclass, ${step > 0n ? 'greatest' : 'least'}(${clamped}, (SELECT last_value FROM ${name})))`;
    });
    await m.destination.query(`SELECT ${sets.join(', ')}`);
  }
  m.exec.at('after:carry-sequences');
}

/** The destination as it is now, to be compared at leisure. */
async function beginSnapshot(m: Move, snapshot: ShardSession): Promise<void> {
  await snapshot.query(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ${snapshotSql(m)}`);
}

/** Any statement makes the snapshot of its transaction. */
function snapshotSql(m: Move): string {
  return `SELECT count(*) FROM ${quoteTable(m.names.marker)}`;
}

/** A source that failed over to a standby may have lost its gate: better to begin again than to have two owners. */
async function assertGateClosed(m: Move): Promise<void> {
  const gate = await m.source.query<{ gate: number }>(readGateSql(m.names));
  if (gate[0]?.gate !== GATE_CLOSED) throw new FenceMissed('the gate at the source did not stay closed');
}

/** A crash between fence and flip: as a missed one, but nobody's fault. */
export async function retreat(m: Move, why: string): Promise<void> {
  await letGoOn(m);
  await catchUpAgain(m, Number(m.row.facts.fenceTries ?? 0), why);
}

async function catchUpAgain(m: Move, tries: number, why: string): Promise<void> {
  m.row = await m.exec.transition(m.row, 'catching_up', { facts: { fenceTries: tries }, detail: { why } });
  await m.exec.progress({ note: why });
}

/** Too many fences were missed, and the migration is where it was before them. */
async function giveUp(m: Move, error: string, why: string): Promise<void> {
  if (m.row.replica !== null) return followOn(m, error);
  const { auto, flipWindow } = m.exec.controls;
  if (auto && flipWindow === null)
    throw new MigrationFailure(
      error,
      'End the sessions named, or choose a quieter time, and start the migration again.',
    );
  // Whoever asked for the flip may ask again, and a window comes again: what has been copied is kept.
  m.exec.at('before:withdraw-flip');
  await m.exec.withdrawFlip();
  m.exec.at('after:withdraw-flip');
  await catchUpAgain(m, 0, why);
}
