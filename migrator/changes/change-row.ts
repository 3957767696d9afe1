import type pg from 'pg';
import { UsageError } from '../../topology/errors.js';
import { COLUMNS, type Db, fromRaw, type MigrationRow, type RawRow, RESTING_STATES } from '../migration-row.js';

/** What people ask for. */
export const CHANGE_KINDS = [
  'move',
  'split',
  'merge',
  'isolate',
  'drain',
  'rebalance',
  'vertical',
  'columns',
  'unite',
] as const;
export type ChangeKind = (typeof CHANGE_KINDS)[number];

/**
 * `approved`: it waits for `start`. `stopping`: a member has not come through, and others are still at work; those that had not begun were
 * aborted. `stopped`: the same, and nothing is at work any more. `aborted`: no member has done anything.
 */
export type ChangeState = 'planned' | 'approved' | 'running' | 'done' | 'stopping' | 'stopped' | 'aborted';

/** Several migrations with an order. */
export interface Change {
  readonly id: bigint;
  readonly kind: ChangeKind;
  /** As it was asked for. */
  readonly request: Readonly<Record<string, unknown>>;
  /** At which it was planned. */
  readonly epoch: bigint;
  /** Members at work at once. */
  readonly concurrency: number;
  readonly createdBy: string;
  readonly createdAt: Date;
  readonly approvedBy: string | null;
  readonly startedBy: string | null;
  /** By position. */
  readonly members: readonly MigrationRow[];
}

/** In these nothing more happens by itself. */
export const RESTING_CHANGES: readonly ChangeState[] = ['planned', 'approved', 'done', 'stopped', 'aborted'];

const STOPPED: readonly string[] = ['failed', 'aborted', 'rolled_back'];

export function changeState(change: Pick<Change, 'approvedBy' | 'startedBy' | 'members'>): ChangeState {
  const states = change.members.map((m) => m.state);
  if (states.every((state) => state === 'done')) return 'done';
  if (states.every((state) => state === 'aborted')) return 'aborted';
  if (states.some((state) => STOPPED.includes(state)))
    return states.every((state) => RESTING_STATES.includes(state)) ? 'stopped' : 'stopping';
  if (change.startedBy !== null) return 'running';
  return change.approvedBy === null ? 'planned' : 'approved';
}

interface RawChange {
  id: string;
  kind: ChangeKind;
  request: Record<string, unknown>;
  epoch: string;
  concurrency: number;
  created_by: string;
  created_at: Date;
  approved_by: string | null;
  started_by: string | null;
}

const CHANGE_COLUMNS =
  'id::text, kind, request, epoch::text, concurrency, created_by, created_at, approved_by, started_by';

/** All changes, newest first. */
export async function listChanges(db: Db): Promise<Change[]> {
  return read(db, 'true', []);
}

/** @returns null when the number is not that of a change */
export async function findChange(db: Db, id: bigint): Promise<Change | null> {
  return (await read(db, 'id = $1', [id.toString()]))[0] ?? null;
}

/** @throws UsageError when there is none */
export async function loadChange(db: Db, id: bigint): Promise<Change> {
  const change = await findChange(db, id);
  if (change !== null) return change;
  const { rows } = await (db as pg.Pool).query<{ change: string | null }>(
    'SELECT change_id::text AS change FROM foreshard.migration WHERE id = $1',
    [id.toString()],
  );
  const [migration] = rows;
  throw new UsageError(
    migration === undefined
      ? `there is no change ${id}`
      : `${id} is a migration${migration.change === null ? '' : ` of change ${migration.change}`}, not a change`,
    'See "foreshard migrate list".',
  );
}

async function read(db: Db, where: string, values: readonly string[]): Promise<Change[]> {
  const pool = db as pg.Pool;
  const changes = await pool.query<RawChange>(
    `SELECT ${CHANGE_COLUMNS} FROM foreshard.change WHERE ${where} ORDER BY foreshard.change.id DESC`,
    [...values],
  );
  if (changes.rows.length === 0) return [];
  const members = await pool.query<RawRow>(
    `SELECT ${COLUMNS} FROM foreshard.migration WHERE change_id = ANY ($1) ORDER BY position`,
    [changes.rows.map((c) => c.id)],
  );
  return changes.rows.map((c) => ({
    id: BigInt(c.id),
    kind: c.kind,
    request: c.request,
    epoch: BigInt(c.epoch),
    concurrency: c.concurrency,
    createdBy: c.created_by,
    createdAt: c.created_at,
    approvedBy: c.approved_by,
    startedBy: c.started_by,
    members: members.rows.filter((m) => m.change_id === c.id).map(fromRaw),
  }));
}
