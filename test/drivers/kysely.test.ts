import {
  type ColumnType,
  type ControlledTransaction,
  type Generated,
  Kysely,
  Migrator,
  PostgresDialect,
  sql,
} from 'kysely';
import pg from 'pg';
import Cursor from 'pg-cursor';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS } from './scenarios.js';
import { anOrder, type ConnectedShop, type Order, type Shop, type Tenant } from './shop.js';

type Big = ColumnType<string, bigint, bigint>;

interface Database {
  tenants: { tenant_id: Big; name: string; plan: string | null };
  orders: {
    tenant_id: Big;
    id: Big;
    note: string | null;
    total: Generated<string>;
    tags: ColumnType<string[], readonly string[], readonly string[]>;
    detail: ColumnType<unknown, string | null, string | null>;
    body: Buffer | null;
    placed: ColumnType<Date, Date | undefined, Date>;
  };
}

const all = (db: Kysely<Database>) => db.selectFrom('orders').selectAll();

interface KyselyShop extends ConnectedShop {
  readonly db: Kysely<Database>;
}

function open(url: string): Kysely<Database> {
  return new Kysely<Database>({
    dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url, max: 8 }), cursor: Cursor }),
  });
}

function migratorOf(db: Kysely<Database>): Migrator {
  return new Migrator({
    db,
    provider: {
      getMigrations: async () => ({
        '1_tenants': {
          async up(d) {
            await d.schema
              .createTable('tenants')
              .addColumn('tenant_id', 'bigint', (c) => c.primaryKey())
              .addColumn('name', 'text', (c) => c.notNull())
              .execute();
          },
          async down(d) {
            await d.schema.dropTable('tenants').execute();
          },
        },
        '2_orders': {
          async up(d) {
            await d.schema.alterTable('tenants').addColumn('plan', 'text').execute();
            await d.schema
              .createTable('orders')
              .addColumn('tenant_id', 'bigint', (c) => c.notNull().references('tenants.tenant_id'))
              .addColumn('id', 'bigint', (c) => c.notNull())
              .addColumn('note', 'text')
              .addColumn('total', 'numeric(12, 2)', (c) => c.notNull().defaultTo(0))
              .addColumn('tags', sql`text[]`, (c) => c.notNull().defaultTo(sql`'{}'`))
              .addColumn('detail', 'jsonb')
              .addColumn('body', 'bytea')
              .addColumn('placed', 'timestamptz', (c) => c.notNull().defaultTo(sql`now()`))
              .addPrimaryKeyConstraint('orders_pkey', ['tenant_id', 'id'])
              .execute();
            await d.schema.createIndex('orders_by_time').on('orders').columns(['tenant_id', 'placed']).execute();
          },
          async down(d) {
            await d.schema.dropTable('orders').execute();
            await d.schema.alterTable('tenants').dropColumn('plan').execute();
          },
        },
      }),
    },
  });
}

const row = ({ tenantId, ...t }: Tenant) => ({ tenant_id: tenantId, ...t });
const orderRow = ({ tenantId, detail, ...o }: Order) => ({
  tenant_id: tenantId,
  ...o,
  detail: detail === null ? null : JSON.stringify(detail),
});
const tenantOf = (r: { tenant_id: string; name: string; plan: string | null }): Tenant => ({
  tenantId: BigInt(r.tenant_id),
  name: r.name,
  plan: r.plan,
});
type OrderRow = Omit<Order, 'tenantId' | 'id'> & { tenant_id: string; id: string };
const orderOf = ({ tenant_id, id, ...o }: OrderRow): Order => ({ ...o, tenantId: BigInt(tenant_id), id: BigInt(id) });

function shopOf(db: Kysely<Database>): Shop {
  return {
    async addTenants(tenants) {
      await db.insertInto('tenants').values(tenants.map(row)).execute();
    },
    async addOrders(orders) {
      await db.insertInto('orders').values(orders.map(orderRow)).execute();
    },
    async order(tenantId, id) {
      const found = await db
        .selectFrom('orders')
        .selectAll()
        .where('tenant_id', '=', tenantId as unknown as string)
        .where('id', '=', `${id}`)
        .executeTakeFirst();
      return found ? orderOf(found) : null;
    },
    async orders(tenantId, { skip, take }) {
      const found = await db
        .selectFrom('orders')
        .selectAll()
        .where('tenant_id', '=', `${tenantId}`)
        .orderBy('id', 'desc')
        .offset(skip)
        .limit(take)
        .execute();
      return found.map(orderOf);
    },
    async ordersAmong(tenantId, ids) {
      const found = await db
        .selectFrom('orders')
        .selectAll()
        .where('tenant_id', '=', `${tenantId}`)
        .where('id', 'in', ids.map(String))
        .execute();
      return found.map(orderOf);
    },
    async tenantsAmong(ids) {
      const found = await db.selectFrom('tenants').selectAll().where('tenant_id', 'in', ids.map(String)).execute();
      return found.map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      const { numUpdatedRows } = await db
        .updateTable('orders')
        .set({ note })
        .where('tenant_id', '=', `${tenantId}`)
        .where('id', '=', `${id}`)
        .executeTakeFirst();
      return Number(numUpdatedRows);
    },
    async putTenant(t) {
      await db
        .insertInto('tenants')
        .values(row(t))
        .onConflict((oc) => oc.column('tenant_id').doUpdateSet({ name: t.name, plan: t.plan }))
        .execute();
    },
    async removeOrder(tenantId, id) {
      const { numDeletedRows } = await db
        .deleteFrom('orders')
        .where('tenant_id', '=', `${tenantId}`)
        .where('id', '=', `${id}`)
        .executeTakeFirst();
      return Number(numDeletedRows);
    },
    async named(tenantId) {
      const rows = await db
        .selectFrom('orders')
        .innerJoin('tenants', 'tenants.tenant_id', 'orders.tenant_id')
        .where('orders.tenant_id', '=', `${tenantId}`)
        .orderBy('orders.id')
        .select(['orders.id', 'tenants.name'])
        .execute();
      return rows.map((r) => ({ id: BigInt(r.id), name: r.name }));
    },
    async totals(tenantId) {
      const r = await db
        .selectFrom('orders')
        .where('tenant_id', '=', `${tenantId}`)
        .select((e) => [e.fn.countAll<string>().as('n'), e.fn.sum<string | null>('total').as('sum')])
        .executeTakeFirstOrThrow();
      return { count: Number(r.n), sum: r.sum ?? '0' };
    },
    async lockTenant(tenantId) {
      const found = await db
        .selectFrom('tenants')
        .selectAll()
        .where('tenant_id', '=', `${tenantId}`)
        .forUpdate()
        .executeTakeFirst();
      return found ? tenantOf(found) : null;
    },
    async transaction(work, isolation) {
      const start = db.startTransaction();
      const trx = await (isolation ? start.setIsolationLevel(isolation) : start).execute();
      try {
        const result = await work({ ...shopOf(trx), nested: nestedIn(trx) });
        await trx.commit().execute();
        return result;
      } catch (error) {
        await trx.rollback().execute();
        throw error;
      }
    },
  };
}

function nestedIn(trx: ControlledTransaction<Database>): NonNullable<Shop['nested']> {
  return async (work) => {
    const inner = await trx.savepoint('inner').execute();
    try {
      const result = await work(shopOf(inner));
      await inner.releaseSavepoint('inner').execute();
      return result;
    } catch (error) {
      await inner.rollbackToSavepoint('inner').execute();
      throw error;
    }
  };
}

describeShop<KyselyShop>(
  {
    async migrate(url) {
      const db = open(url);
      const migrator = migratorOf(db);
      for (const move of ['migrateToLatest', 'migrateDown', 'migrateToLatest'] as const) {
        const { error, results } = await migrator[move]();
        if (error !== undefined) throw error;
        if (!results?.every((r) => r.status === 'Success')) throw new Error(`${move} did not do all`);
      }
      await db.destroy();
    },
    async connect(url) {
      const db = open(url);
      return { ...shopOf(db), db, close: () => db.destroy() };
    },
    refused: {
      "db.schema.alterTable('orders')": async ({ db }) => {
        await db.schema.alterTable('orders').addColumn('extra', 'integer').execute();
        await db.schema.alterTable('orders').dropColumn('extra').execute();
      },
      "selectFrom('orders').stream() without a key": async ({ db }) => {
        for await (const o of all(db).stream(2)) if (o.id === 'none') return;
      },
      "insertInto('tenants').values(rows of several keys)": ({ db }) =>
        db
          .insertInto('tenants')
          .values([8n, 108n, 208n].map((id) => ({ tenant_id: id, name: 'new', plan: null })))
          .execute(),
      "updateTable('orders') without a key": ({ db }) => db.updateTable('orders').set({ note: 'all' }).execute(),
      "deleteFrom('orders') without a key": ({ db }) =>
        db.deleteFrom('orders').where('note', '=', 'order 1 of 7').execute(),
    },
    gathered: {
      "selectFrom('orders').orderBy('placed')": ({ db }) => all(db).orderBy('placed').execute(),
      "selectFrom('orders').limit(1)": ({ db }) => all(db).orderBy('placed').limit(1).execute(),
      "selectFrom('orders').select(countAll)": ({ db }) =>
        db
          .selectFrom('orders')
          .select((e) => e.fn.countAll().as('n'))
          .execute(),
      "selectFrom('orders').groupBy('note')": ({ db }) =>
        db.selectFrom('orders').select('note').groupBy('note').orderBy('note').execute(),
      "selectFrom('tenants').select('plan').distinct()": ({ db }) =>
        db.selectFrom('tenants').select('plan').distinct().orderBy('plan').execute(),
      "with('t', …).selectFrom('t')": ({ db }) =>
        db
          .with('t', (q) => q.selectFrom('tenants').selectAll())
          .selectFrom('t')
          .selectAll()
          .orderBy('name')
          .execute(),
      "selectFrom('tenants').where(exists(…))": ({ db }) =>
        db
          .selectFrom('tenants')
          .selectAll()
          .where((e) =>
            e.exists(e.selectFrom('orders').select('id').whereRef('orders.tenant_id', '=', 'tenants.tenant_id')),
          )
          .orderBy('name')
          .execute(),
    },
    also(place, shop) {
      it('streams rows by a cursor', async () => {
        const key = TENANTS[1];
        await shop().addTenants([{ tenantId: key, name: 'streamed', plan: null }]);
        await shop().addOrders(Array.from({ length: 250 }, (_, i) => anOrder(key, BigInt(i))));
        const ids: bigint[] = [];
        const query = shop().db.selectFrom('orders').selectAll().where('tenant_id', '=', `${key}`).orderBy('id');
        for await (const o of query.stream(40)) ids.push(BigInt(o.id));
        expect(ids).toEqual(Array.from({ length: 250 }, (_, i) => BigInt(i)));
        // Left early, the connection is as good as new.
        for await (const o of query.stream(40)) if (o.id === '50') break;
        expect((await shop().totals(key)).count, place().name).toBe(250);
      });
    },
  },
  refusalsOf('Kysely'),
);
