import type { Client } from 'pg';
import { type FoundRow, orderValue, type ShardContents, type TenantSum } from './audit.js';
import { LIVE_ORDER_ID } from './shop.js';

const TABLES = ['tenants', 'orders', 'order_items', 'countries'] as const;

/** Loaded rows by tenant, in the columns that the load leaves alone. */
const BASE = {
  tenants: `SELECT id AS tenant, count(*) AS rows, sum(hash_record_extended(ROW(id, name, country), 0)) AS checksum
              FROM tenants GROUP BY id`,
  orders: `SELECT tenant_id AS tenant, count(*) AS rows, sum(hash_record_extended(ROW(tenant_id, id, placed_at, total_cents), 0)) AS checksum
             FROM orders WHERE id < $1 GROUP BY tenant_id`,
  order_items: `SELECT tenant_id AS tenant, count(*) AS rows,
                       sum(hash_record_extended(ROW(tenant_id, order_id, line, sku, quantity, price_cents), 0)) AS checksum
                  FROM order_items WHERE order_id < $1 GROUP BY tenant_id`,
} as const;

/** Reads, from the server itself and not through the proxy, everything that the audit compares. One snapshot. */
export async function inspectShard(client: Client, shard: string): Promise<ShardContents> {
  await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
  try {
    const present = new Set<string>();
    for (const table of TABLES) {
      const { rows } = await client.query<{ oid: string | null }>('SELECT to_regclass($1) AS oid', [`public.${table}`]);
      if (rows[0]?.oid != null) present.add(table);
    }
    const live: FoundRow[] = [];
    const base: TenantSum[] = [];
    const counts: Record<string, number> = {};
    for (const table of present) counts[table] = await countRows(client, table);
    for (const [table, text] of Object.entries(BASE)) {
      if (!present.has(table)) continue;
      const { rows } = await client.query<{ tenant: string; rows: string; checksum: string }>(
        text,
        table === 'tenants' ? [] : [LIVE_ORDER_ID],
      );
      for (const r of rows) base.push({ table, tenant: Number(r.tenant), rows: Number(r.rows), checksum: r.checksum });
    }
    if (present.has('tenants')) {
      const { rows } = await client.query<{ id: string; orders_placed: string }>(
        'SELECT id, orders_placed FROM tenants',
      );
      for (const r of rows) live.push({ table: 'tenants', tenant: Number(r.id), id: r.id, value: r.orders_placed });
    }
    if (present.has('orders')) {
      const { rows } = await client.query<{
        tenant_id: string;
        id: string;
        total_cents: string;
        note: string;
        revision: number;
      }>('SELECT tenant_id, id, total_cents, note, revision FROM orders WHERE id >= $1 OR revision > 0', [
        LIVE_ORDER_ID,
      ]);
      for (const r of rows)
        live.push({
          table: 'orders',
          tenant: Number(r.tenant_id),
          id: r.id,
          value: orderValue(r.total_cents, r.note, r.revision),
        });
    }
    if (present.has('order_items')) {
      const { rows } = await client.query<{
        tenant_id: string;
        order_id: string;
        line: number;
        sku: string;
        quantity: number;
      }>('SELECT tenant_id, order_id, line, sku, quantity FROM order_items WHERE order_id >= $1', [LIVE_ORDER_ID]);
      for (const r of rows)
        live.push({
          table: 'order_items',
          tenant: Number(r.tenant_id),
          id: `${r.order_id}/${r.line}`,
          value: itemValue(r.sku, r.quantity),
        });
    }
    return { shard, live, base, reference: present.has('countries') ? await referenceSum(client) : null, counts };
  } finally {
    await client.query('COMMIT');
  }
}

/** The value of an item as it is compared. */
export function itemValue(sku: string, quantity: number): string {
  return `${sku}|${quantity}`;
}

async function countRows(client: Client, table: string): Promise<number> {
  const { rows } = await client.query<{ count: string }>(
    `SELECT count(*) FROM public.${client.escapeIdentifier(table)}`,
  );
  return Number(rows[0]?.count);
}

async function referenceSum(client: Client): Promise<{ rows: number; checksum: string }> {
  const { rows } = await client.query<{ rows: string; checksum: string | null }>(
    'SELECT count(*) AS rows, sum(hash_record_extended(ROW(code, name), 0)) AS checksum FROM countries',
  );
  return { rows: Number(rows[0]?.rows), checksum: rows[0]?.checksum ?? '0' };
}
