import { createHash } from 'node:crypto';
import type pg from 'pg';
import { ConflictError, UsageError } from '../topology/errors.js';
import type { MigrationControls } from '../topology/migration-controls.js';
import type { PlanReport, SpecJson } from './plan-report.js';

export type PlanStatus = 'proposed' | 'approved' | 'rejected' | 'expired' | 'done';

export interface PlanSummary {
  readonly id: bigint;
  readonly createdAt: Date;
  readonly expiresAt: Date;
  readonly epoch: bigint;
  readonly hash: string;
  readonly status: PlanStatus;
  readonly verdict: string;
  readonly spec: SpecJson;
  readonly decidedBy: string | null;
  readonly decidedAt: Date | null;
  /** The migration that its approval created. */
  readonly migration: { readonly id: bigint; readonly state: string } | null;
}

export interface StoredPlan extends PlanSummary {
  readonly report: PlanReport;
}

/** A plan is decided within a day or made anew: forecasts age. */
const DEFAULT_TTL_SECONDS = 86_400;

/** Migrations in these states hold nothing any more. */
const AT_REST = ['planned', 'done', 'rolled_back', 'aborted', 'failed'];

/** JSON with the keys of every object sorted: equal data, equal text. */
function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (value !== null && typeof value === 'object')
    return `{${Object.entries(value)
      .filter(([, v]) => v !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([k, v]) => `${JSON.stringify(k)}:${canonicalJson(v)}`)
      .join(',')}}`;
  return JSON.stringify(value);
}

/** What an approval is bound to: exactly this change, at exactly this epoch. */
function planHash(epoch: string, spec: SpecJson): string {
  return createHash('sha256').update(canonicalJson({ epoch, spec })).digest('hex');
}

interface Row {
  id: string;
  created_at: Date;
  expires_at: Date;
  epoch: string;
  hash: string;
  status: PlanStatus;
  decided_by: string | null;
  decided_at: Date | null;
  verdict: string;
  spec: SpecJson;
  migration_id: string | null;
  migration_state: string | null;
  body?: PlanReport;
  overdue: boolean;
}

const COLUMNS = `p.id::text, p.created_at, p.expires_at, p.epoch::text, p.hash, p.decided_by, p.decided_at,
  CASE WHEN p.status = 'proposed' AND (p.expires_at <= now() OR p.epoch <> (SELECT epoch FROM foreshard.meta))
       THEN 'expired' ELSE p.status END AS status,
  p.expires_at <= now() AS overdue, p.body ->> 'verdict' AS verdict, p.body #> '{proposal,spec}' AS spec,
  (SELECT m.id::text FROM foreshard.migration m WHERE m.plan_id = p.id) AS migration_id,
  (SELECT m.state FROM foreshard.migration m WHERE m.plan_id = p.id) AS migration_state`;

function summary(row: Row): PlanSummary {
  return {
    id: BigInt(row.id),
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    epoch: BigInt(row.epoch),
    hash: row.hash,
    status: row.status,
    verdict: row.verdict,
    spec: row.spec,
    decidedBy: row.decided_by,
    decidedAt: row.decided_at,
    migration: row.migration_id === null ? null : { id: BigInt(row.migration_id), state: row.migration_state ?? '' },
  };
}

/** Plans in the catalog, and the decisions on them. */
export class PlanStore {
  readonly pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.pool = pool;
  }

  /**
   * Saves a report with a proposal. The same change at the same epoch keeps its id and gets the fresh figures; other plans
   * that nobody has decided on expire, so that at most one is open.
   */
  async savePlan(report: PlanReport, ttlSeconds = DEFAULT_TTL_SECONDS): Promise<StoredPlan> {
    if (report.proposal === null)
      throw new UsageError('there is nothing in this plan to approve', 'Only a report with a proposal is saved.');
    const hash = planHash(report.epoch, report.proposal.spec);
    const id = await this.#transaction(async (client) => {
      await client.query('LOCK TABLE foreshard.plan IN SHARE ROW EXCLUSIVE MODE');
      await client.query(`UPDATE foreshard.plan SET status = 'expired' WHERE status = 'proposed' AND hash <> $1`, [
        hash,
      ]);
      const values = [JSON.stringify(report), ttlSeconds, hash];
      const updated = await client.query<{ id: string }>(
        `UPDATE foreshard.plan SET body = $1, expires_at = now() + $2::int * interval '1 s', created_at = now()
          WHERE hash = $3 AND status = 'proposed' RETURNING id::text`,
        values,
      );
      if (updated.rows[0] !== undefined) return updated.rows[0].id;
      const inserted = await client.query<{ id: string }>(
        `INSERT INTO foreshard.plan (body, expires_at, hash, epoch, status)
         VALUES ($1, now() + $2::int * interval '1 s', $3, $4, 'proposed') RETURNING id::text`,
        [...values, report.epoch],
      );
      return (inserted.rows[0] as { id: string }).id;
    });
    return this.showPlan(BigInt(id));
  }

  /** Newest first. A plan that nobody decided on in time, or that another epoch has overtaken, is shown as expired. */
  async listPlans(limit = 50): Promise<PlanSummary[]> {
    const result = await this.pool.query<Row>(`SELECT ${COLUMNS} FROM foreshard.plan p ORDER BY p.id DESC LIMIT $1`, [
      limit,
    ]);
    return result.rows.map(summary);
  }

  /** The plan that waits for a decision, or null. */
  async openPlan(): Promise<StoredPlan | null> {
    const open = (await this.listPlans()).find((p) => p.status === 'proposed');
    return open === undefined ? null : this.showPlan(open.id);
  }

  /** @throws UsageError when there is none with this id */
  async showPlan(id: bigint): Promise<StoredPlan> {
    const result = await this.pool.query<Row>(`SELECT ${COLUMNS}, p.body FROM foreshard.plan p WHERE p.id = $1`, [
      id.toString(),
    ]);
    const row = result.rows[0];
    if (row === undefined) throw noPlan(id);
    return { ...summary(row), report: row.body as PlanReport };
  }

  /**
   * Approves a plan and, in the same transaction, enters its migration, which the migrator then picks up.
   * @param by who approves, for the audit trail
   * @param controls of the migration; what is left out is as by default
   * @returns the migration's id
   * @throws ConflictError when the plan was decided on, has expired or was overtaken, or another migration is under way
   */
  async approve(id: bigint, by: string, controls: Partial<MigrationControls> = {}): Promise<bigint> {
    if (by.trim() === '') throw new UsageError('an approval needs a name', 'Say who approves.');
    const migration = await this.#transaction(async (client) => {
      // Until the end no flip can change the epoch, and no second approval can pass the checks.
      const meta = await client.query<{ epoch: string }>('SELECT epoch::text FROM foreshard.meta FOR UPDATE');
      const row = await this.#lock(client, id);
      const { spec, body } = row;
      if (row.status === 'approved' || row.status === 'rejected' || row.status === 'done')
        throw new ConflictError(
          `plan ${id} is already ${row.status}${row.decided_by === null ? '' : ` (by ${row.decided_by})`}`,
          'Make a new plan with "foreshard plan".',
        );
      if (row.epoch !== meta.rows[0]?.epoch)
        throw new ConflictError(
          `plan ${id} was made at epoch ${row.epoch}, the topology is at epoch ${meta.rows[0]?.epoch}`,
          'The ranges have changed since. Make a new plan with "foreshard plan" and approve that.',
        );
      if (row.overdue || row.status === 'expired')
        throw new ConflictError(
          `plan ${id} has expired`,
          row.overdue
            ? 'Its forecast is out of date. Make a new plan with "foreshard plan" and approve that.'
            : 'A newer plan has taken its place. See "foreshard plan list".',
        );
      if (planHash(row.epoch, spec) !== row.hash)
        throw new ConflictError(
          `plan ${id} is not what it was when its hash was made`,
          'Someone has changed the row in foreshard.plan. Make a new plan with "foreshard plan".',
        );
      const [blocker] = body?.proposal?.blockers ?? [];
      if (blocker !== undefined)
        throw new ConflictError(`plan ${id} cannot be carried out: ${blocker}`, 'Remove the cause and plan again.');
      const busy = await client.query<{ id: string; state: string }>(
        'SELECT id::text, state FROM foreshard.migration WHERE state <> ALL ($1) LIMIT 1',
        [AT_REST],
      );
      const other = busy.rows[0];
      if (other !== undefined)
        throw new ConflictError(
          `migration ${other.id} is under way (${other.state})`,
          `Wait for it ("foreshard migrate watch ${other.id}"), then make a new plan: its epoch will be another.`,
        );
      await this.#decide(client, id, 'approved', by, row.hash);
      const made = await client.query<{ id: string }>(
        `WITH made AS (
           INSERT INTO foreshard.migration (plan_id, kind, spec, state, controls) VALUES ($1::bigint, $2, $3, 'approved', $5) RETURNING id
         ), event AS (
           INSERT INTO foreshard.migration_event (migration_id, state, detail)
           SELECT id, 'approved', jsonb_build_object('by', $4::text, 'plan', $1::bigint) FROM made
         ), told AS (
           SELECT pg_notify('foreshard_migration', id::text) FROM made
         )
         SELECT id::text FROM made, told`,
        [id.toString(), spec.kind, JSON.stringify(spec), by, JSON.stringify(controls)],
      );
      return (made.rows[0] as { id: string }).id;
    });
    return BigInt(migration);
  }

  /**
   * Rejects a plan that nobody has decided on.
   * @throws ConflictError when it was decided on
   */
  async reject(id: bigint, by: string): Promise<void> {
    if (by.trim() === '') throw new UsageError('a rejection needs a name', 'Say who rejects.');
    await this.#transaction(async (client) => {
      const row = await this.#lock(client, id);
      if (row.status !== 'proposed' && row.status !== 'expired')
        throw new ConflictError(`plan ${id} is already ${row.status}`, 'Nothing was changed.');
      await this.#decide(client, id, 'rejected', by, row.hash);
    });
  }

  async #lock(client: pg.PoolClient, id: bigint): Promise<Row> {
    const result = await client.query<Row>(
      `SELECT ${COLUMNS}, p.body FROM foreshard.plan p WHERE p.id = $1 FOR UPDATE OF p`,
      [id.toString()],
    );
    const row = result.rows[0];
    if (row === undefined) throw noPlan(id);
    return row;
  }

  async #decide(client: pg.PoolClient, id: bigint, status: PlanStatus, by: string, hash: string): Promise<void> {
    await client.query(
      `WITH decided AS (
         UPDATE foreshard.plan SET status = $2::text, decided_by = $3::text, decided_at = now() WHERE id = $1::bigint
       )
       INSERT INTO foreshard.audit (actor, action, object, detail)
       VALUES ($3::text, 'plan.' || $2::text, 'plan ' || $1::bigint, jsonb_build_object('hash', $4::text))`,
      [id.toString(), status, by, hash],
    );
  }

  async #transaction<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    const client = await this.pool.connect();
    try {
      await client.query('BEGIN');
      const result = await work(client);
      await client.query('COMMIT');
      client.release();
      return result;
    } catch (error) {
      // A refused decision leaves nothing behind; the connection is kept when it can still say so.
      await client.query('ROLLBACK').then(
        () => client.release(),
        (broken: Error) => client.release(broken),
      );
      throw error;
    }
  }
}

function noPlan(id: bigint): UsageError {
  return new UsageError(`there is no plan ${id}`, 'See "foreshard plan list".');
}
