import knex, { type Knex } from 'knex';
import { refusalsOf } from './refusals.js';
import { describeShop } from './scenarios.js';
import type { ConnectedShop, Order, Shop, Tenant } from './shop.js';

const CREATE = '1_shop';

/** Migrations as Knex reads them, in place of files. */
const MIGRATIONS: Knex.MigrationSource<string> = {
  getMigrations: async () => [CREATE],
  getMigrationName: (name) => name,
  getMigration: async () => ({
    async up(db) {
      await db.schema.createTable('tenants', (t) => {
        t.bigInteger('tenant_id').primary();
        t.text('name').notNullable();
        t.text('plan');
      });
      await db.schema.createTable('orders', (t) => {
        t.bigInteger('tenant_id').notNullable().references('tenants.tenant_id');
        t.bigInteger('id').notNullable();
        t.text('note');
        t.decimal('total', 12, 2).notNullable().defaultTo(0);
        t.specificType('tags', 'text[]').notNullable().defaultTo('{}');
        t.jsonb('detail');
        t.binary('body');
        t.timestamp('placed', { useTz: true }).notNullable().defaultTo(db.fn.now());
        t.primary(['tenant_id', 'id']);
        t.index(['tenant_id', 'placed']);
      });
    },
    async down(db) {
      await db.schema.dropTable('orders');
      await db.schema.dropTable('tenants');
    },
  }),
};

const NEW_TENANTS = ['8', '108', '208'].map((id) => ({ tenant_id: id, name: 'new' }));

interface KnexShop extends ConnectedShop {
  readonly db: Knex;
}

function open(url: string): Knex {
  return knex({ client: 'pg', connection: url, pool: { min: 0, max: 8 }, migrations: { migrationSource: MIGRATIONS } });
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

/** Knex's types know no bigint; it sends text in any case. */
const keyOf = (tenantId: bigint, id: bigint) => ({ tenant_id: `${tenantId}`, id: `${id}` });

function shopOf(db: Knex): Shop {
  return {
    async addTenants(tenants) {
      await db('tenants').insert(tenants.map(row));
    },
    async addOrders(orders) {
      await db('orders').insert(orders.map(orderRow));
    },
    async order(tenantId, id) {
      const found = await db('orders').where(keyOf(tenantId, id)).first();
      return found ? orderOf(found) : null;
    },
    async orders(tenantId, { skip, take }) {
      return (await db('orders').where('tenant_id', `${tenantId}`).orderBy('id', 'desc').offset(skip).limit(take)).map(
        orderOf,
      );
    },
    async ordersAmong(tenantId, ids) {
      return (await db('orders').where('tenant_id', `${tenantId}`).whereIn('id', ids.map(String))).map(orderOf);
    },
    async tenantsAmong(ids) {
      return (await db('tenants').whereIn('tenant_id', ids.map(String))).map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      return db('orders').where(keyOf(tenantId, id)).update({ note });
    },
    async putTenant(t) {
      await db('tenants').insert(row(t)).onConflict('tenant_id').merge(['name', 'plan']);
    },
    async removeOrder(tenantId, id) {
      return db('orders').where(keyOf(tenantId, id)).delete();
    },
    async named(tenantId) {
      const rows = await db('orders')
        .join('tenants', 'tenants.tenant_id', 'orders.tenant_id')
        .where('orders.tenant_id', `${tenantId}`)
        .orderBy('orders.id')
        .select<{ id: string; name: string }[]>('orders.id', 'tenants.name');
      return rows.map((r) => ({ id: BigInt(r.id), name: r.name }));
    },
    async totals(tenantId) {
      const r = await db('orders').where('tenant_id', `${tenantId}`).count('* as n').sum('total as sum').first();
      return { count: Number(r?.n), sum: r?.sum ?? '0' };
    },
    async lockTenant(tenantId) {
      const found = await db('tenants').where('tenant_id', `${tenantId}`).forUpdate().first();
      return found ? tenantOf(found) : null;
    },
    transaction: (work, isolation) =>
      db.transaction((t) => work(shopOf(t)), isolation ? { isolationLevel: isolation } : undefined),
    nested: (work) => db.transaction((t) => work(shopOf(t))),
  };
}

describeShop<KnexShop>(
  {
    async migrate(url) {
      const db = open(url);
      await db.migrate.latest();
      await db.migrate.rollback();
      await db.migrate.latest();
      await db.destroy();
    },
    async connect(url) {
      const db = open(url);
      return { ...shopOf(db), db, close: () => db.destroy() };
    },
    refused: {
      "db.schema.alterTable('orders', …)": async ({ db }) => {
        await db.schema.alterTable('orders', (t) => t.integer('extra'));
        await db.schema.alterTable('orders', (t) => t.dropColumn('extra'));
      },
      "db('tenants').forUpdate()": ({ db }) => db('tenants').forUpdate(),
      "db('tenants').insert(rows of several keys)": ({ db }) => db('tenants').insert(NEW_TENANTS),
      "db.batchInsert('tenants', rows of several keys)": ({ db }) => db.batchInsert('tenants', NEW_TENANTS),
      "db('orders').update({ note })": ({ db }) => db('orders').update({ note: 'all' }),
      "db('orders').where({ note }).delete()": ({ db }) => db('orders').where({ note: 'order 1 of 7' }).delete(),
      "db('orders').where({ tenant_id }).update({ tenant_id: another })": ({ db }) =>
        db('orders').where({ tenant_id: '7' }).update({ tenant_id: '107', id: '99' }),
      "db('orders').truncate()": ({ db }) => db('orders').truncate(),
    },
    gathered: {
      "db('orders').orderBy('placed')": ({ db }) => db('orders').orderBy('placed'),
      "db('orders').first()": ({ db }) => db('orders').orderBy('placed').first(),
      "db('orders').offset(1)": ({ db }) => db('orders').orderBy('placed').offset(1),
      "db('orders').count()": ({ db }) => db('orders').count(),
      "db('orders').groupBy('note')": ({ db }) =>
        db('orders').groupBy('note').select('note').sum('total').orderBy('note'),
      "db('tenants').distinct('plan')": ({ db }) => db('tenants').distinct('plan').orderBy('plan'),
      "db('tenants').whereIn('tenant_id', sub-query)": ({ db }) =>
        db('tenants').whereIn('tenant_id', db('orders').select('tenant_id')).orderBy('name'),
      "db('tenants').whereExists(sub-query)": ({ db }) =>
        db('tenants').whereExists(db('orders').whereRaw('orders.tenant_id = tenants.tenant_id')).orderBy('name'),
      "db('tenants').union(…)": ({ db }) =>
        db('tenants').select('name').union(db('orders').select('note')).orderBy('name'),
      "db.with('t', …).from('t')": ({ db }) => db.with('t', db('tenants')).from('t').orderBy('name'),
    },
  },
  refusalsOf('Knex'),
);
