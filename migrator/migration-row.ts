import type pg from 'pg';
import { UsageError } from '../topology/errors.js';
import type { Position } from '../topology/key.js';
import { positionFromJson, positionToJson } from '../topology/key-codec.js';
import type {
  HalveSpec,
  MigrationProgress,
  MigrationSpec,
  MigrationState,
  MoveSpec,
  RecutSpec,
  ReplicaTerms,
  SeparateSpec,
  UniteSpec,
} from '../topology/migration.js';
import { type MigrationControls, parseControls } from '../topology/migration-controls.js';
import type { Keyspace, KeyspaceName, ShardName, TableName } from '../topology/topology.js';

/** A spec as the catalog keeps it: positions in their text form. */
export type StoredSpec = StoredMove | StoredRecut | SeparateSpec | HalveSpec | UniteSpec;

export interface StoredMove {
  readonly kind: 'move';
  readonly keyspace: string;
  readonly lo: readonly string[] | null;
  readonly hi: readonly string[] | null;
  readonly from: string;
  readonly to: string;
}

export interface StoredRecut {
  readonly kind: 'recut';
  readonly keyspace: string;
  readonly shard: string;
  readonly cut: readonly (readonly string[])[];
  readonly join: readonly (readonly string[])[];
}

/** What people ask of a migration that has come far enough. */
export type Requested = 'finish' | 'rollback' | 'promote';

/** What steps noted down for those that come after them, on this or another process. */
export type Facts = Readonly<Record<string, unknown>>;

export interface MigrationRow {
  readonly id: bigint;
  readonly planId: bigint | null;
  /** The change that it is a member of, and its place in it. */
  readonly changeId: bigint | null;
  readonly position: number | null;
  readonly spec: StoredSpec;
  readonly state: MigrationState;
  readonly generation: bigint;
  readonly facts: Facts;
  readonly progress: Partial<MigrationProgress>;
  readonly abortRequested: boolean;
  /** It goes no further until somebody resumes it. */
  readonly paused: boolean;
  /** What is to become of the way back, once it is there, or of a replica. */
  readonly requested: Requested | null;
  /** How it is to be carried out. */
  readonly controls: MigrationControls;
  /** Null: it goes on to its flip by itself. */
  readonly replica: ReplicaTerms | null;
  readonly error: string | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

/** Every object that outlives the process, by kind; `object` says which one. */
export interface CleanupSpec {
  readonly kind:
    | 'guards'
    /** A split's hot table and all that goes with it. */
    | 'halves'
    /** Of a split, what the table's own side has. */
    | 'base-half'
    /** Of a split, what brings into the table what is replicated to the hot table. */
    | 'hot-half'
    | 'triggers'
    | 'function'
    | 'table'
    | 'schema'
    | 'sequence'
    | 'type'
    | 'rows'
    | 'marker'
    | 'publication'
    | 'slot'
    | 'subscription'
    | 'hold'
    | 'replica';
  /** Shard that holds it; empty for the catalog. */
  readonly shard: string;
  readonly object: Readonly<Record<string, string>>;
}

export interface CleanupRecord extends CleanupSpec {
  readonly id: bigint;
  readonly done: boolean;
}

/** The table that a record names. */
export function tableOf({ object }: Pick<CleanupSpec, 'object'>): TableName {
  return { schema: object.schema as string, table: object.table as string };
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
  'following',
  'ready',
  'cleaning',
];

/** States in which nothing more happens by itself. */
export const RESTING_STATES: readonly MigrationState[] = ['planned', 'done', 'rolled_back', 'aborted', 'failed'];
/** As a list in SQL: states in which a migration has nothing on any shard that another of its keyspace would meet. */
export const OUT_OF_THE_WAY = [...RESTING_STATES, 'approved'].map((state) => `'${state}'`).join(', ');
/** And states in which another of its keyspace may begin, if preflight finds that they have nothing in common. */
export const BESIDE = `${OUT_OF_THE_WAY}, 'following'`;
/** As a list in SQL: ends with which a member stops its change: no other member begins. */
export const STOPPING = `'failed', 'aborted', 'rolled_back'`;
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

export type Db = Pick<pg.ClientBase, 'query'> | pg.Pool;

/** What `fromRaw` takes. */
export const COLUMNS = `id::text, plan_id::text, change_id::text, position, spec, state, generation::text, facts, progress, abort_requested, paused, requested, controls, error,
  created_at, updated_at, (SELECT jsonb_build_object('maxStalenessMs', r.max_staleness_ms, 'readPercent', r.read_percent)
    FROM foreshard.range_replica r WHERE r.migration_id = id) AS replica`;

export interface RawRow {
  id: string;
  plan_id: string | null;
  change_id: string | null;
  position: number | null;
  spec: StoredSpec;
  state: MigrationState;
  generation: string;
  facts: Facts;
  progress: Partial<MigrationProgress>;
  abort_requested: boolean;
  paused: boolean;
  requested: Requested | null;
  controls: unknown;
  replica: ReplicaTerms | null;
  error: string | null;
  created_at: Date;
  updated_at: Date;
}

export function fromRaw(raw: RawRow): MigrationRow {
  return {
    id: BigInt(raw.id),
    planId: raw.plan_id === null ? null : BigInt(raw.plan_id),
    changeId: raw.change_id === null ? null : BigInt(raw.change_id),
    position: raw.position,
    spec: raw.spec,
    state: raw.state,
    generation: BigInt(raw.generation),
    facts: raw.facts,
    progress: raw.progress,
    abortRequested: raw.abort_requested,
    paused: raw.paused,
    requested: raw.requested,
    controls: parseControls(raw.controls),
    replica: raw.replica,
    error: raw.error,
    createdAt: raw.created_at,
    updatedAt: raw.updated_at,
  };
}

type Scheme = Pick<Keyspace, 'method' | 'keyTypes'>;

/** A spec in the form the catalog keeps. */
export function encodeSpec(keyspace: Scheme, spec: MoveSpec): StoredMove;
export function encodeSpec(keyspace: Scheme, spec: MigrationSpec): StoredSpec;
export function encodeSpec(keyspace: Scheme, spec: MigrationSpec): StoredSpec {
  if (spec.kind === 'separate' || spec.kind === 'halve' || spec.kind === 'unite') return spec;
  if (spec.kind === 'move')
    return { ...spec, lo: positionToJson(keyspace, spec.lo), hi: positionToJson(keyspace, spec.hi) };
  const encode = (position: Position) => positionToJson(keyspace, position);
  return { ...spec, cut: spec.cut.map(encode), join: spec.join.map(encode) };
}

/** The inverse of `encodeSpec`. */
export function decodeSpec(keyspace: Scheme, stored: StoredMove): MoveSpec;
export function decodeSpec(keyspace: Scheme, stored: StoredRecut): RecutSpec;
export function decodeSpec(keyspace: Scheme, stored: StoredSpec): MigrationSpec;
export function decodeSpec(keyspace: Scheme, stored: StoredSpec): MigrationSpec {
  if (stored.kind === 'separate' || stored.kind === 'halve' || stored.kind === 'unite') return stored;
  if (stored.kind === 'recut') {
    const decode = (json: readonly string[]) => positionFromJson(keyspace, [...json]) as Position;
    return {
      kind: 'recut',
      keyspace: stored.keyspace as KeyspaceName,
      shard: stored.shard as ShardName,
      cut: stored.cut.map(decode),
      join: stored.join.map(decode),
    };
  }
  return {
    kind: 'move',
    keyspace: stored.keyspace as KeyspaceName,
    lo: positionFromJson(keyspace, stored.lo === null ? null : [...stored.lo]),
    hi: positionFromJson(keyspace, stored.hi === null ? null : [...stored.hi]),
    from: stored.from as ShardName,
    to: stored.to as ShardName,
  };
}

/** All migrations, newest first. */
export async function listMigrations(db: Db): Promise<MigrationRow[]> {
  const result = await (db as pg.Pool).query<RawRow>(`SELECT ${COLUMNS} FROM foreshard.migration ORDER BY id DESC`);
  return result.rows.map(fromRaw);
}

/** Moves that other migrations are at; replicas that are kept are among them. */
export async function otherMoves(
  db: Db,
  id: bigint,
): Promise<{ readonly id: string; readonly state: MigrationState; readonly spec: StoredMove }[]> {
  const { rows } = await (db as pg.Pool).query<{ id: string; state: MigrationState; spec: StoredMove }>(
    `SELECT id::text, state, spec FROM foreshard.migration
      WHERE id <> $1 AND spec->>'kind' = 'move' AND state NOT IN (${OUT_OF_THE_WAY}) ORDER BY id DESC`,
    [id.toString()],
  );
  return rows;
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

export async function loadCleanup(db: Db, id: bigint): Promise<CleanupRecord[]> {
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
