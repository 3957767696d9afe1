import type pg from 'pg';
import { type CatalogClient, inCatalogTransaction, inTransactionOf } from '../topology/catalog/change.js';
import { ConflictError } from '../topology/errors.js';
import type { MigrationProgress, MigrationState } from '../topology/migration.js';
import { type MigrationControls, parseControls } from '../topology/migration-controls.js';
import type { CatalogStatement } from './action.js';
import { LeaseLostError } from './lease.js';
import {
  type CleanupRecord,
  type CleanupSpec,
  COLUMNS,
  type Facts,
  fromRaw,
  loadCleanup,
  loadMigration,
  type MigrationRow,
  type RawRow,
  type Requested,
  STOPPING,
} from './migration-row.js';

/** A process that sleeps in a transaction would keep its successor waiting for the migration's row. */
const SILENCE_MS = 2000;

/** Begins a transaction of the catalog, which ends it when the next word of us does not come within SILENCE_MS. */
export const BEGIN_OR_BE_ENDED = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL idle_in_transaction_session_timeout = ${SILENCE_MS}`;

/** The plan is done with its migration. Parts of a change of state, of the states that have them: each costs the flip its planning. */
const CARRY_OUT = `, carried_out AS (
         UPDATE foreshard.plan p SET status = 'done' FROM moved WHERE p.id = moved.plan_id
       )`;

/** Members of the change that have not begun. */
const STOP = `, stopped AS (
         UPDATE foreshard.migration s SET state = 'aborted', generation = s.generation + 1, updated_at = clock_timestamp(),
                error = format('migration %s of the same change %s', moved.id, CASE moved.state WHEN 'failed' THEN 'failed'
                               WHEN 'aborted' THEN 'was aborted' ELSE 'was taken back' END || coalesce(': ' || moved.error, ''))
           FROM moved WHERE s.change_id = moved.change_id AND s.id <> moved.id
                        AND s.state IN ('planned', 'approved') RETURNING s.id, s.error
       ), stopped_event AS (
         INSERT INTO foreshard.migration_event (migration_id, state, detail)
         SELECT id, 'aborted', jsonb_build_object('why', error) FROM stopped
       )`;

/** What people want of a migration, and the catalog's clock. */
export interface Wishes {
  readonly abortRequested: boolean;
  readonly paused: boolean;
  readonly controls: MigrationControls;
  readonly requested: Requested | null;
  readonly now: Date;
}

/** What else a change of state writes. */
export interface StateChange {
  readonly facts?: Facts;
  readonly error?: string | null;
  readonly detail?: Facts;
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

  /** Takes the lease when it is free or over, or renews our own. @returns null when somebody else has it */
  async takeLease(ttlMs: number): Promise<Wishes | null> {
    const result = await this.pool.query<
      Pick<RawRow, 'abort_requested' | 'paused' | 'controls' | 'requested'> & { now: Date }
    >(
      `UPDATE foreshard.migration SET lease_owner = $2, lease_until = clock_timestamp() + $3 * interval '1 ms'
        WHERE id = $1 AND (lease_owner = $2 OR lease_owner IS NULL OR lease_until < clock_timestamp())
        RETURNING abort_requested, paused, controls, requested, clock_timestamp() AS now`,
      [this.id.toString(), this.owner, ttlMs],
    );
    const row = result.rows[0];
    if (row === undefined) return null;
    const { abort_requested: abortRequested, paused, controls, requested, now } = row;
    return { abortRequested, paused, controls: parseControls(controls), requested, now };
  }

  async dropLease(): Promise<void> {
    await this.pool.query(
      'UPDATE foreshard.migration SET lease_owner = NULL, lease_until = NULL WHERE id = $1 AND lease_owner = $2',
      [this.id.toString(), this.owner],
    );
  }

  /**
   * Moves to another state, with facts merged and the event, in one transaction. When that stops its change, members of it that have not
   * begun are aborted.
   * @throws ConflictError when state, generation or lease are no longer what `row` says
   */
  async transition(row: MigrationRow, to: MigrationState, change: StateChange = {}): Promise<MigrationRow> {
    const { sql, values, elseConflict } = this.transitionStatement(row, to, change, COLUMNS);
    const result = await this.pool.query<RawRow>(sql, [...values]);
    const moved = result.rows[0];
    if (moved === undefined) throw new ConflictError(elseConflict);
    return fromRaw(moved);
  }

  /** What `transition` does, to be a part of a transaction of the catalog. @param columns what it gives of the row as it is then */
  transitionStatement(
    row: MigrationRow,
    to: MigrationState,
    change: StateChange,
    columns = '',
  ): CatalogStatement & { readonly elseConflict: string } {
    return {
      text: `the migration is ${to}`,
      sql: `WITH moved AS (
         UPDATE foreshard.migration
            SET state = $5, generation = generation + 1, facts = facts || $6::jsonb,
                error = CASE WHEN $8 THEN $7 ELSE error END,
                abort_requested = abort_requested AND $5 NOT IN ('aborted', 'flipped'),
                requested = CASE WHEN $5 IN ('following', 'reversing', 'rolling_back', 'cleaning') THEN NULL ELSE requested END,
                updated_at = clock_timestamp()
          WHERE id = $1 AND state = $2 AND generation = $3 AND lease_owner = $4 AND lease_until > clock_timestamp()
          RETURNING *
       ), event AS (
         INSERT INTO foreshard.migration_event (migration_id, state, detail) SELECT id, $5, $9::jsonb FROM moved
       ), told AS (
         SELECT pg_notify('foreshard_migration', id::text) FROM moved
       )${to === 'done' ? CARRY_OUT : ''}${STOPPING.includes(`'${to}'`) ? STOP : ''}
       SELECT ${columns} FROM moved, told`,
      values: [
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
      elseConflict: this.#notOurs(row),
    };
  }

  /** A query for the row as it is, in the transaction in which it is asked. */
  get rowQuery(): string {
    return `SELECT ${COLUMNS} FROM foreshard.migration WHERE id = ${this.id}`;
  }

  /**
   * Does `work` in one transaction of the catalog in which nobody else can take the migration over, so that a driver that slept
   * meanwhile neither leaves something behind that nobody drops, nor drops what is its successor's.
   * @param over a connection that is at hand; default: one of the pool
   * @throws LeaseLostError when state, generation or lease are no longer what `row` says; nothing is done then
   */
  inLease<T>(row: MigrationRow, work: (client: CatalogClient) => Promise<T>, over?: CatalogClient): Promise<T> {
    const guarded = async (client: CatalogClient): Promise<T> => {
      // A successor has written another owner and generation, or will wait for us to do so.
      const { rowCount } = await client.query(
        `SELECT FROM foreshard.migration
          WHERE id = $1 AND state = $2 AND generation = $3 AND lease_owner = $4 AND lease_until > clock_timestamp() FOR SHARE`,
        [row.id.toString(), row.state, row.generation.toString(), this.owner],
      );
      if (rowCount === 0) throw new LeaseLostError(this.#notOurs(row));
      return work(client);
    };
    return over === undefined
      ? inCatalogTransaction(this.pool, guarded, BEGIN_OR_BE_ENDED)
      : inTransactionOf(over, guarded, BEGIN_OR_BE_ENDED);
  }

  /** Notes facts without a change of state, with an event when it has a `detail`. */
  async noteFacts(row: MigrationRow, facts: Facts, detail?: Facts): Promise<MigrationRow> {
    const result = await this.pool.query<RawRow>(
      `WITH noted AS (
         UPDATE foreshard.migration SET facts = facts || $4::jsonb, generation = generation + 1
          WHERE id = $1 AND generation = $2 AND lease_owner = $3 AND lease_until > clock_timestamp() RETURNING *
       ), event AS (
         INSERT INTO foreshard.migration_event (migration_id, state, detail)
         SELECT id, state, $5::jsonb FROM noted WHERE $5::jsonb IS NOT NULL
       )
       SELECT ${COLUMNS} FROM noted`,
      [
        row.id.toString(),
        row.generation.toString(),
        this.owner,
        JSON.stringify(facts),
        detail === undefined ? null : JSON.stringify(detail),
      ],
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

  /** Forgets that somebody asked for the flip. */
  async withdrawFlip(): Promise<void> {
    await this.pool.query(
      "UPDATE foreshard.migration SET controls = controls - 'flipRequested' WHERE id = $1 AND lease_owner = $2",
      [this.id.toString(), this.owner],
    );
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
