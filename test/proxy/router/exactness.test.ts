import { loadModule } from 'libpg-query';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadMetadata } from '../../../proxy/router/metadata.js';
import { Narrowable } from '../../../proxy/router/narrow.js';
import type { Route } from '../../../proxy/router/route.js';
import { Router } from '../../../proxy/router/router.js';
import type { ShardName } from '../../../topology/topology.js';
import { startTestCluster } from '../../support/cluster.js';
import { SESSION, spreadTopology } from './setting.js';
import { SqlGenerator } from './sql-generator.js';

/**
 * One server with four databases: `whole` has all rows, `a`, `b` and `c` those that the topology gives them. Whatever the
 * router sends to one shard, or to several, must answer as `whole` does.
 */
const TABLES = `
  CREATE TABLE tenants (id int8 PRIMARY KEY, name text, country text);
  CREATE TABLE orders (tenant_id int8 NOT NULL, id int8 NOT NULL, note text, total int, country text, PRIMARY KEY (tenant_id, id));
  CREATE TABLE items (tenant_id int8 NOT NULL, order_id int8 NOT NULL, sku text, qty int);
  CREATE TABLE currencies (code text PRIMARY KEY, name text);
  INSERT INTO currencies VALUES ('x', 'ex'), ('y', 'why'), ('z', NULL);`;
const KEYS = [5, 6, 150, 151, 250, 99, 100, 199, 200];
const clients = new Map<string, pg.Client>();
const topology = spreadTopology();
let router: Router;

beforeAll(async () => {
  await loadModule();
  const cluster = await startTestCluster();
  const admin = new pg.Client(cluster.url());
  await admin.connect();
  for (const database of ['whole', 'a', 'b', 'c']) {
    await admin.query(`CREATE DATABASE ${database}`);
    const client = new pg.Client(cluster.url(database));
    await client.connect();
    await client.query(TABLES);
    clients.set(database, client);
  }
  await admin.end();
  const rows = new SqlGenerator(7, []);
  for (const key of KEYS) {
    const shard = key < 100 ? 'a' : key < 200 ? 'b' : 'c';
    const inserts: string[] = [];
    if (key !== 6)
      inserts.push(`INSERT INTO tenants VALUES (${key}, 'tenant ${key}', '${rows.pick(['x', 'y', 'q'])}')`);
    for (let id = rows.int(2); id < 4; id++)
      inserts.push(
        `INSERT INTO orders VALUES (${key}, ${id}, '${rows.pick(['p', 'q'])}', ${rows.int(5)}, '${rows.pick(['x', 'y', 'q'])}')`,
      );
    for (let n = rows.int(4); n > 0; n--)
      inserts.push(
        `INSERT INTO items VALUES (${key}, ${rows.int(5)}, '${rows.pick(['p', 'q', 's'])}', ${rows.int(5)})`,
      );
    for (const sql of inserts) for (const database of ['whole', shard]) await run(database, sql);
  }
  const pool = new pg.Pool({ connectionString: cluster.url('a') });
  pool.on('error', () => undefined);
  const metadata = await loadMetadata(pool);
  await pool.end();
  router = new Router({ topology: () => topology, metadata: () => metadata });
});

afterAll(async () => {
  for (const client of clients.values()) await client.end();
});

async function run(database: string, sql: string): Promise<string[]> {
  const client = clients.get(database) as pg.Client;
  const result = await client.query({ text: sql, rowMode: 'array' });
  return result.rows.map((row) => JSON.stringify(row)).sort();
}

function shardsOf(route: Route): readonly string[] {
  return route.kind === 'refused' || route.kind === 'halves'
    ? []
    : route.kind === 'shard'
      ? [route.shard]
      : route.kind === 'any'
        ? route.shards.slice(0, 1)
        : route.shards;
}

function routeOf(sql: string): Route {
  const analyzed = router.analyze(Buffer.from(sql), SESSION);
  expect(analyzed.syntaxError, sql).toBe(false);
  return router.route(analyzed, 0, null, topology);
}

/** What the shards answer together. @param everywhere each of them has the rows of all others as well, as while ranges move */
async function answers(sql: string, route: Route, everywhere: boolean): Promise<string[]> {
  const text = route.kind === 'fanout' ? new Narrowable(router.analyze(Buffer.from(sql), SESSION)) : null;
  const rows: string[] = [];
  for (const shard of shardsOf(route)) {
    const own = route.kind === 'fanout' ? (route.own.get(shard as ShardName) as string) : '';
    rows.push(...(await run(everywhere ? 'whole' : shard, text === null ? sql : text.to(own).toString())));
  }
  return rows.sort();
}

/** Random queries: join trees of every type over three sharded tables and a reference table, with conditions of every kind. */
class Queries extends SqlGenerator {
  readonly #keys = { tenants: 'id', orders: 'tenant_id', items: 'tenant_id' } as const;
  #aliases: { alias: string; table: keyof Queries['tables'] }[] = [];
  #next = 0;
  readonly tables = {
    tenants: ['name', 'country'],
    orders: ['id', 'note', 'total', 'country'],
    items: ['order_id', 'sku', 'qty'],
    currencies: ['code', 'name'],
  } as const;

  select(): string {
    this.#aliases = [];
    this.#next = 0;
    const from = this.#tree(1 + this.int(3));
    const mine = [...this.#aliases];
    const where = this.#conditions(mine, 1 + this.int(3));
    const columns = mine.map((a) => `${a.alias}.*`).join(', ');
    const body = `FROM ${from}${where === '' ? '' : ` WHERE ${where}`}`;
    switch (this.int(6)) {
      case 0:
        return `SELECT count(*), min(${this.#column(mine)}::text) ${body}`;
      case 1:
        return `SELECT DISTINCT ${this.#column(mine)} ${body}`;
      case 2: {
        const inner = mine.find((a) => a.table !== 'currencies');
        if (!inner) return `SELECT ${columns} ${body}`;
        const key = this.#key(inner);
        const outer = `s.${key.split('.')[1] as string}`;
        return `SELECT s.* FROM (SELECT ${inner.alias}.* ${body}) s ${this.pick(['', 'LEFT '])}JOIN orders z ON z.tenant_id = ${outer}${this.pick(['', ` WHERE ${outer} = ${this.pick(KEYS)}`, ` AND z.tenant_id = ${this.pick(KEYS)}`])}`;
      }
      default:
        return `SELECT ${columns} ${body}`;
    }
  }

  #tree(size: number): string {
    if (size === 1) {
      const table = this.pick(['tenants', 'orders', 'items', 'orders', 'items', 'currencies'] as const);
      const alias = `t${this.#next++}`;
      this.#aliases.push({ alias, table });
      return `${table} ${alias}`;
    }
    const start = this.#aliases.length;
    const cut = 1 + this.int(size - 1);
    const left = this.#tree(cut);
    const right = this.#tree(size - cut);
    const inside = this.#aliases.slice(start);
    const type = this.pick(['JOIN', 'JOIN', 'LEFT JOIN', 'LEFT JOIN', 'RIGHT JOIN', 'FULL JOIN']);
    // FULL JOIN takes only conditions that can be merged or hashed.
    const on = type === 'FULL JOIN' ? this.#equality(inside) : this.#conditions(inside, 1 + this.int(2)) || 'true';
    return `(${left} ${type} ${right} ON ${on})`;
  }

  #conditions(inside: readonly { alias: string; table: keyof Queries['tables'] }[], count: number): string {
    return Array.from({ length: count }, () => this.#condition(inside)).join(' AND ');
  }

  #equality(inside: readonly { alias: string; table: keyof Queries['tables'] }[]): string {
    const sharded = inside.filter((a) => a.table !== 'currencies');
    const [x, y] = [this.pick(sharded.length ? sharded : inside), this.pick(sharded.length ? sharded : inside)];
    return sharded.length ? `${this.#key(x)} = ${this.#key(y)}` : 'false';
  }

  #condition(inside: readonly { alias: string; table: keyof Queries['tables'] }[]): string {
    const sharded = inside.filter((a) => a.table !== 'currencies');
    if (sharded.length === 0) return 'true';
    const a = this.pick(sharded);
    const b = this.pick(sharded);
    const k = this.pick(KEYS);
    switch (this.int(12)) {
      case 0:
      case 1:
      case 2:
        return `${this.#key(a)} = ${k}`;
      case 3:
      case 4:
      case 5:
        return `${this.#key(a)} = ${this.#key(b)}`;
      case 6:
        return `${this.#key(a)} IN (${k}, ${this.pick(KEYS)})`;
      case 7:
        return `(${this.#key(a)} = ${k} OR ${this.#column(inside)} IS NULL)`;
      case 8:
        return `EXISTS (SELECT 1 FROM items e WHERE e.tenant_id = ${this.pick([this.#key(a), String(k)])}${this.pick(['', ' AND e.qty > 1'])})`;
      case 9:
        return `${this.#key(a)} ${this.pick(['IN', 'NOT IN', 'IN'])} (SELECT e.tenant_id FROM orders e${this.pick([` WHERE e.tenant_id = ${k}`, ` WHERE e.tenant_id = ${this.#key(b)}`, ''])})`;
      case 10:
        return `${this.#column(inside)} IS NOT NULL`;
      default:
        return `NOT (${this.#key(a)} = ${k})`;
    }
  }

  #key(a: { alias: string; table: keyof Queries['tables'] }): string {
    return a.table === 'currencies' ? `${a.alias}.code` : `${a.alias}.${this.#keys[a.table]}`;
  }

  #column(inside: readonly { alias: string; table: keyof Queries['tables'] }[]): string {
    const a = this.pick(inside);
    return `${a.alias}.${this.pick(this.tables[a.table])}`;
  }

  write(): string {
    const k = this.pick(KEYS);
    const j = this.int(4) === 0 ? this.pick(KEYS) : k;
    const id = this.int(6);
    return this.pick([
      `INSERT INTO orders (tenant_id, id, note, total) VALUES (${k}, ${id}, 'w', 1), (${j}, ${id + 1}, 'w', 2) ON CONFLICT (tenant_id, id) DO UPDATE SET total = orders.total + EXCLUDED.total RETURNING *`,
      `INSERT INTO items (order_id, tenant_id, sku) SELECT id, tenant_id, note FROM orders WHERE tenant_id = ${k} AND id = ${id} RETURNING *`,
      `INSERT INTO items SELECT ${k}, id, name FROM orders o LEFT JOIN currencies c ON c.code = o.country WHERE o.tenant_id = ${j} AND id = ${id} RETURNING *`,
      `UPDATE orders SET total = total + 1 WHERE tenant_id = ${k} RETURNING *`,
      `UPDATE orders SET tenant_id = ${j}, note = 'k' WHERE tenant_id = ${k} AND id = 99 RETURNING *`,
      `UPDATE orders o SET note = i.sku FROM (SELECT tenant_id, order_id, max(sku) AS sku FROM items GROUP BY 1, 2) i WHERE i.tenant_id = o.tenant_id AND o.tenant_id = ${k}`,
      `UPDATE orders o SET note = (SELECT max(sku) FROM items i WHERE i.tenant_id = o.tenant_id) WHERE o.tenant_id IN (${k}, ${j}) RETURNING o.*`,
      `DELETE FROM items WHERE tenant_id = ${k} AND qty = ${id} RETURNING *`,
      `DELETE FROM items i USING orders o WHERE o.tenant_id = i.tenant_id AND o.id = i.order_id AND o.tenant_id = ${k} AND o.total = ${id} RETURNING i.*`,
      `WITH gone AS (DELETE FROM items WHERE tenant_id = ${k} AND qty = ${id} RETURNING order_id) INSERT INTO items (tenant_id, order_id, qty) SELECT ${j}, order_id, 0 FROM gone RETURNING *`,
      `MERGE INTO items i USING (SELECT tenant_id, id FROM orders WHERE tenant_id = ${k} AND id = ${id}) o ON i.tenant_id = o.tenant_id AND i.order_id = o.id WHEN MATCHED THEN UPDATE SET qty = 7 WHEN NOT MATCHED THEN INSERT (tenant_id, order_id, qty) VALUES (o.tenant_id, o.id, 8)`,
    ]);
  }
}

describe('on real data', () => {
  it('answers 4,000 random queries as one database with all rows does', async () => {
    const queries = new Queries(20261120, []);
    const counts = { shard: 0, any: 0, fanout: 0, others: 0 };
    for (let i = 0; i < 4_000; i++) {
      const sql = queries.select();
      const route = routeOf(sql);
      if (route.kind === 'refused' || route.kind === 'gather' || route.kind === 'halves') {
        counts.others++;
        continue;
      }
      const expected = await run('whole', sql).catch((error: unknown) => {
        // "FULL JOIN is only supported with merge-joinable or hash-joinable join conditions"
        if (error instanceof pg.DatabaseError && error.code === '0A000') return null;
        throw error;
      });
      if (expected === null) continue;
      counts[route.kind]++;
      for (const everywhere of [false, true])
        expect(
          `${sql} → ${route.kind} ${shardsOf(route).join(' ')}\n${(await answers(sql, route, everywhere)).join('\n')}`,
        ).toBe(`${sql} → ${route.kind} ${shardsOf(route).join(' ')}\n${expected.join('\n')}`);
    }
    expect(counts.shard).toBeGreaterThan(600);
    expect(counts.fanout).toBeGreaterThan(100);
    expect(counts.others).toBeGreaterThan(600);
  });

  it('changes rows as one database with all rows does', async () => {
    const queries = new Queries(4711, []);
    let done = 0;
    for (let i = 0; i < 1_500; i++) {
      const sql = queries.write();
      const route = routeOf(sql);
      if (route.kind === 'refused') continue;
      expect(route.kind, sql).toBe('shard');
      const [shard] = shardsOf(route);
      expect(`${sql}\n${(await run(shard as string, sql)).join('\n')}`).toBe(
        `${sql}\n${(await run('whole', sql)).join('\n')}`,
      );
      done++;
    }
    expect(done).toBeGreaterThan(700);
    for (const table of ['tenants', 'orders', 'items']) {
      const split = (await Promise.all(['a', 'b', 'c'].map((shard) => run(shard, `TABLE ${table}`)))).flat().sort();
      expect(split).toEqual(await run('whole', `TABLE ${table}`));
    }
  });
});
