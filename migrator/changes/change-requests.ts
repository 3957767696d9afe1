import type pg from 'pg';
import { audit, type CatalogClient, inCatalogTransaction } from '../../topology/catalog/change.js';
import { ConflictError, ForeshardError } from '../../topology/errors.js';
import type { MigrationSpec } from '../../topology/migration.js';
import type { MigrationControls } from '../../topology/migration-controls.js';
import type { Epoch, Topology } from '../../topology/topology.js';
import { PAST_FLIP, RESTING_STATES } from '../migration-row.js';
import { storedIn } from '../move.js';
import { type Change, type ChangeKind, changeState, loadChange } from './change-row.js';
import { topologyAfter } from './topology-after.js';

export interface NewChange {
  readonly kind: ChangeKind;
  /** As it was asked for; for people. */
  readonly request: Readonly<Record<string, unknown>>;
  /** In the order in which they begin. */
  readonly members: readonly MigrationSpec[];
  /** Members at work at once. */
  readonly concurrency: number;
}

/** Enters a change that was planned on `topology`. Nothing begins before it is approved. @returns its id */
export function createChange(pool: pg.Pool, topology: Topology, change: NewChange, actor: string): Promise<bigint> {
  return inCatalogTransaction(pool, async (client) => {
    const { rows } = await client.query<{ id: string }>(
      `INSERT INTO foreshard.change (kind, request, epoch, concurrency, created_by) VALUES ($1, $2, $3, $4, $5) RETURNING id::text`,
      [change.kind, JSON.stringify(change.request), topology.epoch.toString(), change.concurrency, actor],
    );
    const id = (rows[0] as { id: string }).id;
    let then = topology;
    for (const [i, spec] of change.members.entries()) {
      const stored = storedIn(then, spec);
      await client.query(
        `WITH made AS (
           INSERT INTO foreshard.migration (kind, spec, state, change_id, position) VALUES ($1, $2, 'planned', $3, $4) RETURNING id
         )
         INSERT INTO foreshard.migration_event (migration_id, state, detail)
         SELECT id, 'planned', jsonb_build_object('by', $5::text) FROM made`,
        [spec.kind, JSON.stringify(stored), id, i + 1, actor],
      );
      then = topologyAfter(then, spec);
    }
    await audit(client, {
      actor,
      action: 'change.plan',
      object: `change ${id}`,
      detail: { kind: change.kind, ...change.request },
    });
    return BigInt(id);
  });
}

/**
 * Approves a change as it was planned, and starts it unless `later`.
 * @throws ConflictError when it was decided on, or ranges have changed since it was planned
 */
export function approveChange(
  pool: pg.Pool,
  id: bigint,
  options: { actor: string; later?: boolean; controls?: Partial<MigrationControls> },
): Promise<Change> {
  const { actor, later = false, controls } = options;
  return inCatalogTransaction(pool, async (client) => {
    const change = await lockAtItsEpoch(client, id);
    const state = changeState(change);
    if (state !== 'planned')
      throw new ConflictError(
        `change ${id} is already ${state}${change.approvedBy === null ? '' : ` (approved by ${change.approvedBy})`}`,
        state === 'approved' ? `Start it with "foreshard migrate start ${id}".` : `See "foreshard migrate show ${id}".`,
      );
    await client.query('UPDATE foreshard.change SET approved_by = $2, approved_at = now() WHERE id = $1', [
      id.toString(),
      actor,
    ]);
    await client.query('UPDATE foreshard.migration SET controls = controls || $2::jsonb WHERE change_id = $1', [
      id.toString(),
      JSON.stringify(controls ?? {}),
    ]);
    await audit(client, { actor, action: 'change.approve', object: `change ${id}`, detail: { later, ...controls } });
    if (!later) await start(client, id, actor);
    return loadChange(client, id);
  });
}

/**
 * Starts a change that was approved to be started later.
 * @throws ConflictError when it is not such a one, or ranges have changed since it was planned
 */
export function startChange(pool: pg.Pool, id: bigint, actor: string): Promise<Change> {
  return inCatalogTransaction(pool, async (client) => {
    const state = changeState(await lockAtItsEpoch(client, id));
    if (state !== 'approved')
      throw new ConflictError(
        `change ${id} is ${state}`,
        state === 'planned'
          ? `Approve it first: "foreshard migrate approve ${id}".`
          : `See "foreshard migrate show ${id}".`,
      );
    await audit(client, { actor, action: 'change.start', object: `change ${id}` });
    await start(client, id, actor);
    return loadChange(client, id);
  });
}

/** Until the end of the transaction nobody else decides on the change, and no range changes hands. */
async function lockAtItsEpoch(client: CatalogClient, id: bigint): Promise<Change> {
  await client.query('SELECT FROM foreshard.change WHERE id = $1 FOR UPDATE', [id.toString()]);
  const change = await loadChange(client, id);
  const { rows } = await client.query<{ epoch: string }>('SELECT epoch::text FROM foreshard.meta FOR SHARE');
  const epoch = BigInt(rows[0]?.epoch ?? 0) as Epoch;
  if (epoch !== change.epoch && ['planned', 'approved'].includes(changeState(change)))
    throw new ConflictError(
      `change ${id} was planned at epoch ${change.epoch}, the topology is at epoch ${epoch}`,
      'The ranges have changed since. Abort it, plan it again, and approve that.',
    );
  return change;
}

async function start(client: CatalogClient, id: bigint, actor: string): Promise<void> {
  await client.query('UPDATE foreshard.change SET started_by = $2, started_at = now() WHERE id = $1', [
    id.toString(),
    actor,
  ]);
  await client.query(
    `WITH started AS (
       UPDATE foreshard.migration SET state = 'approved', generation = generation + 1, updated_at = clock_timestamp()
        WHERE change_id = $1 AND state = 'planned' RETURNING id, position
     ), event AS (
       INSERT INTO foreshard.migration_event (migration_id, state, detail)
       SELECT id, 'approved', jsonb_build_object('by', $2::text, 'change', $1::bigint) FROM started ORDER BY position
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM started`,
    [id.toString(), actor],
  );
}

/**
 * Has no member begin any more, and asks those at work to undo what they have done, where that is still possible.
 * @returns members that are past that, or at rest: they stay as they are
 * @throws ForeshardError 55000 when there is nothing to abort
 */
export function abortChange(pool: pg.Pool, id: bigint, actor: string): Promise<{ kept: readonly bigint[] }> {
  return inCatalogTransaction(pool, async (client) => {
    await client.query('SELECT FROM foreshard.change WHERE id = $1 FOR UPDATE', [id.toString()]);
    const change = await loadChange(client, id);
    const planned = await client.query<{ id: string }>(
      `WITH dropped AS (
         UPDATE foreshard.migration SET state = 'aborted', generation = generation + 1, updated_at = clock_timestamp()
          WHERE change_id = $1 AND state = 'planned' RETURNING id
       )
       INSERT INTO foreshard.migration_event (migration_id, state, detail)
       SELECT id, 'aborted', jsonb_build_object('by', $2::text) FROM dropped RETURNING migration_id::text AS id`,
      [id.toString(), actor],
    );
    const asked = await client.query<{ id: string }>(
      `UPDATE foreshard.migration SET abort_requested = true, updated_at = clock_timestamp()
        WHERE change_id = $1 AND state <> ALL ($2::text[]) AND NOT facts ? 'flipEpoch' RETURNING id::text`,
      [id.toString(), [...PAST_FLIP, ...RESTING_STATES]],
    );
    const reached = new Set([...planned.rows, ...asked.rows].map((row) => row.id));
    if (reached.size === 0)
      throw new ForeshardError('55000', `change ${id} is ${changeState(change)}`, {
        hint: 'None of its migrations can be aborted any more.',
      });
    await audit(client, { actor, action: 'change.abort', object: `change ${id}` });
    await client.query(`SELECT pg_notify('foreshard_migration', $1)`, [id.toString()]);
    return { kept: change.members.map((m) => m.id).filter((member) => !reached.has(member.toString())) };
  });
}
