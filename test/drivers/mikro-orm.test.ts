import { Migration, Migrator } from '@mikro-orm/migrations';
import {
  type EntityManager,
  EntitySchema,
  IsolationLevel,
  LockMode,
  MikroORM,
  PrimaryKeyProp,
  wrap,
} from '@mikro-orm/postgresql';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS, tenant } from './scenarios.js';
import { anOrder, type ConnectedShop, type Order, type Shop, type Tenant } from './shop.js';

interface TenantRow {
  [PrimaryKeyProp]?: 'tenantId';
  tenantId: bigint;
  name: string;
  plan: string | null;
}

interface OrderRow {
  [PrimaryKeyProp]?: ['tenant', 'id'];
  tenant: TenantRow;
  id: bigint;
  note: string | null;
  total: string;
  tags: string[];
  detail: unknown;
  body: Buffer | null;
  placed: Date;
}

const TenantSchema = new EntitySchema<TenantRow>({
  name: 'Tenant',
  tableName: 'tenants',
  properties: {
    tenantId: { type: 'bigint', primary: true, fieldName: 'tenant_id', autoincrement: false },
    name: { type: 'text' },
    plan: { type: 'text', nullable: true },
  },
});

const OrderSchema = new EntitySchema<OrderRow>({
  name: 'Order',
  tableName: 'orders',
  properties: {
    tenant: { kind: 'm:1', entity: 'Tenant', primary: true, fieldName: 'tenant_id', updateRule: 'no action' },
    id: { type: 'bigint', primary: true, autoincrement: false },
    note: { type: 'text', nullable: true },
    total: { type: 'decimal', precision: 12, scale: 2, default: '0' },
    tags: { type: 'array', columnType: 'text[]', defaultRaw: `'{}'` },
    detail: { type: 'json', columnType: 'jsonb', nullable: true },
    body: { type: 'blob', nullable: true },
    placed: { type: 'datetime', columnType: 'timestamptz', defaultRaw: 'now()' },
  },
});

class CreateTenants extends Migration {
  override up(): void {
    this.addSql('CREATE TABLE tenants (tenant_id bigint PRIMARY KEY, name text NOT NULL);');
  }
  override down(): void {
    this.addSql('DROP TABLE tenants;');
  }
}

interface MikroShop extends ConnectedShop {
  readonly orm: MikroORM;
}

function open(url: string): Promise<MikroORM> {
  return MikroORM.init({
    clientUrl: url,
    entities: [TenantSchema, OrderSchema],
    extensions: [Migrator],
    pool: { min: 0, max: 8 },
    migrations: { migrationsList: [{ name: 'CreateTenants', class: CreateTenants }], snapshot: false },
    logger: () => undefined,
  });
}

const tenantOf = ({ tenantId, name, plan }: TenantRow): Tenant => ({ tenantId, name, plan });
const orderOf = ({ tenant, id, note, total, tags, detail, body, placed }: OrderRow): Order => ({
  tenantId: tenant.tenantId,
  id,
  note,
  total,
  tags,
  detail: detail ?? null,
  body,
  placed,
});

/** `root` gives an entity manager of its own for each request, as applications do; in a transaction it is that one's. */
function shopOf(root: EntityManager, inside = false): Shop {
  const manager = () => (inside ? root : root.fork());
  const reference = (em: EntityManager, tenantId: bigint) => em.getReference(TenantSchema, tenantId);
  return {
    async addTenants(list) {
      await manager().insertMany(
        TenantSchema,
        list.map((t) => ({ ...t })),
      );
    },
    async addOrders(list) {
      const em = manager();
      const add = async (t: EntityManager) => {
        for (const { tenantId, ...o } of list)
          t.persist(t.create(OrderSchema, { ...o, tags: [...o.tags], tenant: reference(t, tenantId) }));
        await t.flush();
      };
      if (inside) await add(em.fork({ keepTransactionContext: true }));
      else await add(em);
    },
    async order(tenantId, id) {
      const found = await manager().findOne(OrderSchema, { tenant: tenantId, id }, { refresh: true });
      return found && orderOf(found);
    },
    async orders(tenantId, { skip, take }) {
      const found = await manager().find(
        OrderSchema,
        { tenant: tenantId },
        { orderBy: { id: 'desc' }, offset: skip, limit: take, refresh: true },
      );
      return found.map(orderOf);
    },
    async ordersAmong(tenantId, ids) {
      return (await manager().find(OrderSchema, { tenant: tenantId, id: { $in: [...ids] } })).map(orderOf);
    },
    async tenantsAmong(ids) {
      return (await manager().find(TenantSchema, { tenantId: { $in: [...ids] } })).map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      return manager().nativeUpdate(OrderSchema, { tenant: tenantId, id }, { note });
    },
    async putTenant(t) {
      await manager().upsert(TenantSchema, { ...t });
    },
    async removeOrder(tenantId, id) {
      return manager().nativeDelete(OrderSchema, { tenant: tenantId, id });
    },
    async named(tenantId) {
      const found = await manager().find(
        OrderSchema,
        { tenant: tenantId },
        { populate: ['tenant'], orderBy: { id: 'asc' } },
      );
      return found.map((o) => ({ id: o.id, name: o.tenant.name }));
    },
    async totals(tenantId) {
      const em = manager();
      const [r] = await em
        .getConnection()
        .execute<{ sum: string | null }[]>('select sum(total) as sum from orders where tenant_id = ?', [`${tenantId}`]);
      return { count: await em.count(OrderSchema, { tenant: tenantId }), sum: r?.sum ?? '0' };
    },
    async lockTenant(tenantId) {
      const found = await manager().findOne(
        TenantSchema,
        { tenantId },
        { lockMode: LockMode.PESSIMISTIC_WRITE, refresh: true },
      );
      return found && tenantOf(found);
    },
    transaction: (work, isolation) =>
      root
        .fork()
        .transactional(
          (t) => work(shopOf(t as EntityManager, true)),
          isolation ? { isolationLevel: IsolationLevel.REPEATABLE_READ } : {},
        ),
    nested: (work) => root.transactional((t) => work(shopOf(t as EntityManager, true))),
  };
}

describeShop<MikroShop>(
  {
    async migrate(url) {
      const orm = await open(url);
      expect(await orm.migrator.up()).toHaveLength(1);
      await orm.migrator.down();
      expect(await orm.migrator.up()).toHaveLength(1);
      // What the entities have and the database has not.
      await orm.schema.updateSchema({ safe: true });
      expect(await orm.schema.getUpdateSchemaSQL({ safe: true })).toBe('');
      await orm.close();
    },
    async connect(url) {
      const orm = await open(url);
      return { ...shopOf(orm.em), orm, close: () => orm.close() };
    },
    refused: {
      'orm.schema.execute(DDL)': async ({ orm }) => {
        await orm.schema.execute('alter table orders add column extra int');
        await orm.schema.execute('alter table orders drop column extra');
      },
      'em.insertMany(Tenant, rows of several keys)': ({ orm }) =>
        orm.em.fork().insertMany(
          TenantSchema,
          [8n, 108n, 208n].map((tenantId) => ({ tenantId, name: 'new', plan: null })),
        ),
      'em.flush() of entities of several keys': async ({ orm }) => {
        const em = orm.em.fork();
        for (const tenantId of [9n, 109n, 209n])
          em.persist(em.create(TenantSchema, { tenantId, name: 'new', plan: null }));
        await em.flush();
      },
      'em.nativeUpdate(Order, { note }, …)': ({ orm }) =>
        orm.em.fork().nativeUpdate(OrderSchema, { note: 'order 1 of 7' }, { note: 'changed' }),
      'em.nativeDelete(Order, { note })': ({ orm }) => orm.em.fork().nativeDelete(OrderSchema, { note: 'changed' }),
    },
    gathered: {
      'em.find(Order, {}, { orderBy })': async ({ orm }) =>
        (await orm.em.fork().find(OrderSchema, {}, { orderBy: { placed: 1 } })).map((o) => wrap(o).toPOJO()),
      'em.findOne(Order, { note })': async ({ orm }) =>
        wrap(await orm.em.fork().findOneOrFail(OrderSchema, { note: 'order 1 of 107' })).toPOJO(),
      'em.find(Order, {}, { limit })': async ({ orm }) =>
        (await orm.em.fork().find(OrderSchema, {}, { orderBy: { placed: 1 }, limit: 2 })).map((o) => wrap(o).toPOJO()),
      'em.count(Order)': ({ orm }) => orm.em.fork().count(OrderSchema),
      'em.findAndCount(Order, {})': async ({ orm }) => {
        const [found, all] = await orm.em.fork().findAndCount(OrderSchema, {}, { orderBy: { placed: -1 }, limit: 4 });
        return [found.map((o) => wrap(o).toPOJO()), all];
      },
    },
    also(place, shop) {
      it('commits a transaction over keys of several shards', async () => {
        for (const id of TENANTS) {
          await shop().addTenants([tenant(id)]);
          await shop().addOrders([anOrder(id, 1n)]);
        }
        const changed = await shop()
          .orm.em.fork()
          .transactional(async (t) => {
            let rows = 0;
            for (const id of TENANTS) rows += await t.nativeUpdate(OrderSchema, { tenant: id }, { note: 'all' });
            return rows;
          });
        expect(changed).toBe(TENANTS.length);
        for (const id of TENANTS)
          expect((await shop().orders(id, { skip: 0, take: 10 })).map((o) => o.note)).toEqual(['all']);
      });

      it('writes what a unit of work has gathered, in one transaction', async () => {
        const [, key] = TENANTS;
        await shop().addTenants([tenant(key)]);
        await shop().addOrders([anOrder(key, 1n), anOrder(key, 2n), anOrder(key, 3n)]);
        const em = shop().orm.em.fork();
        const orders = await em.find(OrderSchema, { tenant: key }, { orderBy: { id: 'asc' } });
        for (const [i, order] of orders.entries()) order.note = `changed ${i}`;
        em.remove(orders[2] as OrderRow);
        await em.flush();
        const found = await shop().orders(key, { skip: 0, take: 10 });
        expect(
          found.map((o) => o.note),
          place().name,
        ).toEqual(['changed 1', 'changed 0']);
      });
    },
  },
  refusalsOf('MikroORM'),
);
