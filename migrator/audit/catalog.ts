import { setTimeout as delay } from 'node:timers/promises';
import type { Catalog } from '../../topology/catalog/catalog.js';
import type { AuditFinding } from './finding.js';
import type { AtWork } from './migrations.js';

/** How long a proxy has to follow an epoch that has only just begun. */
const PATIENCE_MS = 2000;

/** Holds and clean-up records of migrations that are over, and proxies that serve an older epoch. */
export async function auditCatalog(catalog: Catalog, atWork: AtWork): Promise<AuditFinding[]> {
  const { pool } = catalog;
  const findings: AuditFinding[] = [];
  const finding = (kind: string, object: string, text: string, remedy: string, repair: AuditFinding['repair']) =>
    findings.push({ kind, shard: '', object, text, remedy, repair });
  const holds = await pool.query<{ id: string; migration: string }>(
    'SELECT id::text, migration_id::text AS migration FROM foreshard.hold',
  );
  for (const { id, migration } of holds.rows)
    if (!atWork.has(migration))
      finding(
        'hold',
        id,
        `hold ${id} is left of migration ${migration} (${atWork.state(migration)})`,
        'It ends at its deadline by itself.',
        async () => {
          await pool.query('DELETE FROM foreshard.hold WHERE id = $1', [id]);
        },
      );
  const records = await pool.query<{ id: string; migration: string; kind: string; shard: string; object: unknown }>(
    `SELECT id::text, migration_id::text AS migration, kind, shard, object FROM foreshard.migration_cleanup WHERE done_at IS NULL ORDER BY id DESC`,
  );
  for (const { id, migration, kind, shard, object } of records.rows)
    if (!atWork.has(migration))
      finding(
        'clean-up record',
        id,
        `migration ${migration} (${atWork.state(migration)}) has not ticked off: ${kind}${shard === '' ? '' : ` on shard "${shard}"`} ${JSON.stringify(object)}`,
        `Look whether it is still there; "foreshard migrate abort ${migration}" undoes what a failed migration has left.`,
        null,
      );
  const replicas = await pool.query<{ migration: string; shard: string }>(
    'SELECT migration_id::text AS migration, shard FROM foreshard.range_replica WHERE since IS NOT NULL',
  );
  for (const { migration, shard } of replicas.rows)
    if (!atWork.has(migration))
      finding(
        'replica',
        migration,
        `reads of an interval may go to shard "${shard}", where migration ${migration} (${atWork.state(migration)}) keeps it up to date no more`,
        `UPDATE foreshard.meta SET epoch = epoch + 1; UPDATE foreshard.range_replica SET since = NULL WHERE migration_id = ${migration} in one transaction of the catalog`,
        null,
      );
  for (const proxy of await behind(catalog))
    finding(
      'proxy',
      proxy.name,
      `proxy "${proxy.name}" at ${proxy.listen} serves epoch ${proxy.epoch}, the catalog has ${proxy.current}`,
      'A transaction that began before may hold it back; see SHOW CLIENTS there.',
      null,
    );
  return findings;
}

interface Behind {
  readonly name: string;
  readonly listen: string;
  readonly epoch: string;
  readonly current: string;
}

async function behind(catalog: Catalog): Promise<Behind[]> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const { rows } = await catalog.pool.query<Behind>(
      `SELECT p.name, p.listen, p.epoch_acked::text AS epoch, m.epoch::text AS current FROM foreshard.proxy p, foreshard.meta m
        WHERE p.lease_until > clock_timestamp() AND p.epoch_acked < m.epoch`,
    );
    if (rows.length === 0 || performance.now() >= deadline) return rows;
    await delay(100);
  }
}
