import postgres, { type Sql, type TransactionSql } from 'postgres';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { caught, describeShop, rowsPerServer, TENANTS, tenant } from './scenarios.js';
import { anOrder, type ConnectedShop, type Order, SHOP_SCHEMA, type Shop, sqlstate, type Tenant } from './shop.js';

type Types = { bigint: bigint };
type Db = Sql<Types> | TransactionSql<Types>;

interface PostgresShop extends ConnectedShop {
  readonly sql: Sql<Types>;
}

const tenantOf = (r: postgres.Row): Tenant => ({ tenantId: r.tenant_id, name: r.name, plan: r.plan });
const orderOf = ({ tenant_id, ...o }: postgres.Row) => ({ tenantId: tenant_id, ...o }) as unknown as Order;

function open(url: string): Sql<Types> {
  return postgres(url, { max: 8, types: { bigint: postgres.BigInt }, onnotice: () => undefined });
}

function shopOf(db: Db): Shop {
  return {
    async addTenants(tenants) {
      await db`INSERT INTO tenants ${db(tenants.map(({ tenantId, ...t }) => ({ tenant_id: tenantId, ...t })))}`;
    },
    async addOrders(orders) {
      const rows = orders.map(({ tenantId, detail, tags, ...o }) => ({
        tenant_id: tenantId,
        ...o,
        tags: [...tags],
        detail: detail === null ? null : db.json(detail as postgres.JSONValue),
      }));
      await db`INSERT INTO orders ${db(rows)}`;
    },
    async order(tenantId, id) {
      const [found] = await db`SELECT * FROM orders WHERE tenant_id = ${tenantId} AND id = ${id}`;
      return found ? orderOf(found) : null;
    },
    async orders(tenantId, { skip, take }) {
      return (
        await db`SELECT * FROM orders WHERE tenant_id = ${tenantId} ORDER BY id DESC OFFSET ${skip} LIMIT ${take}`
      ).map(orderOf);
    },
    async ordersAmong(tenantId, ids) {
      return (await db`SELECT * FROM orders WHERE tenant_id = ${tenantId} AND id = ANY (${db.array([...ids])})`).map(
        orderOf,
      );
    },
    async tenantsAmong(ids) {
      return (await db`SELECT * FROM tenants WHERE tenant_id IN ${db([...ids])}`).map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      return (await db`UPDATE orders SET ${db({ note })} WHERE tenant_id = ${tenantId} AND id = ${id}`).count;
    },
    async putTenant({ tenantId, name, plan }) {
      await db`INSERT INTO tenants (tenant_id, name, plan) VALUES (${tenantId}, ${name}, ${plan})
               ON CONFLICT (tenant_id) DO UPDATE SET name = excluded.name, plan = excluded.plan`;
    },
    async removeOrder(tenantId, id) {
      return (await db`DELETE FROM orders WHERE tenant_id = ${tenantId} AND id = ${id}`).count;
    },
    async named(tenantId) {
      const rows = await db<{ id: bigint; name: string }[]>`
        SELECT o.id, t.name FROM orders o JOIN tenants t USING (tenant_id) WHERE tenant_id = ${tenantId} ORDER BY o.id`;
      return rows.map((r) => ({ ...r }));
    },
    async totals(tenantId) {
      const [r] =
        await db`SELECT count(*)::int AS n, coalesce(sum(total), 0) AS sum FROM orders WHERE tenant_id = ${tenantId}`;
      return { count: r?.n, sum: r?.sum };
    },
    async lockTenant(tenantId) {
      const [found] = await db`SELECT * FROM tenants WHERE tenant_id = ${tenantId} FOR UPDATE`;
      return found ? tenantOf(found) : null;
    },
    async transaction<T>(work: (shop: Shop) => Promise<T>, isolation?: string): Promise<T> {
      return (await (db as Sql<Types>).begin(isolation ? `ISOLATION LEVEL ${isolation}` : '', (t) =>
        work(shopOf(t)),
      )) as T;
    },
    async nested<T>(work: (shop: Shop) => Promise<T>): Promise<T> {
      return (await (db as TransactionSql<Types>).savepoint((t) => work(shopOf(t)))) as T;
    },
  };
}

describeShop<PostgresShop>(
  {
    async migrate(url) {
      const sql = open(url);
      await sql.unsafe(SHOP_SCHEMA);
      await sql.end();
    },
    async connect(url) {
      const sql = open(url);
      return { ...shopOf(sql), sql, close: () => sql.end() };
    },
    refused: {
      'INSERT … of rows of several keys': ({ sql }) =>
        sql`INSERT INTO tenants ${sql([8n, 108n, 208n].map((tenant_id) => ({ tenant_id, name: 'new' })))}`,
      'UPDATE … without a key': ({ sql }) => sql`UPDATE orders SET note = 'changed'`,
      'DELETE … without a key': ({ sql }) => sql`DELETE FROM orders WHERE note = 'changed'`,
      'SELECT ….cursor() over several shards': ({ sql }) => sql`SELECT * FROM orders`.cursor(2, async () => undefined),
      'COPY orders FROM STDIN.writable()': async ({ sql }) => {
        const writable = await sql`COPY orders (tenant_id, id) FROM STDIN`.writable();
        await new Promise<void>((resolve, reject) => {
          writable.on('error', reject);
          writable.end('107\t77\n', () => resolve());
        });
      },
      'COPY orders TO STDOUT.readable()': async ({ sql }) => {
        for await (const _ of await sql`COPY orders TO STDOUT`.readable());
      },
      'sql.unsafe() of several statements for several shards': ({ sql }) =>
        sql.unsafe('SELECT * FROM tenants WHERE tenant_id = 7; SELECT * FROM tenants WHERE tenant_id = 107').simple(),
      'sql.unsafe(DDL)': ({ sql }) => sql.unsafe('ALTER TABLE orders ADD extra int; ALTER TABLE orders DROP extra'),
    },
    gathered: {
      'sql.begin() with SELECTs over several shards': async ({ sql }) =>
        sql.begin(async (t) => [
          ...(await t`SELECT count(*) FROM tenants`),
          ...(await t`SELECT * FROM tenants ORDER BY 1`),
        ]),
      'SELECT … ORDER BY': async ({ sql }) => [...(await sql`SELECT * FROM orders ORDER BY placed`)],
      'SELECT … ORDER BY … LIMIT': async ({ sql }) => [
        ...(await sql`SELECT * FROM orders WHERE total > ${'10'} ORDER BY placed DESC LIMIT ${2}`),
      ],
      'SELECT count(*)': async ({ sql }) => [...(await sql`SELECT count(*), sum(total) FROM orders`)],
      'sql.unsafe() of a query': async ({ sql }) => [
        ...(await sql.unsafe('SELECT note, count(*) FROM orders GROUP BY note ORDER BY note').simple()),
      ],
    },
    also(place, shop) {
      const key = TENANTS[1];

      it('commits a transaction over keys of several shards, and takes one back', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const { sql } = shop();
        const rename = (name: string, failing = false) =>
          sql.begin(async (t) => {
            for (const id of TENANTS) await t`UPDATE tenants SET name = ${name} WHERE tenant_id = ${id.toString()}`;
            if (failing) throw new Error('the application thinks better of it');
          });
        const names = async () => {
          const found: string[] = [];
          for (const id of TENANTS)
            for (const { name } of await sql`SELECT name FROM tenants WHERE tenant_id = ${id.toString()}`)
              found.push(name);
          return found;
        };
        await rename('one');
        await expect(rename('two', true)).rejects.toThrow('thinks better');
        expect(await names()).toEqual(TENANTS.map(() => 'one'));
      });

      it('pipelines what is asked at once over one connection', async () => {
        await shop().addTenants([tenant(key)]);
        const sql = postgres(place().url, { max: 1, types: { bigint: postgres.BigInt } });
        const found = await Promise.all(
          Array.from({ length: 100 }, (_, i) =>
            i % 10 === 9
              ? caught(sql`SELECT 1 / (${i}::int - ${i}::int) AS n`).then(sqlstate)
              : sql`SELECT ${i}::int AS n, name FROM tenants WHERE tenant_id = ${key}`.then(([r]) => r?.n),
          ),
        );
        expect(found).toEqual(Array.from({ length: 100 }, (_, i) => (i % 10 === 9 ? '22012' : i)));
        await sql.end();
      });

      it('reads by a cursor, a few rows at a time, and stops early', async () => {
        await shop().addTenants([tenant(key)]);
        await shop().addOrders(Array.from({ length: 100 }, (_, i) => anOrder(key, BigInt(i))));
        const { sql } = shop();
        const batches: number[] = [];
        await sql`SELECT * FROM orders WHERE tenant_id = ${key}`.cursor(30, async (rows) => {
          batches.push(rows.length);
        });
        expect(batches).toEqual([30, 30, 30, 10]);
        let seen = 0;
        for await (const rows of sql`SELECT * FROM orders WHERE tenant_id = ${key} ORDER BY id`.cursor(30)) {
          seen += rows.length;
          if (seen >= 60) break;
        }
        expect(seen).toBe(60);
        expect((await shop().totals(key)).count).toBe(100);
      });

      it('copies in and out', async () => {
        await shop().addTenants([tenant(key)]);
        const { sql } = shop();
        await shop().addOrders([anOrder(key, 1n), anOrder(key, 2n)]);
        const readable =
          await sql`COPY (SELECT id, note FROM orders WHERE tenant_id = 107 ORDER BY id) TO STDOUT`.readable();
        let text = '';
        for await (const chunk of readable) text += chunk;
        expect(text).toBe('1\torder 1 of 107\n2\torder 2 of 107\n');
        if (place().several) return;
        const writable = await sql`COPY orders (tenant_id, id, note) FROM STDIN`.writable();
        for (let i = 10; i < 5010; i++)
          if (!writable.write(`107\t${i}\t${'x'.repeat(200)}\n`))
            await new Promise<void>((resolve) => writable.once('drain', () => resolve()));
        await new Promise<void>((resolve, reject) => writable.end((e: unknown) => (e ? reject(e) : resolve())));
        expect(await rowsPerServer(place(), 'orders')).toEqual([5002]);
      });

      it('hears what is notified', async () => {
        const heard: string[] = [];
        const { sql } = shop();
        const twice = new Promise<void>((resolve, reject) => {
          sql
            .listen('orders_changed', (payload) => {
              heard.push(payload);
              if (heard.length === 2) resolve();
            })
            .then(async () => {
              await sql.notify('orders_changed', 'first');
              await sql.notify('orders_changed', 'second');
            })
            .catch(reject);
        });
        await twice;
        expect(heard).toEqual(['first', 'second']);
      });

      it('cancels a statement, and goes on with the connection', async () => {
        const sql = postgres(place().url, { max: 1 });
        const [own] = await sql`SELECT pg_backend_pid() AS pid`;
        const query = sql`SELECT pg_sleep(60)`;
        const ended = caught(query.execute());
        const direct = postgres(place().servers[0] as string, { max: 1 });
        const running = () =>
          direct`SELECT FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)' AND datname = current_database()`;
        await expect.poll(async () => (await running()).length, { timeout: 10_000 }).toBe(1);
        query.cancel();
        expect(sqlstate(await ended)).toBe('57014');
        expect((await sql`SELECT pg_backend_pid() AS pid`).length, `pid ${own?.pid}`).toBe(1);
        await sql.end();
        await direct.end();
      });

      it('connects with its own default settings', async () => {
        const sql = postgres(place().url, {
          max: 1,
          connection: { application_name: 'the shop', statement_timeout: 12_345 },
        });
        expect(await sql`SHOW statement_timeout`).toEqual([{ statement_timeout: '12345ms' }]);
        expect(await sql`SHOW application_name`).toEqual([{ application_name: 'the shop' }]);
        await sql.end();
      });
    },
  },
  refusalsOf('postgres.js'),
);
