import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises';
import pg from 'pg';
import { withClient } from '../support/client.js';
import type { MiniProxy } from './mini-proxy.js';
import type { Setting } from './setting.js';

/** What writers were told has been committed: how often each row of theirs was updated; absent when it was deleted again. */
export type Journal = Map<string, { tenant: number; id: number; version: number }>;

/** Live load with a memory: every acknowledged change is kept, to be found exactly once afterwards. */
export class Writers {
  readonly #pauseMs: number;
  readonly journal: Journal = new Map();
  readonly deleted = new Map<string, { tenant: number; id: number }>();
  acknowledged = 0;
  /** Writes of the stale writer that the guard refused. */
  refused = 0;
  readonly errors: unknown[] = [];
  readonly #stop = new AbortController();
  readonly #running: Promise<void>[] = [];

  /** @param pauseMs of each writer between two of its writes; 0: they take all the time of the processors that they can get */
  constructor(pauseMs: number) {
    this.#pauseMs = pauseMs;
  }

  /** `count` writers through the proxy, over tenants 1..tenants. */
  start(proxy: MiniProxy, count: number, tenants: number): void {
    for (let w = 0; w < count; w++) this.#running.push(this.#loop(w, (n) => this.#write(proxy, w, n, tenants)));
  }

  /** A writer that knows nothing of maps and holds and always writes to one server. */
  startStale(url: string, tenants: number): void {
    const client = new pg.Client({ connectionString: url });
    const begin = client.connect();
    this.#running.push(
      this.#loop(900, async (n) => {
        await begin;
        const tenant = 1 + ((n * 7) % tenants);
        const id = 900_000_000 + n;
        try {
          await client.query('INSERT INTO orders (tenant_id, id, body) VALUES ($1, $2, $3)', [tenant, id, 'stale']);
          this.#note(tenant, id, 0);
        } catch (error) {
          const { code } = error as { code?: string };
          if (code === 'SH001') this.refused++;
          // When guards and rows are gone, the tenant is missing there.
          else if (code !== '23503') throw error;
        }
      }).finally(() => client.end()),
    );
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#running);
  }

  async #loop(_w: number, write: (n: number) => Promise<void>): Promise<void> {
    for (let n = 0; !this.#stop.signal.aborted; n++) {
      try {
        await write(n);
      } catch (error) {
        this.errors.push(error);
        return;
      }
      await (this.#pauseMs === 0 ? nextTurn() : delay(this.#pauseMs));
    }
  }

  async #write(proxy: MiniProxy, w: number, n: number, tenants: number): Promise<void> {
    const tenant = 1 + ((n * 13 + w) % tenants);
    const id = 1_000_000 * (w + 1) + n;
    await proxy.run(
      [BigInt(tenant)],
      [
        { sql: 'INSERT INTO orders (tenant_id, id, body) VALUES ($1, $2, $3)', values: [tenant, id, `w${w}`] },
        { sql: 'INSERT INTO "Odd Items" VALUES ($1, $2, 1)', values: [tenant, id] },
      ],
    );
    this.#note(tenant, id, 0);
    // An older row of this writer changes, or goes.
    const older = this.journal.get(`${1 + (((n - 3) * 13 + w) % tenants)}/${1_000_000 * (w + 1) + n - 3}`);
    if (older === undefined) return;
    const position = [BigInt(older.tenant)];
    if (n % 5 === 0) {
      await proxy.run(position, [
        { sql: 'DELETE FROM orders WHERE tenant_id = $1 AND id = $2', values: [older.tenant, older.id] },
      ]);
      this.journal.delete(`${older.tenant}/${older.id}`);
      this.deleted.set(`${older.tenant}/${older.id}`, { tenant: older.tenant, id: older.id });
    } else {
      await proxy.run(position, [
        {
          sql: 'UPDATE orders SET version = version + 1 WHERE tenant_id = $1 AND id = $2',
          values: [older.tenant, older.id],
        },
      ]);
      older.version++;
    }
    this.acknowledged++;
  }

  #note(tenant: number, id: number, version: number): void {
    this.acknowledged++;
    this.journal.set(`${tenant}/${id}`, { tenant, id, version });
  }
}

/**
 * Compares the shards with the journal: every acknowledged row is on the shard that owns it, exactly once, as last acknowledged, and
 * nothing of an interval is on a shard that does not own it.
 * @param onTwo whether a tenant belongs to the second shard
 * @returns what is wrong; empty when clean
 */
export async function audit(
  s: Setting,
  writers: Writers | null,
  onTwo: (tenant: number) => boolean,
): Promise<string[]> {
  const wrong: string[] = [];
  const seen = new Map<string, { shard: string; version: number }>();
  const children = new Map<string, number>();
  for (const [shard, url] of [
    ['one', s.urlOne],
    ['two', s.urlTwo],
  ] as const)
    await withClient(url, async (c) => {
      const there = await c.query<{ there: boolean }>("SELECT to_regclass('orders') IS NOT NULL AS there");
      if (there.rows[0]?.there !== true) return;
      const rows = await c.query<{ tenant_id: number; id: string; version: number; twice: number }>(
        'SELECT tenant_id, id, version, twice FROM orders',
      );
      for (const r of rows.rows) {
        const key = `${r.tenant_id}/${r.id}`;
        if (seen.has(key)) wrong.push(`order ${key} is on both shards`);
        if (r.twice !== r.version * 2) wrong.push(`order ${key}: generated column is wrong`);
        seen.set(key, { shard, version: r.version });
        if (onTwo(r.tenant_id) !== (shard === 'two')) wrong.push(`order ${key} is on shard ${shard}`);
      }
      const items = await c.query<{ t: number; order_id: string }>(
        'SELECT "Tenant Id" AS t, order_id FROM "Odd Items"',
      );
      for (const i of items.rows) {
        children.set(`${i.t}/${i.order_id}`, (children.get(`${i.t}/${i.order_id}`) ?? 0) + 1);
        if (onTwo(i.t) !== (shard === 'two')) wrong.push(`item of ${i.t}/${i.order_id} is on shard ${shard}`);
      }
      const tenants = await c.query<{ id: number }>('SELECT id FROM tenants');
      for (const t of tenants.rows)
        if (onTwo(t.id) !== (shard === 'two')) wrong.push(`tenant ${t.id} is on shard ${shard}`);
    });
  for (const [key, n] of children) if (n !== 1 || !seen.has(key)) wrong.push(`order ${key} has ${n} items`);
  for (const [key, expected] of writers?.journal ?? []) {
    const row = seen.get(key);
    if (row === undefined) wrong.push(`acknowledged order ${key} is lost`);
    else if (row.version !== expected.version)
      wrong.push(`order ${key} has version ${row.version}, acknowledged ${expected.version}`);
  }
  for (const key of writers?.deleted.keys() ?? []) if (seen.has(key)) wrong.push(`deleted order ${key} is back`);
  return wrong.slice(0, 20);
}

/** Rows of orders on a shard. */
export async function countOrders(url: string): Promise<number> {
  return withClient(url, async (c) =>
    Number((await c.query<{ n: string }>('SELECT count(*) AS n FROM orders')).rows[0]?.n),
  );
}
