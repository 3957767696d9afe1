import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { errorCode } from '../topology/connection.js';
import { CatalogUnavailableError, ForeshardError } from '../topology/errors.js';
import type { MigrationState } from '../topology/migration.js';
import { StatementConflict } from './action.js';
import { AbortRequested, MigrationFailure, RealExecutor } from './executor.js';
import { assertGateSql } from './guards.js';
import { type HalvesWork, openSites, sitesOf } from './halves.js';
import { LeaseLostError, MigrationLease } from './lease.js';
import { type MigrationRow, PAST_FLIP, RESTING_STATES } from './migration-row.js';
import { MigrationStore } from './migration-store.js';
import { type Move, type MoveTarget, movingTables, resolveTarget } from './move.js';
import { GATE_OPEN, type ObjectNames, objectNames } from './names.js';
import type { MigratorOptions } from './options.js';
import { ShardExhaustedError, ShardSession, ShardUnavailableError } from './shard-session.js';
import { abort } from './steps/abort.js';
import { CATALOG_STEPS, type CatalogOnly } from './steps/catalog-only.js';
import { catchUp } from './steps/catch-up.js';
import { clean } from './steps/clean.js';
import { copy } from './steps/copy.js';
import { fence, retreat } from './steps/fence.js';
import { follow } from './steps/follow.js';
import { halvesStep } from './steps/halves.js';
import { open } from './steps/open.js';
import { approve, PreflightRefusal, prepare } from './steps/prepare.js';
import { ready } from './steps/ready.js';
import { reverse } from './steps/reverse.js';
import { rollBack, undoAfterFlipBack } from './steps/roll-back.js';
import { verify } from './steps/verify.js';

type Step = (m: Move) => Promise<void>;

/** What is done in each state. A step may be run again from its start after a crash at any instruction; it ends by a transition. */
export const STEPS: Partial<Record<MigrationState, Step>> = {
  approved: approve,
  preparing: prepare,
  copying: copy,
  catching_up: catchUp,
  verifying: verify,
  following: follow,
  ready,
  fencing: fence,
  flipped: open,
  reversing: reverse,
  rolling_back: rollBack,
  flipped_back: undoAfterFlipBack,
  cleaning: clean,
  aborting: abort,
};

/** Errors of a kind nobody foresaw, in a row, before the migration is undone. */
const MAX_SURPRISES = 5;
const MAX_BACKOFF_MS = 5000;
const FORGET_AFTER_MS = 60_000;

export interface DriveOptions {
  readonly catalog: Catalog;
  readonly id: bigint;
  /** UUID of this process. */
  readonly owner: string;
  readonly options: MigratorOptions;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/**
 * Drives one migration until it rests, the lease is lost, or `signal` fires; it can be gone on with later by anybody.
 * @returns its last state, or null when somebody else holds the lease
 */
export async function drive(o: DriveOptions): Promise<MigrationState | null> {
  const store = new MigrationStore(o.catalog.pool, o.id, o.owner);
  const lease = await MigrationLease.take(store, o.options.leaseMs);
  if (lease === null) return null;
  const signal = AbortSignal.any([o.signal, lease.signal]);
  let surprises = 0;
  let backoffMs = 200;
  let lastErrorAt = Number.NEGATIVE_INFINITY;
  let lastState: MigrationState | null = null;
  try {
    for (;;) {
      try {
        lastState = await attempt(o, store, lease, signal);
        return lastState;
      } catch (error) {
        if (o.signal.aborted || error instanceof LeaseLostError || lease.signal.aborted) return lastState;
        // It is asked for again when the others are out of its way.
        if (error instanceof StatementConflict && error.conflict === 'turn') return 'approved';
        // Nothing was written, and nothing is wrong.
        if (error instanceof StatementConflict && error.conflict === 'epoch') continue;
        // Errors far apart in a long migration have nothing to do with one another.
        if (performance.now() - lastErrorAt > FORGET_AFTER_MS) {
          surprises = 0;
          backoffMs = 200;
        }
        lastErrorAt = performance.now();
        const verdict = await judge(o, store, error, surprises);
        if (verdict === 'surprise') surprises++;
        if (verdict === 'moved on') {
          backoffMs = 200;
          continue;
        }
        await delay(backoffMs, undefined, { signal }).catch(() => undefined); // cut short by the signal, seen above
        backoffMs = Math.min(backoffMs * 2, MAX_BACKOFF_MS);
      }
    }
  } finally {
    await lease.release().catch((error: unknown) => {
      o.log.warn(
        { migration: o.id.toString(), error: String(error) },
        'the lease could not be given back; it ends by itself',
      );
    });
  }
}

/** Connects, and runs steps until the migration rests. */
async function attempt(
  o: DriveOptions,
  store: MigrationStore,
  lease: MigrationLease,
  signal: AbortSignal,
): Promise<MigrationState> {
  lease.check(); // else the sessions of whoever has it now would be ended below
  let row = await store.load();
  row = await startAbort(store, row);
  if (RESTING_STATES.includes(row.state)) return row.state;
  if (row.state === 'aborting' && (await store.cleanup()).every((c) => c.done)) {
    await store.transition(row, 'aborted'); // nothing was made: no shard needs to be there for that
    return 'aborted';
  }
  const { spec } = row;
  if (spec.kind === 'halve' || spec.kind === 'unite') return halvesAttempt(o, store, lease, row, spec, signal);
  if (spec.kind !== 'move') return catalogAttempt(o, store, lease, row, spec, signal);
  const meta = await o.catalog.pool.query<{ cluster_id: string }>('SELECT cluster_id FROM foreshard.meta');
  const target = resolveTarget(await o.catalog.loadTopology(), o.id, meta.rows[0]?.cluster_id ?? '', spec);
  const { source, destination } = await connect(store, lease, target);
  let m: Move | null = null;
  try {
    // A successor that has ended our last sessions is not to be robbed of its own; and whether a flip has happened is only known
    // when none of ours is under way any more.
    await lease.confirm();
    // Read again now that no predecessor can act on the shards any more.
    row = await store.load();
    const shards = { source, destination, names: target.names };
    const exec = new RealExecutor({ store, lease, shards, row, log: o.log, signal });
    m = {
      row,
      exec,
      options: o.options,
      log: o.log,
      catalog: o.catalog,
      topology: target.topology,
      keyspace: target.keyspace,
      spec: target.spec,
      names: target.names,
      tables: movingTables(target, row),
      source,
      destination,
      snapshot: null,
    };
    if (row.state === 'fencing') await retreat(m, 'the migrator was interrupted at the fence');
    for (;;) {
      const step = STEPS[m.row.state];
      if (step === undefined) return m.row.state;
      exec.check();
      await exec.rest();
      await step(m);
    }
  } finally {
    await m?.snapshot?.close();
    await destination.close();
    await source.close();
  }
}

/**
 * Connects to both shards, which ends the sessions of an earlier driver.
 * @throws ShardUnavailableError when one is away; then those who write at the other need not wait for it
 */
async function connect(
  store: MigrationStore,
  lease: MigrationLease,
  { from, to, names }: MoveTarget,
): Promise<{ source: ShardSession; destination: ShardSession }> {
  const [source, destination] = await Promise.allSettled([
    ShardSession.open(from, names.operation),
    ShardSession.open(to, names.operation),
  ]);
  if (source.status === 'fulfilled' && destination.status === 'fulfilled')
    return { source: source.value, destination: destination.value };
  const [there] = [source, destination].filter((one) => one.status === 'fulfilled');
  const [away] = [source, destination].filter((one) => one.status === 'rejected');
  try {
    if (there !== undefined)
      await letGoOn(store, lease, there.value, there === source ? 'source' : 'destination', names);
  } finally {
    await there?.value.close();
  }
  throw away?.reason;
}

/** Opens the gate of the shard that owns the interval, if that is this one and a fence was not crossed, and has the proxies go on. */
async function letGoOn(
  store: MigrationStore,
  lease: MigrationLease,
  shard: ShardSession,
  side: 'source' | 'destination',
  names: ObjectNames,
): Promise<void> {
  // No flip is under way any more, nor can there be another but by us.
  await lease.confirm();
  const row = await store.load();
  const fenced: readonly MigrationState[] = side === 'source' ? ['fencing', 'aborting'] : ['rolling_back'];
  if (!fenced.includes(row.state)) return;
  await shard.query(assertGateSql(names, GATE_OPEN));
  await store.inLease(row, (client) =>
    client.query('DELETE FROM foreshard.hold WHERE migration_id = $1', [row.id.toString()]),
  );
}

/** The same for one that touches no shard. */
async function catalogAttempt(
  o: DriveOptions,
  store: MigrationStore,
  lease: MigrationLease,
  row: MigrationRow,
  spec: CatalogOnly['spec'],
  signal: AbortSignal,
): Promise<MigrationState> {
  const exec = new RealExecutor({ store, lease, shards: null, row, log: o.log, signal });
  const c: CatalogOnly = { row, exec, spec, catalog: o.catalog };
  for (;;) {
    const step = CATALOG_STEPS[c.row.state];
    if (step === undefined) return c.row.state;
    exec.check();
    await exec.rest();
    await step(c);
  }
}

/** The same for one that has to do with several shards alike. */
async function halvesAttempt(
  o: DriveOptions,
  store: MigrationStore,
  lease: MigrationLease,
  row: MigrationRow,
  spec: HalvesWork['spec'],
  signal: AbortSignal,
): Promise<MigrationState> {
  const topology = await o.catalog.loadTopology();
  // Which ends the sessions of an earlier driver.
  const sites = await openSites(topology, sitesOf(topology, spec, row), objectNames(o.id, '').operation);
  try {
    await lease.confirm();
    const now = await store.load();
    const exec = new RealExecutor({ store, lease, shards: null, sites, row: now, log: o.log, signal });
    const { catalog, options, log } = o;
    const h: HalvesWork = { row: now, spec, exec, options, log, catalog, topology, sites };
    for (;;) {
      const step = halvesStep(h);
      if (step === undefined) return h.row.state;
      exec.check();
      await exec.rest();
      await step();
    }
  } finally {
    for (const session of sites.values()) await session.close();
  }
}

/** An abort that was asked for while nobody drove, or of a migration that failed before its flip. */
async function startAbort(store: MigrationStore, row: MigrationRow): Promise<MigrationRow> {
  if (!row.abortRequested || row.state === 'aborting' || row.state === 'aborted') return row;
  if (PAST_FLIP.includes(row.state) || row.facts.flipEpoch !== undefined) return row;
  return store.transition(row, 'aborting', { detail: { why: 'requested' } });
}

/** Decides what an error means: undo, or try again. */
async function judge(
  o: DriveOptions,
  store: MigrationStore,
  error: unknown,
  surprises: number,
): Promise<'moved on' | 'again' | 'surprise'> {
  const message = error instanceof Error ? error.message : String(error);
  const hint = error instanceof ForeshardError ? error.hint : undefined;
  let text = hint === undefined ? message : `${message}. ${hint}`;
  try {
    const row = await store.load();
    const undoable = !PAST_FLIP.includes(row.state) && row.facts.flipEpoch === undefined && row.state !== 'aborting';
    if (error instanceof ShardExhaustedError && undoable) text += ` Or "foreshard migrate abort ${o.id}".`;
    if (error instanceof AbortRequested && undoable) {
      await store.transition(row, 'aborting', { detail: { why: 'requested' } });
      return 'moved on';
    }
    const untouched = row.state === 'approved';
    if (error instanceof PreflightRefusal && untouched) {
      await store.transition(row, 'failed', { error: text, detail: { findings: error.findings } });
      return 'moved on';
    }
    const hopeless = error instanceof MigrationFailure || error instanceof PreflightRefusal;
    const givenUp = !isOutage(error) && surprises + 1 >= MAX_SURPRISES;
    if ((hopeless || givenUp) && undoable) {
      o.log.error({ migration: o.id.toString(), state: row.state, error: text }, 'the migration is undone');
      await store.transition(row, 'aborting', { error: text, detail: { why: message } });
      return 'moved on';
    }
    o.log.warn(
      {
        migration: o.id.toString(),
        state: row.state,
        error: text,
        stack: isOutage(error) ? undefined : (error as Error).stack,
      },
      'will try again',
    );
    await o.catalog.pool.query(
      `UPDATE foreshard.migration SET progress = progress || jsonb_build_object('note', $3::text), updated_at = clock_timestamp()
        WHERE id = $1 AND lease_owner = $2`,
      [o.id.toString(), o.owner, text],
    );
  } catch (second) {
    // The catalog itself is away, or the lease went; the loop finds out which.
    o.log.warn({ migration: o.id.toString(), error: text, catalog: String(second) }, 'the catalog cannot be used');
    return 'again';
  }
  return isOutage(error) ? 'again' : 'surprise';
}

/** Something is not reachable now, or lacks room, memory or the like (class 53): never a reason to give up by itself. */
function isOutage(error: unknown): boolean {
  if (error instanceof ShardUnavailableError || error instanceof CatalogUnavailableError) return true;
  const code = errorCode(error);
  return (
    /^(53|57P)/.test(code) ||
    /^E[A-Z]+$/.test(code) ||
    code === '40001' ||
    /Connection terminated|not queryable/.test(String(error))
  );
}
