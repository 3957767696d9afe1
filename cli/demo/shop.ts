import type { Pool } from 'pg';
import { orderValue } from './audit.js';

/** Orders with an id from here on were placed while the load ran. */
export const LIVE_ORDER_ID = 1_000_000_000;

/** Tenants of the shop are 1 … tenants. Each key of the trace stands for as many neighbouring tenants. */
export interface ShopSize {
  readonly tenants: number;
  /** Orders of each tenant, by tenant from 1; a multiple of 100. */
  readonly ordersOf: (tenant: number) => number;
}

/** Rows of orders and their items per INSERT: one template for all of them. An order has 1 to 4 items, so 100 orders have 250. */
const ORDERS_PER_STATEMENT = 100;

const COUNTRIES = [
  ['AT', 'Austria'],
  ['BR', 'Brazil'],
  ['CA', 'Canada'],
  ['CH', 'Switzerland'],
  ['DE', 'Germany'],
  ['DK', 'Denmark'],
  ['ES', 'Spain'],
  ['FR', 'France'],
  ['GB', 'United Kingdom'],
  ['IN', 'India'],
  ['IT', 'Italy'],
  ['JP', 'Japan'],
  ['KE', 'Kenya'],
  ['MX', 'Mexico'],
  ['NL', 'Netherlands'],
  ['NO', 'Norway'],
  ['PL', 'Poland'],
  ['PT', 'Portugal'],
  ['SE', 'Sweden'],
  ['US', 'United States'],
] as const;

/** What an application's own migrations would run: nothing in it knows of shards. */
const SCHEMA = [
  `CREATE TABLE countries (
     code text PRIMARY KEY,
     name text NOT NULL
   )`,
  `CREATE TABLE tenants (
     id            bigint PRIMARY KEY,
     name          text NOT NULL,
     country       text NOT NULL REFERENCES countries,
     orders_placed bigint NOT NULL DEFAULT 0
   )`,
  `CREATE TABLE orders (
     tenant_id   bigint NOT NULL REFERENCES tenants,
     id          bigint NOT NULL,
     placed_at   timestamptz NOT NULL,
     total_cents bigint NOT NULL,
     note        text NOT NULL DEFAULT '',
     revision    int NOT NULL DEFAULT 0,
     PRIMARY KEY (tenant_id, id)
   )`,
  `CREATE TABLE order_items (
     tenant_id   bigint NOT NULL,
     order_id    bigint NOT NULL,
     line        int NOT NULL,
     sku         text NOT NULL,
     quantity    int NOT NULL,
     price_cents bigint NOT NULL,
     PRIMARY KEY (tenant_id, order_id, line),
     FOREIGN KEY (tenant_id, order_id) REFERENCES orders (tenant_id, id)
   )`,
];

const INDEXES = [
  'CREATE INDEX orders_by_time ON orders (tenant_id, placed_at)',
  'CREATE INDEX order_items_by_sku ON order_items (tenant_id, sku)',
];

/** Creates the shop's tables, through whatever `pool` is connected to. */
export async function createShop(pool: Pool): Promise<void> {
  for (const statement of SCHEMA) await pool.query(statement);
}

/** Fills the shop and builds its secondary indexes. Uses every connection of the pool. Resolves with the number of rows. */
export async function fillShop(pool: Pool, size: ShopSize, onRows: (rows: number) => void): Promise<number> {
  let rows = 0;
  const count = (n: number): void => {
    rows += n;
    onRows(rows);
  };
  await pool.query(`INSERT INTO countries (code, name) VALUES ${places(COUNTRIES.length, 2)}`, COUNTRIES.flat());
  count(COUNTRIES.length);
  let next = 1;
  const worker = async (): Promise<void> => {
    const client = await pool.connect();
    try {
      for (let tenant = next++; tenant <= size.tenants; tenant = next++) {
        await client.query('INSERT INTO tenants (id, name, country) VALUES ($1, $2, $3)', [
          tenant,
          `Shop ${tenant}`,
          COUNTRIES[tenant % COUNTRIES.length]?.[0],
        ]);
        count(1);
        for (let first = 1; first <= size.ordersOf(tenant); first += ORDERS_PER_STATEMENT)
          count(await fillOrders(client, tenant, first));
      }
    } finally {
      client.release();
    }
  };
  await Promise.all(Array.from({ length: pool.options.max ?? 1 }, worker));
  for (const statement of INDEXES) await pool.query(statement);
  return rows;
}

async function fillOrders(client: Pick<Pool, 'query'>, tenant: number, first: number): Promise<number> {
  const orders: unknown[] = [];
  const items: unknown[] = [];
  for (let id = first; id < first + ORDERS_PER_STATEMENT; id++) {
    orders.push(tenant, id, loadedAt(tenant, id), loadedTotal(tenant, id), LOADED_NOTE);
    for (let line = 1; line <= 1 + (id % 4); line++)
      items.push(
        tenant,
        id,
        line,
        `sku-${(tenant * 31 + id * 7 + line) % 5000}`,
        line,
        Math.round(loadedTotal(tenant, id) / (line + 1)),
      );
  }
  const orderRows = orders.length / 5;
  const itemRows = items.length / 6;
  await client.query({
    name: 'fill_orders',
    text: `INSERT INTO orders (tenant_id, id, placed_at, total_cents, note) VALUES ${places(orderRows, 5)}`,
    values: orders,
  });
  await client.query({
    name: 'fill_items',
    text: `INSERT INTO order_items (tenant_id, order_id, line, sku, quantity, price_cents) VALUES ${places(itemRows, 6)}`,
    values: items,
  });
  return orderRows + itemRows;
}

const LOADED_NOTE = 'ordered by telephone, delivered to the door';

function loadedTotal(tenant: number, id: number): number {
  return 500 + ((tenant * 7919 + id * 104_729) % 50_000);
}

function loadedAt(tenant: number, id: number): string {
  return new Date(Date.UTC(2025, 0, 1) + ((tenant * 86_413 + id * 3_600_017) % 31_536_000_000)).toISOString();
}

/** The value, as the audit compares it, of an order as it was loaded. */
export function loadedOrderValue(tenant: number, id: number): string {
  return orderValue(loadedTotal(tenant, id), LOADED_NOTE, 0);
}

/** `($1, $2), ($3, $4)`: placeholders for so many rows and columns. */
export function places(rows: number, columns: number): string {
  const out: string[] = [];
  for (let r = 0; r < rows; r++)
    out.push(`(${Array.from({ length: columns }, (_, c) => `$${r * columns + c + 1}`).join(', ')})`);
  return out.join(', ');
}
