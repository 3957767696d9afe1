import pg from 'pg';
import { expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { refusalsOf } from './refusals.js';
import { caught, describeShop, rowsPerServer, TENANTS, tenant } from './scenarios.js';
import { type ConnectedShop, type Order, SHOP_SCHEMA, type Shop, sqlstate, type Tenant } from './shop.js';

interface PgShop extends ConnectedShop {
  readonly pool: pg.Pool;
}

type Db = Pick<pg.ClientBase, 'query'>;

const tenantOf = (r: { tenant_id: string; name: string; plan: string | null }): Tenant => ({
  tenantId: BigInt(r.tenant_id),
  name: r.name,
  plan: r.plan,
});
type OrderRow = Omit<Order, 'tenantId' | 'id'> & { tenant_id: string; id: string };
const orderOf = ({ tenant_id, id, ...o }: OrderRow): Order => ({ ...o, tenantId: BigInt(tenant_id), id: BigInt(id) });

const ORDER_COLUMNS = 8;

function shopOf(db: Db): Shop {
  return {
    async addTenants(tenants) {
      const rows = tenants.map((_, i) => `($${3 * i + 1}, $${3 * i + 2}, $${3 * i + 3})`);
      await db.query(
        `INSERT INTO tenants (tenant_id, name, plan) VALUES ${rows}`,
        tenants.flatMap((t) => [t.tenantId, t.name, t.plan]),
      );
    },
    async addOrders(orders) {
      const rows = orders.map(
        (_, i) => `(${Array.from({ length: ORDER_COLUMNS }, (__, j) => `$${ORDER_COLUMNS * i + j + 1}`)})`,
      );
      await db.query(
        `INSERT INTO orders (tenant_id, id, note, total, tags, detail, body, placed) VALUES ${rows}`,
        orders.flatMap((o) => [
          o.tenantId,
          o.id,
          o.note,
          o.total,
          o.tags,
          o.detail === null ? null : JSON.stringify(o.detail),
          o.body,
          o.placed,
        ]),
      );
    },
    // A statement with a name: parsed once on each server connection that it meets.
    async order(tenantId, id) {
      const { rows } = await db.query({
        name: 'order',
        text: 'SELECT * FROM orders WHERE tenant_id = $1 AND id = $2',
        values: [tenantId, id],
      });
      return rows[0] ? orderOf(rows[0]) : null;
    },
    async orders(tenantId, { skip, take }) {
      const { rows } = await db.query('SELECT * FROM orders WHERE tenant_id = $1 ORDER BY id DESC OFFSET $2 LIMIT $3', [
        tenantId,
        skip,
        take,
      ]);
      return rows.map(orderOf);
    },
    async ordersAmong(tenantId, ids) {
      const { rows } = await db.query('SELECT * FROM orders WHERE tenant_id = $1 AND id = ANY ($2)', [tenantId, ids]);
      return rows.map(orderOf);
    },
    async tenantsAmong(ids) {
      return (await db.query('SELECT * FROM tenants WHERE tenant_id = ANY ($1)', [ids])).rows.map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      const text = 'UPDATE orders SET note = $3 WHERE tenant_id = $1 AND id = $2';
      return (await db.query({ name: 'set note', text, values: [tenantId, id, note] })).rowCount ?? -1;
    },
    async putTenant(t) {
      await db.query(
        `INSERT INTO tenants (tenant_id, name, plan) VALUES ($1, $2, $3)
         ON CONFLICT (tenant_id) DO UPDATE SET name = excluded.name, plan = excluded.plan`,
        [t.tenantId, t.name, t.plan],
      );
    },
    async removeOrder(tenantId, id) {
      const { rows } = await db.query('DELETE FROM orders WHERE tenant_id = $1 AND id = $2 RETURNING id', [
        tenantId,
        id,
      ]);
      return rows.length;
    },
    async named(tenantId) {
      const { rows } = await db.query(
        'SELECT o.id, t.name FROM orders o JOIN tenants t USING (tenant_id) WHERE tenant_id = $1 ORDER BY o.id',
        [tenantId],
      );
      return rows.map((r) => ({ id: BigInt(r.id), name: r.name }));
    },
    async totals(tenantId) {
      const { rows } = await db.query(
        'SELECT count(*)::int AS count, coalesce(sum(total), 0) AS sum FROM orders WHERE tenant_id = $1',
        [tenantId],
      );
      return rows[0];
    },
    async lockTenant(tenantId) {
      const { rows } = await db.query('SELECT * FROM tenants WHERE tenant_id = $1 FOR UPDATE', [tenantId]);
      return rows[0] ? tenantOf(rows[0]) : null;
    },
    async transaction(work, isolation) {
      const client = await (db as unknown as pg.Pool).connect();
      try {
        await client.query(isolation ? `BEGIN ISOLATION LEVEL ${isolation}` : 'BEGIN');
        const result = await work(shopOf(client));
        await client.query('COMMIT');
        return result;
      } catch (error) {
        await client.query('ROLLBACK');
        throw error;
      } finally {
        client.release();
      }
    },
    async nested(work) {
      await db.query('SAVEPOINT inner_one');
      try {
        const result = await work(shopOf(db));
        await db.query('RELEASE inner_one');
        return result;
      } catch (error) {
        await db.query('ROLLBACK TO inner_one');
        throw error;
      }
    },
  };
}

/** The text as it is, over the simple protocol, on one client. */
const texts =
  (...list: string[]) =>
  ({ pool }: PgShop) =>
    withPooled(pool, async (client) => {
      try {
        for (const text of list) await client.query(text);
      } finally {
        await client.query('ROLLBACK');
      }
    });

/** What a query gives: over the extended protocol if it has values. */
const rows =
  (text: string, ...values: unknown[]) =>
  async ({ pool }: PgShop) =>
    (await (values.length > 0 ? pool.query(text, values) : pool.query(text))).rows;

async function withPooled<T>(pool: pg.Pool, use: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  try {
    return await use(client);
  } finally {
    client.release();
  }
}

describeShop<PgShop>(
  {
    migrate: (url) =>
      withClient(url, async (client) => {
        await client.query(`${SHOP_SCHEMA} CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
          INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland')`);
      }),
    async connect(url) {
      const pool = new pg.Pool({ connectionString: url, max: 12 });
      // A client of the pool that is idle may be ended; it is replaced.
      pool.on('error', () => undefined);
      return { ...shopOf(pool as unknown as Db), pool, close: () => pool.end() };
    },
    refused: {
      'ALTER TABLE orders …': texts('BEGIN', 'ALTER TABLE orders ADD COLUMN extra int'),
      'SELECT … FROM tenants FOR UPDATE': texts('SELECT * FROM tenants FOR UPDATE'),
      'INSERT of rows with keys of two shards': texts(
        'BEGIN',
        "INSERT INTO tenants (tenant_id, name) VALUES (8, 'new'), (108, 'new')",
      ),
      'UPDATE without a key': texts('BEGIN', "UPDATE orders SET note = 'changed'"),
      'DELETE without a key': texts('BEGIN', 'DELETE FROM orders'),
      'TRUNCATE orders': texts('BEGIN', 'TRUNCATE orders'),
      'an INSERT into a reference table': texts('BEGIN', "INSERT INTO countries VALUES ('de', 'Germany')"),
      'DECLARE … CURSOR without a key': texts('BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM orders'),
      'EXPLAIN without a key': texts('EXPLAIN SELECT * FROM orders'),
      'VACUUM orders': texts('VACUUM orders'),
      'CREATE TEMP TABLE … AS SELECT … FROM orders': texts(
        'BEGIN',
        'CREATE TEMP TABLE mine AS SELECT * FROM orders WHERE tenant_id = 107',
      ),
    },
    gathered: {
      'SELECT … ORDER BY': rows('SELECT * FROM orders ORDER BY placed'),
      'SELECT … ORDER BY … LIMIT $1 OFFSET $2': rows('SELECT * FROM orders ORDER BY placed LIMIT $1 OFFSET $2', 3, 2),
      'SELECT count(*), sum(…), min(…)': rows('SELECT count(*), sum(total), avg(total), min(placed) FROM orders'),
      'SELECT … WHERE … = (SELECT …)': rows('SELECT * FROM orders WHERE total = (SELECT max(total) FROM orders)'),
      'SELECT … GROUP BY … HAVING': rows(
        'SELECT note, count(*) FROM orders WHERE total > $1 GROUP BY note HAVING count(*) > 1',
        '5',
      ),
      'SELECT … FROM orders JOIN countries': rows(
        "SELECT c.code, count(*) FROM orders o, countries c WHERE c.code <> 'at' GROUP BY c.code",
      ),
      'a statement with a name': async ({ pool }) => {
        const query = { name: 'n', text: 'SELECT count(*) AS n, $1::text AS x FROM orders', values: ['x'] };
        return [(await pool.query(query)).rows, (await pool.query(query)).rows];
      },
      'a query in rows of arrays': async ({ pool }) =>
        (await pool.query({ text: 'SELECT DISTINCT plan FROM tenants ORDER BY 1', rowMode: 'array' })).rows,
      'its columns': async ({ pool }) =>
        (await pool.query('SELECT sum(total) AS s, max(body) AS b, array_agg(tags) FROM orders')).fields.map(
          ({ name, dataTypeID, dataTypeModifier, dataTypeSize }) => [name, dataTypeID, dataTypeModifier, dataTypeSize],
        ),
    },
    also(place, shop) {
      const key = TENANTS[1];

      it('pipelines queries over one connection, with an error among them', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const client = new pg.Client({ connectionString: place().url, pipeline: true });
        await client.connect();
        const results = await Promise.all(
          Array.from({ length: 120 }, async (_, i) => {
            const id = TENANTS[i % 3] as bigint;
            if (i % 20 === 19) return sqlstate(await caught(client.query('SELECT 1 / $1::int', [0])));
            const query = { text: 'SELECT name, $2::int AS i FROM tenants WHERE tenant_id = $1', values: [id, i] };
            const { rows } = await client.query(i % 2 ? query : { ...query, name: 'tenant' });
            return rows[0];
          }),
        );
        expect(results).toEqual(
          Array.from({ length: 120 }, (_, i) => (i % 20 === 19 ? '22012' : { name: `tenant ${TENANTS[i % 3]}`, i })),
        );
        await client.end();
      });

      it('reads and writes values in binary', async () => {
        const client = new pg.Client({ connectionString: place().url, binary: true } as pg.ClientConfig);
        await client.connect();
        await client.query('INSERT INTO tenants (tenant_id, name) VALUES ($1, $2)', [key, 'binary']);
        const { rows } = await client.query(
          `SELECT tenant_id, name, 2::int4 AS i, true AS t
           FROM tenants WHERE tenant_id = $1`,
          [key],
        );
        expect(rows).toEqual([{ tenant_id: '107', name: 'binary', i: 2, t: true }]);
        await client.end();
      });

      it('runs a named statement for keys of every shard, before and after it fails', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        await withPooled(shop().pool, async (client) => {
          const named = (values: unknown[]) =>
            client.query({ name: 'by key', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values });
          for (let round = 0; round < 3; round++) {
            for (const id of TENANTS) expect((await named([id])).rows).toEqual([{ name: `tenant ${id}` }]);
            expect(sqlstate(await caught(named(['no number'])))).toBe('22P02');
          }
        });
      });

      it('gives every client its answers when there are more clients than server connections', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const pools = Array.from({ length: 4 }, () => new pg.Pool({ connectionString: place().url, max: 10 }));
        const work = async (pool: pg.Pool, i: number) => {
          const id = TENANTS[i % 3] as bigint;
          const app = shopOf(pool as unknown as Db);
          await app.transaction(async (t) => {
            await t.putTenant({ tenantId: id, name: `by ${i}`, plan: null });
            expect((await t.tenantsAmong([id]))[0]?.name).toBe(`by ${i}`);
          });
          const { rows } = await pool.query('SELECT $1::int AS i', [i]);
          expect(rows).toEqual([{ i }]);
        };
        await Promise.all(pools.flatMap((pool, p) => Array.from({ length: 15 }, (_, i) => work(pool, 15 * p + i))));
        if (place().name !== 'PostgreSQL itself') {
          expect(pools.reduce((n, pool) => n + pool.totalCount, 0)).toBe(40);
          for (const server of place().servers) expect(await serverConnections(server)).toBeLessThanOrEqual(10);
        }
        await Promise.all(pools.map((pool) => pool.end()));
      });

      it('undoes what a client had open that vanishes, and lets others go on', async () => {
        await shop().addTenants([tenant(key)]);
        const client = new pg.Client({ connectionString: place().url });
        client.on('error', () => undefined);
        await client.connect();
        await client.query('BEGIN');
        await client.query("UPDATE tenants SET name = 'never' WHERE tenant_id = $1", [key]);
        (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
        // It waits for the row's lock.
        await shop().putTenant({ tenantId: key, name: 'after', plan: null });
        expect((await shop().tenantsAmong([key]))[0]?.name).toBe('after');
      });

      it('keeps an idle client while its server connection ends', async () => {
        await shop().addTenants([tenant(key)]);
        if (place().name === 'PostgreSQL itself') return;
        const client = new pg.Client({ connectionString: place().url });
        await client.connect();
        const read = async () =>
          (await client.query({ name: 'r', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [key] }))
            .rows;
        expect(await read()).toEqual([{ name: 'tenant 107' }]);
        const server = place().servers[place().several ? 1 : 0] as string;
        await withClient(server, (c) =>
          c.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user`),
        );
        await waitFor(async () => (await serverConnections(server)) === 0, { what: 'the server connections to end' });
        expect(await read()).toEqual([{ name: 'tenant 107' }]);
        await client.end();
      });

      it('cancels a statement, and goes on with the connection', async () => {
        const client = new pg.Client({ connectionString: place().url });
        await client.connect();
        const ended = caught(client.query('SELECT pg_sleep(60)'));
        await waitFor(
          () =>
            withClient(place().servers[0] as string, async (c) => {
              const { rowCount } = await c.query(`SELECT FROM pg_stat_activity
                WHERE state = 'active' AND query = 'SELECT pg_sleep(60)' AND datname = current_database()`);
              return rowCount === 1;
            }),
          { what: 'the statement to run' },
        );
        const other = new pg.Client({ connectionString: place().url }) as pg.Client & {
          cancel(client: pg.Client, query: unknown): void;
        };
        other.cancel(client, (client as unknown as { activeQuery: unknown }).activeQuery);
        expect(sqlstate(await ended)).toBe('57014');
        expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
        await client.end();
      });

      it('hears what is notified when it is committed, and nothing after UNLISTEN', async () => {
        const listener = new pg.Client({ connectionString: place().url });
        await listener.connect();
        const heard: string[] = [];
        listener.on('notification', (n) => heard.push(`${n.channel}: ${n.payload}`));
        await listener.query('LISTEN orders_changed');
        await listener.query('LISTEN done');
        await withPooled(shop().pool, async (client) => {
          await client.query('BEGIN');
          await client.query("SELECT pg_notify('orders_changed', 'undone')");
          await client.query('ROLLBACK');
          await client.query('BEGIN');
          await client.query("NOTIFY orders_changed, 'first'");
          await client.query("NOTIFY done, '1'");
          expect(heard).toEqual([]);
          await client.query('COMMIT');
          await waitFor(() => heard.length === 2, { what: 'the first notifications' });
          await listener.query('UNLISTEN orders_changed');
          await client.query("NOTIFY orders_changed, 'unheard'");
          await client.query("NOTIFY done, '2'");
          await waitFor(() => heard.length === 3, { what: 'the last notification' });
        });
        expect(heard).toEqual(['orders_changed: first', 'done: 1', 'done: 2']);
        await listener.end();
      });

      it('joins with a reference table on every shard', async () => {
        for (const id of TENANTS) {
          await shop().putTenant({ tenantId: id, name: 'x', plan: 'at' });
          const { rows } = await shop().pool.query(
            'SELECT c.name FROM tenants t JOIN countries c ON c.code = t.plan WHERE t.tenant_id = $1',
            [id],
          );
          expect(rows).toEqual([{ name: 'Austria' }]);
        }
        const { rows } = await shop().pool.query(
          'SELECT t.tenant_id, c.name FROM tenants t JOIN countries c ON c.code = t.plan',
        );
        expect(rows).toHaveLength(3);
        expect(await rowsPerServer(place(), 'tenants')).toEqual(place().several ? [1, 1, 1] : [3]);
      });

      async function serverConnections(server: string): Promise<number> {
        return withClient(server, async (c) => {
          const { rows } = await c.query<{ n: number }>(`SELECT count(*)::int AS n FROM pg_stat_activity
            WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()`);
          return rows[0]?.n ?? -1;
        });
      }
    },
  },
  refusalsOf('node-postgres'),
);
