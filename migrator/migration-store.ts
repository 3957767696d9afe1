import type pg from 'pg';
import { type CatalogClient, inCatalogTransaction } from '../topology/catalog/change.js';
import { ConflictError, ForeshardError, UsageError } from '../topology/errors.js';
import { positionFromJson, positionToJson } from '../topology/key-codec.js';
import type { MigrationProgress, MigrationState, SplitMoveSpec } from '../topology/migration.js';
import type { Keyspace, KeyspaceName, ShardName } from '../topology/topology.js';
import { LeaseLostError } from './lease.js';

/** A spec as the catalog keeps it: bounds in their text form. */
export interface StoredSpec {
  readonly kind: 'split_move';
  readonly keyspace: string;
  readonly lo: readonly string[] | null;
  readonly hi: readonly string[] | null;
  readonly from: string;
  readonly to: string;
}

/** What steps noted down for those that come after them, on this or another process. */
export type Facts = Readonly<Record<string, unknown>>;

export interface MigrationRow {
  readonly id: bigint;
  readonly planId: bigint | null;
  readonly spec: StoredSpec;
  readonly state: MigrationState;
  readonly generation: bigint;
  readonly facts: Facts;
  readonly progress: Partial<MigrationProgress>;
  readonly abortRequested: boolean;
  /** It goes no further until somebody resumes it. */
  readonly paused: boolean;
  /** What is to become of the way back, once it is there. */
  readonly requested: 'finish' | 'rollback' | null;
  readonly error: string | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

/** Every object that outlives the process, by kind; `object` says which one. */
export interface CleanupSpec {
  readonly kind:
    | 'guards'
    | 'table'
    | 'schema'
    | 'sequence'
    | 'type'
    | 'rows'
    | 'marker'
    | 'publication'
    | 'slot'
    | 'subscription'
    | 'hold';
  /** Shard that holds it; empty for the catalog. */
  readonly shard: string;
  readonly object: Readonly<Record<string, string>>;
}

export interface CleanupRecord extends CleanupSpec {
  readonly id: bigint;
  readonly done: boolean;
}

export interface MigrationEvent {
  readonly at: Date;
  readonly state: MigrationState;
  readonly detail: Readonly<Record<string, unknown>>;
}

/** States in which a migration can be paused: no client waits for it, and nothing is half done. */
export const PAUSABLE: readonly MigrationState[] = [
  'approved',
  'preparing',
  'copying',
  'catching_up',
  'verifying',
  'ready',
  'cleaning',
];

/** States in which nothing more happens by itself. */
export const RESTING_STATES: readonly MigrationState[] = ['planned', 'done', 'rolled_back', 'aborted', 'failed'];
/** As a list in SQL: states in which a migration has nothing on any shard that another of its keyspace would meet. */
export const OUT_OF_THE_WAY = [...RESTING_STATES, 'approved'].map((state) => `'${state}'`).join(', ');
/** From here on a migration is not aborted any more. */
export const PAST_FLIP: readonly MigrationState[] = [
  'flipped',
  'reversing',
  'cleaning',
  'done',
  'rolling_back',
  'flipped_back',
  'rolled_back',
];

/** A process that sleeps in a transaction would keep its successor waiting for the migration's row. */
const SILENCE_MS = 2000;

/** Begins a transaction of the catalog, which ends it when the next word of us does not come within SILENCE_MS. */
export const BEGIN_OR_BE_ENDED = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL idle_in_transaction_session_timeout = ${SILENCE_MS}`;

type Db = Pick<pg.ClientBase, 'query'> | pg.Pool;

const COLUMNS = `id::text, plan_id::text, spec, state, generation::text, facts, progress, abort_requested, paused, requested, error,
  created_at, updated_at`;

interface RawRow {
  id: string;
  plan_id: string | null;
  spec: StoredSpec;
  state: MigrationState;
  generation: string;
  facts: Facts;
  progress: Partial<MigrationProgress>;
  abort_requested: boolean;
  paused: boolean;
  requested: 'finish' | 'rollback' | null;
  error: string | null;
  created_at: Date;
  updated_at: Date;
}

function fromRaw(raw: RawRow): MigrationRow {
  return {
    id: BigInt(raw.id),
    planId: raw.plan_id === null ? null : BigInt(raw.plan_id),
    spec: raw.spec,
    state: raw.state,
    generation: BigInt(raw.generation),
    facts: raw.facts,
    progress: raw.progress,
    abortRequested: raw.abort_requested,
    paused: raw.paused,
    requested: raw.requested,
    error: raw.error,
    createdAt: raw.created_at,
    updatedAt: raw.updated_at,
  };
}

/** A spec in the form the catalog keeps. */
export function encodeSpec(keyspace: Pick<Keyspace, 'method' | 'keyTypes'>, spec: SplitMoveSpec): StoredSpec {
  return { ...spec, lo: positionToJson(keyspace, spec.lo), hi: positionToJson(keyspace, spec.hi) };
}

/** The inverse of `encodeSpec`. */
export function decodeSpec(keyspace: Pick<Keyspace, 'method' | 'keyTypes'>, stored: StoredSpec): SplitMoveSpec {
  return {
    kind: 'split_move',
    keyspace: stored.keyspace as KeyspaceName,
    lo: positionFromJson(keyspace, stored.lo === null ? null : [...stored.lo]),
    hi: positionFromJson(keyspace, stored.hi === null ? null : [...stored.hi]),
    from: stored.from as ShardName,
    to: stored.to as ShardName,
  };
}

/**
 * Enters an approved migration; the migrator picks it up by itself.
 * @returns its id
 */
export async function createMigration(
  db: Db,
  keyspace: Pick<Keyspace, 'method' | 'keyTypes'>,
  spec: SplitMoveSpec,
  options: { planId?: bigint; actor: string },
): Promise<bigint> {
  const result = await (db as pg.Pool).query<{ id: string }>(
    `WITH made AS (
       INSERT INTO foreshard.migration (plan_id, kind, spec, state) VALUES ($1, 'split_move', $2, 'approved') RETURNING id
     ), event AS (
       INSERT INTO foreshard.migration_event (migration_id, state, detail)
       SELECT id, 'approved', jsonb_build_object('by', $3::text) FROM made
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object, detail)
       SELECT $3, 'migration.approve', 'migration ' || id, $2::jsonb FROM made
     ), told AS (
       SELECT pg_notify('foreshard_migration', id::text) FROM made
     )
     SELECT id::text FROM made, told`,
    [options.planId?.toString() ?? null, JSON.stringify(encodeSpec(keyspace, spec)), options.actor],
  );
  return BigInt((result.rows[0] as { id: string }).id);
}

/** All migrations, newest first. */
export async function listMigrations(db: Db): Promise<MigrationRow[]> {
  const result = await (db as pg.Pool).query<RawRow>(`SELECT ${COLUMNS} FROM foreshard.migration ORDER BY id DESC`);
  return result.rows.map(fromRaw);
}

/** One migration with what happened to it and what it still has to clean up. */
export async function showMigration(
  db: Db,
  id: bigint,
): Promise<{ migration: MigrationRow; events: MigrationEvent[]; cleanup: CleanupRecord[] }> {
  const migration = await loadMigration(db, id);
  const events = await (db as pg.Pool).query<MigrationEvent>(
    'SELECT at, state, detail FROM foreshard.migration_event WHERE migration_id = $1 ORDER BY id',
    [id.toString()],
  );
  return { migration, events: events.rows, cleanup: await loadCleanup(db, id) };
}

/** @throws UsageError when there is none */
export async function loadMigration(db: Db, id: bigint): Promise<MigrationRow> {
  const result = await (db as pg.Pool).query<RawRow>(`SELECT ${COLUMNS} FROM foreshard.migration WHERE id = $1`, [
    id.toString(),
  ]);
  const raw = result.rows[0];
  if (raw === undefined) throw new UsageError(`there is no migration ${id}`, 'See "foreshard migrate list".');
  return fromRaw(raw);
}

async function loadCleanup(db: Db, id: bigint): Promise<CleanupRecord[]> {
  const result = await (db as pg.Pool).query<{
    id: string;
    kind: CleanupSpec['kind'];
    shard: string;
    object: Record<string, string>;
    done: boolean;
  }>(
    `SELECT id::text, kind, shard, object, done_at IS NOT NULL AS done
       FROM foreshard.migration_cleanup WHERE migration_id = $1 ORDER BY foreshard.migration_cleanup.id`,
    [id.toString()],
  );
  return result.rows.map((r) => ({ ...r, id: BigInt(r.id) }));
}

/**
 * Asks the migrator to abort; it answers by the state `aborting`. Safe at any moment: whether the flip came first is decided
 * by the catalog.
 * @throws ForeshardError 55000 when the migration is past its flip or at rest
 */
export async function requestAbort(db: Db, id: bigint, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET abort_requested = true, updated_at = clock_timestamp()
        WHERE id = $1 AND state <> ALL ($3::text[]) AND NOT facts ? 'flipEpoch' RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.abort', 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, [...PAST_FLIP, 'aborted']],
  );
  if (updated.rowCount !== 0) return;
  const { state } = await loadMigration(db, id);
  if (state === 'done' || state === 'aborted' || state === 'rolled_back')
    throw new ForeshardError('55000', `migration ${id} is already ${state}`, { hint: 'Nothing is left to abort.' });
  throw new ForeshardError('55000', `migration ${id} has flipped: its rows belong to the destination now`, {
    hint:
      state === 'reversing'
        ? `It can be taken back: "foreshard migrate rollback ${id}".`
        : 'It finishes by itself. To undo it, move the range back with a new migration.',
  });
}

/**
 * Lets a migration go on that stopped because the shards differed as of its flip, after a person has looked into it: the rows
 * at the source are removed after all.
 * @throws ForeshardError 55000 when it is not such a one
 */
export async function acceptDifference(db: Db, id: bigint, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH accepted AS (
       UPDATE foreshard.migration
          SET state = CASE WHEN facts ? 'backEpoch' THEN 'flipped_back' ELSE 'cleaning' END,
              generation = generation + 1, error = NULL, updated_at = clock_timestamp(),
              facts = facts || jsonb_build_object(CASE WHEN facts ? 'backEpoch' THEN 'backExact' ELSE 'exact' END,
                                                  'difference accepted by ' || $2::text)
        WHERE id = $1 AND state = 'failed' AND facts ? 'flipEpoch' RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.accept', 'migration ' || id FROM accepted
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM accepted`,
    [id.toString(), actor],
  );
  if (updated.rowCount === 0)
    throw new ForeshardError('55000', `migration ${id} has no difference to accept`, {
      hint: 'See "foreshard migrate show".',
    });
}

/**
 * Has a migration go no further, or go on. A fence that has begun is not paused, but what follows if it misses.
 * @throws ForeshardError 55000 when it is at rest, or is so already
 */
export async function setPaused(db: Db, id: bigint, paused: boolean, actor: string): Promise<void> {
  const action = paused ? 'pause' : 'resume';
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET paused = $3, updated_at = clock_timestamp()
        WHERE id = $1 AND paused <> $3 AND (NOT $3 OR state <> ALL ($4::text[])) RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.' || $5, 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, paused, [...RESTING_STATES], action],
  );
  if (updated.rowCount !== 0) return;
  const { state, paused: already } = await loadMigration(db, id);
  throw new ForeshardError(
    '55000',
    already === paused
      ? `migration ${id} is ${paused ? 'paused already' : 'not paused'}`
      : `migration ${id} is ${state}`,
    { hint: 'See "foreshard migrate show".' },
  );
}

/**
 * Asks the migrator to take a migration back that has flipped (`rollback`), or to give up its way back now (`finish`).
 * @throws ForeshardError 55000 when there is no way back (any more)
 */
export async function requestEnd(db: Db, id: bigint, end: 'finish' | 'rollback', actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET requested = $3, updated_at = clock_timestamp()
        WHERE id = $1 AND state = 'reversing' AND requested IS NULL AND ($3 = 'finish' OR NOT facts ? 'wayBackLost') RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.' || $3, 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, end],
  );
  if (updated.rowCount !== 0) return;
  const { state, requested, facts } = await loadMigration(db, id);
  if (requested !== null)
    throw new ForeshardError('55000', `migration ${id} has been asked for "${requested}" already`, {
      hint: `Follow it with "foreshard migrate watch ${id}".`,
    });
  if (state === 'reversing')
    throw new ForeshardError('55000', `migration ${id} cannot be taken back: ${String(facts.wayBackLost)}`, {
      hint: 'Finish it, and move the range back with a new migration.',
    });
  throw new ForeshardError('55000', `migration ${id} has no way back: it is ${state.replaceAll('_', ' ')}`, {
    hint: 'There is one from the flip on, for as long as migrator.wayBackMs says. Before it, "foreshard migrate abort" undoes a migration.',
  });
}

/** What one driver of one migration may do with its row: everything under the lease, by compare-and-set. */
export class MigrationStore {
  readonly pool: pg.Pool;
  readonly id: bigint;
  readonly owner: string;

  constructor(pool: pg.Pool, id: bigint, owner: string) {
    this.pool = pool;
    this.id = id;
    this.owner = owner;
  }

  load(): Promise<MigrationRow> {
    return loadMigration(this.pool, this.id);
  }

  cleanup(): Promise<CleanupRecord[]> {
    return loadCleanup(this.pool, this.id);
  }

  /** Takes the lease when it is free or over, or renews our own. */
  async takeLease(ttlMs: number): Promise<{ taken: boolean; abortRequested: boolean; paused: boolean }> {
    const result = await this.pool.query<{ abort_requested: boolean; paused: boolean }>(
      `UPDATE foreshard.migration SET lease_owner = $2, lease_until = clock_timestamp() + $3 * interval '1 ms'
        WHERE id = $1 AND (lease_owner = $2 OR lease_owner IS NULL OR lease_until < clock_timestamp())
        RETURNING abort_requested, paused`,
      [this.id.toString(), this.owner, ttlMs],
    );
    const row = result.rows[0];
    return { taken: row !== undefined, abortRequested: row?.abort_requested ?? false, paused: row?.paused ?? false };
  }

  async dropLease(): Promise<void> {
    await this.pool.query(
      'UPDATE foreshard.migration SET lease_owner = NULL, lease_until = NULL WHERE id = $1 AND lease_owner = $2',
      [this.id.toString(), this.owner],
    );
  }

  /**
   * Moves to another state, with facts merged and the event, in one transaction.
   * @param db a client inside a transaction, to make it part of that
   * @throws ConflictError when state, generation or lease are no longer what `row` says
   */
  async transition(
    row: MigrationRow,
    to: MigrationState,
    change: { facts?: Facts; error?: string | null; detail?: Facts } = {},
    db: Db = this.pool,
  ): Promise<MigrationRow> {
    const result = await (db as pg.Pool).query<RawRow>(
      `WITH moved AS (
         UPDATE foreshard.migration
            SET state = $5, generation = generation + 1, facts = facts || $6::jsonb,
                error = CASE WHEN $8 THEN $7 ELSE error END,
                abort_requested = abort_requested AND $5 NOT IN ('aborted', 'flipped'),
                requested = CASE WHEN $5 IN ('reversing', 'rolling_back', 'cleaning') THEN NULL ELSE requested END,
                updated_at = clock_timestamp()
          WHERE id = $1 AND state = $2 AND generation = $3 AND lease_owner = $4 AND lease_until > clock_timestamp()
          RETURNING *
       ), event AS (
         INSERT INTO foreshard.migration_event (migration_id, state, detail) SELECT id, $5, $9::jsonb FROM moved
       ), told AS (
         SELECT pg_notify('foreshard_migration', id::text) FROM moved
       ), carried_out AS (
         UPDATE foreshard.plan p SET status = 'done' FROM moved WHERE p.id = moved.plan_id AND moved.state = 'done'
       )
       SELECT ${COLUMNS} FROM moved, told`,
      [
        row.id.toString(),
        row.state,
        row.generation.toString(),
        this.owner,
        to,
        JSON.stringify(change.facts ?? {}),
        change.error ?? null,
        change.error !== undefined,
        JSON.stringify(change.detail ?? {}),
      ],
    );
    const moved = result.rows[0];
    if (moved === undefined) throw new ConflictError(this.#notOurs(row));
    return fromRaw(moved);
  }

  /**
   * Does `work` in one transaction of the catalog in which nobody else can take the migration over, so that a driver that slept
   * meanwhile neither leaves something behind that nobody drops, nor drops what is its successor's.
   * @throws LeaseLostError when state, generation or lease are no longer what `row` says; nothing is done then
   */
  inLease<T>(row: MigrationRow, work: (client: CatalogClient) => Promise<T>): Promise<T> {
    return inCatalogTransaction(
      this.pool,
      async (client) => {
        // A successor has written another owner and generation, or will wait for us to do so.
        const { rowCount } = await client.query(
          `SELECT FROM foreshard.migration
          WHERE id = $1 AND state = $2 AND generation = $3 AND lease_owner = $4 AND lease_until > clock_timestamp() FOR SHARE`,
          [row.id.toString(), row.state, row.generation.toString(), this.owner],
        );
        if (rowCount === 0) throw new LeaseLostError(this.#notOurs(row));
        return work(client);
      },
      BEGIN_OR_BE_ENDED,
    );
  }

  /** Notes facts without a change of state. */
  async noteFacts(row: MigrationRow, facts: Facts): Promise<MigrationRow> {
    const result = await this.pool.query<RawRow>(
      `UPDATE foreshard.migration SET facts = facts || $4::jsonb, generation = generation + 1
        WHERE id = $1 AND generation = $2 AND lease_owner = $3 AND lease_until > clock_timestamp() RETURNING ${COLUMNS}`,
      [row.id.toString(), row.generation.toString(), this.owner, JSON.stringify(facts)],
    );
    const noted = result.rows[0];
    if (noted === undefined) throw new ConflictError(`migration ${this.id} is no longer under our lease`);
    return fromRaw(noted);
  }

  async writeProgress(progress: MigrationProgress): Promise<void> {
    await this.pool.query(
      `WITH p AS (UPDATE foreshard.migration SET progress = $3::jsonb, updated_at = clock_timestamp()
                   WHERE id = $1 AND lease_owner = $2 RETURNING id)
       SELECT pg_notify('foreshard_migration', id::text) FROM p`,
      [this.id.toString(), this.owner, JSON.stringify(progress)],
    );
  }

  async event(state: MigrationState, detail: Facts): Promise<void> {
    await this.pool.query('INSERT INTO foreshard.migration_event (migration_id, state, detail) VALUES ($1, $2, $3)', [
      this.id.toString(),
      state,
      JSON.stringify(detail),
    ]);
  }

  /** Commits the record of an object that is about to be made. Once per object, however often the step runs. */
  async recordCleanup(spec: CleanupSpec): Promise<void> {
    const result = await this.pool.query(
      `INSERT INTO foreshard.migration_cleanup (migration_id, kind, shard, object)
       SELECT m.id, $3, $4, $5::jsonb FROM foreshard.migration m
        WHERE m.id = $1 AND m.lease_owner = $2 AND m.lease_until > clock_timestamp()
          AND NOT EXISTS (SELECT FROM foreshard.migration_cleanup c WHERE c.migration_id = $1 AND c.kind = $3
                            AND c.shard = $4 AND c.object = $5::jsonb AND c.done_at IS NULL)
       RETURNING id`,
      [this.id.toString(), this.owner, spec.kind, spec.shard, JSON.stringify(spec.object)],
    );
    if (result.rowCount !== 0) return;
    const known = await this.cleanup();
    const same = (c: CleanupRecord) =>
      !c.done && c.kind === spec.kind && c.shard === spec.shard && sameObject(c.object, spec.object);
    if (!known.some(same)) throw new ConflictError(`migration ${this.id} is no longer under our lease`);
  }

  #notOurs(row: MigrationRow): string {
    return `migration ${this.id} is no longer ${row.state} (generation ${row.generation}) under our lease`;
  }

  async markCleanupDone(id: bigint): Promise<void> {
    await this.pool.query(
      'UPDATE foreshard.migration_cleanup SET done_at = clock_timestamp() WHERE id = $1 AND done_at IS NULL',
      [id.toString()],
    );
  }
}

function sameObject(a: Readonly<Record<string, string>>, b: Readonly<Record<string, string>>): boolean {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((k) => a[k] === b[k]);
}
