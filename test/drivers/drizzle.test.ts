import { fileURLToPath } from 'node:url';
import { and, asc, count, desc, eq, inArray, relations, sql, sum } from 'drizzle-orm';
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import {
  bigint,
  customType,
  jsonb,
  numeric,
  type PgTransaction,
  pgTable,
  primaryKey,
  text,
  timestamp,
} from 'drizzle-orm/pg-core';
import pg from 'pg';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS, tenant } from './scenarios.js';
import { anOrder, type ConnectedShop, type Shop } from './shop.js';

/** Drizzle has no bytea of its own yet. */
const bytes = customType<{ data: Buffer }>({ dataType: () => 'bytea' });

const tenants = pgTable('tenants', {
  tenantId: bigint('tenant_id', { mode: 'bigint' }).primaryKey(),
  name: text().notNull(),
  plan: text(),
});

const orders = pgTable(
  'orders',
  {
    tenantId: bigint('tenant_id', { mode: 'bigint' })
      .notNull()
      .references(() => tenants.tenantId),
    id: bigint({ mode: 'bigint' }).notNull(),
    note: text(),
    total: numeric({ precision: 12, scale: 2 }).notNull().default('0'),
    tags: text().array().notNull().default([]),
    detail: jsonb(),
    body: bytes(),
    placed: timestamp({ withTimezone: true }).notNull().defaultNow(),
  },
  (t) => [primaryKey({ columns: [t.tenantId, t.id] })],
);

const schema = {
  tenants,
  orders,
  tenantRelations: relations(tenants, ({ many }) => ({ orders: many(orders) })),
  orderRelations: relations(orders, ({ one }) => ({
    tenant: one(tenants, { fields: [orders.tenantId], references: [tenants.tenantId] }),
  })),
};

type Db = Pick<NodePgDatabase<typeof schema>, 'select' | 'insert' | 'update' | 'delete' | 'transaction' | 'query'>;

interface DrizzleShop extends ConnectedShop {
  readonly db: NodePgDatabase<typeof schema>;
}

function shopOf(db: Db): Shop {
  const one = (tenantId: bigint, id: bigint) => and(eq(orders.tenantId, tenantId), eq(orders.id, id));
  return {
    async addTenants(list) {
      await db.insert(tenants).values([...list]);
    },
    async addOrders(list) {
      await db.insert(orders).values(list.map((o) => ({ ...o, tags: [...o.tags] })));
    },
    async order(tenantId, id) {
      return (await db.select().from(orders).where(one(tenantId, id)))[0] ?? null;
    },
    orders: (tenantId, { skip, take }) =>
      db.query.orders.findMany({
        where: eq(orders.tenantId, tenantId),
        orderBy: desc(orders.id),
        offset: skip,
        limit: take,
      }),
    ordersAmong: async (tenantId, ids) =>
      db
        .select()
        .from(orders)
        .where(and(eq(orders.tenantId, tenantId), inArray(orders.id, [...ids]))),
    tenantsAmong: async (ids) =>
      db
        .select()
        .from(tenants)
        .where(inArray(tenants.tenantId, [...ids])),
    async setNote(tenantId, id, note) {
      return (await db.update(orders).set({ note }).where(one(tenantId, id))).rowCount ?? -1;
    },
    async putTenant({ tenantId, name, plan }) {
      await db
        .insert(tenants)
        .values({ tenantId, name, plan })
        .onConflictDoUpdate({ target: tenants.tenantId, set: { name, plan } });
    },
    async removeOrder(tenantId, id) {
      return (await db.delete(orders).where(one(tenantId, id)).returning({ id: orders.id })).length;
    },
    named: async (tenantId) =>
      db
        .select({ id: orders.id, name: tenants.name })
        .from(orders)
        .innerJoin(tenants, eq(tenants.tenantId, orders.tenantId))
        .where(eq(orders.tenantId, tenantId))
        .orderBy(asc(orders.id)),
    async totals(tenantId) {
      const [r] = await db
        .select({ n: count(), sum: sum(orders.total) })
        .from(orders)
        .where(eq(orders.tenantId, tenantId));
      return { count: r?.n ?? -1, sum: r?.sum ?? '0' };
    },
    async lockTenant(tenantId) {
      return (await db.select().from(tenants).where(eq(tenants.tenantId, tenantId)).for('update'))[0] ?? null;
    },
    transaction: (work, isolation) =>
      db.transaction((t) => work(shopOf(t as Db)), isolation ? { isolationLevel: isolation } : undefined),
    nested: (work) =>
      (db as unknown as PgTransaction<never, typeof schema, never>).transaction((t) =>
        work(shopOf(t as unknown as Db)),
      ),
  };
}

describeShop<DrizzleShop>(
  {
    async migrate(url) {
      const pool = new pg.Pool({ connectionString: url });
      const db = drizzle(pool, { schema });
      const migrationsFolder = fileURLToPath(new URL('./drizzle', import.meta.url));
      await migrate(db, { migrationsFolder });
      await migrate(db, { migrationsFolder });
      await pool.end();
    },
    async connect(url) {
      const pool = new pg.Pool({ connectionString: url, max: 8 });
      const db = drizzle(pool, { schema });
      return { ...shopOf(db), db, close: () => pool.end() };
    },
    refused: {
      'db.insert(tenants).values(rows of several keys)': ({ db }) =>
        db.insert(tenants).values([8n, 108n, 208n].map((tenantId) => ({ tenantId, name: 'new' }))),
      'db.update(orders) without a key': ({ db }) => db.update(orders).set({ note: 'all' }),
      'db.delete(orders) without a key': ({ db }) => db.delete(orders).where(eq(orders.note, 'order 1 of 7')),
      'migrate(db) with DDL to do': async ({ db }) => {
        await db.execute(sql`ALTER TABLE orders ADD COLUMN extra int`);
        await db.execute(sql`ALTER TABLE orders DROP COLUMN extra`);
      },
    },
    gathered: {
      'db.query.tenants.findFirst() without a key': ({ db }) =>
        db.query.tenants.findFirst({ where: eq(tenants.plan, 'free'), orderBy: desc(tenants.name) }),
      'db.query.tenants.findMany({ with })': ({ db }) =>
        db.query.tenants.findMany({
          with: { orders: { columns: { note: true, total: true }, orderBy: desc(orders.id) } },
          orderBy: asc(tenants.name),
        }),
      'db.select().from(orders).orderBy(…)': ({ db }) => db.select().from(orders).orderBy(orders.placed),
      'db.select().from(orders).limit(1)': ({ db }) => db.select().from(orders).orderBy(desc(orders.placed)).limit(1),
      'db.$count(orders)': ({ db }) => db.$count(orders),
      'db.selectDistinct().from(tenants)': ({ db }) =>
        db.selectDistinct({ plan: tenants.plan }).from(tenants).orderBy(tenants.plan),
      'db.select().from(orders).groupBy(…)': ({ db }) =>
        db.select({ note: orders.note, n: count() }).from(orders).groupBy(orders.note).orderBy(orders.note),
    },
    also(place, shop) {
      it('reads a tenant with its orders in one query', async () => {
        for (const id of TENANTS) {
          await shop().addTenants([tenant(id)]);
          await shop().addOrders([anOrder(id, 1n), anOrder(id, 2n)]);
        }
        const [, id] = TENANTS;
        const found = await shop().db.query.tenants.findFirst({
          where: eq(tenants.tenantId, id),
          with: { orders: { columns: { note: true }, where: eq(orders.tenantId, id), orderBy: asc(orders.id) } },
        });
        expect(found, place().name).toEqual({
          ...tenant(id),
          orders: [{ note: 'order 1 of 107' }, { note: 'order 2 of 107' }],
        });
      });

      it('runs prepared statements for keys of any shard', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const prepared = shop()
          .db.select()
          .from(tenants)
          .where(eq(tenants.tenantId, sql.placeholder('id')))
          .prepare('tenant_by_id');
        for (let round = 0; round < 3; round++)
          for (const id of TENANTS) expect(await prepared.execute({ id })).toEqual([tenant(id)]);
      });
    },
  },
  refusalsOf('Drizzle'),
);
