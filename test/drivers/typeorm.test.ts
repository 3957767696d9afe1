import {
  DataSource,
  type EntityManager,
  EntitySchema,
  In,
  type MigrationInterface,
  type QueryRunner,
  Table,
  TableColumn,
} from 'typeorm';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS, tenant } from './scenarios.js';
import { anOrder, type ConnectedShop, type Order, type Shop, type Tenant } from './shop.js';

const bigint = {
  from: (v: string | null) => (v === null ? null : BigInt(v)),
  to: (v: bigint) => (typeof v === 'bigint' ? `${v}` : v),
};

interface TenantRow extends Tenant {
  orders?: OrderRow[];
}
type OrderRow = { -readonly [K in keyof Order]: K extends 'tags' ? string[] : Order[K] } & { tenant?: TenantRow };

const TenantEntity = new EntitySchema<TenantRow>({
  name: 'Tenant',
  tableName: 'tenants',
  columns: {
    tenantId: { name: 'tenant_id', type: 'bigint', primary: true, transformer: bigint },
    name: { type: 'text' },
    plan: { type: 'text', nullable: true },
  },
  relations: { orders: { type: 'one-to-many', target: 'Order', inverseSide: 'tenant' } },
});

const OrderEntity = new EntitySchema<OrderRow>({
  name: 'Order',
  tableName: 'orders',
  columns: {
    tenantId: { name: 'tenant_id', type: 'bigint', primary: true, transformer: bigint },
    id: { type: 'bigint', primary: true, transformer: bigint },
    note: { type: 'text', nullable: true },
    total: { type: 'numeric', precision: 12, scale: 2, default: 0 },
    tags: { type: 'text', array: true, default: () => "'{}'" },
    detail: { type: 'jsonb', nullable: true },
    body: { type: 'bytea', nullable: true },
    placed: { type: 'timestamptz', default: () => 'now()' },
  },
  relations: {
    tenant: { type: 'many-to-one', target: 'Tenant', inverseSide: 'orders', joinColumn: { name: 'tenant_id' } },
  },
});

class CreateTenants1700000000000 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.createTable(
      new Table({
        name: 'tenants',
        columns: [
          { name: 'tenant_id', type: 'bigint', isPrimary: true },
          { name: 'name', type: 'text' },
        ],
      }),
    );
  }
  async down(runner: QueryRunner): Promise<void> {
    await runner.dropTable('tenants');
  }
}

class CreateOrders1700000001000 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.addColumn('tenants', new TableColumn({ name: 'plan', type: 'text', isNullable: true }));
    await runner.createTable(
      new Table({
        name: 'orders',
        columns: [
          { name: 'tenant_id', type: 'bigint', isPrimary: true },
          { name: 'id', type: 'bigint', isPrimary: true },
          { name: 'note', type: 'text', isNullable: true },
          { name: 'total', type: 'numeric', precision: 12, scale: 2, default: 0 },
          { name: 'tags', type: 'text', isArray: true, default: "'{}'" },
          { name: 'detail', type: 'jsonb', isNullable: true },
          { name: 'body', type: 'bytea', isNullable: true },
          { name: 'placed', type: 'timestamptz', default: 'now()' },
        ],
        foreignKeys: [
          { columnNames: ['tenant_id'], referencedTableName: 'tenants', referencedColumnNames: ['tenant_id'] },
        ],
      }),
    );
  }
  async down(runner: QueryRunner): Promise<void> {
    await runner.dropTable('orders');
    await runner.dropColumn('tenants', 'plan');
  }
}

interface TypeOrmShop extends ConnectedShop {
  readonly source: DataSource;
}

async function open(url: string): Promise<DataSource> {
  return new DataSource({
    type: 'postgres',
    url,
    poolSize: 8,
    entities: [TenantEntity, OrderEntity],
    migrations: [CreateTenants1700000000000, CreateOrders1700000001000],
  }).initialize();
}

function shopOf(manager: EntityManager): Shop {
  const tenants = manager.getRepository(TenantEntity);
  const orders = manager.getRepository(OrderEntity);
  const plain = ({ tenantId, id, note, total, tags, detail, body, placed }: OrderRow): Order => ({
    tenantId,
    id,
    note,
    total,
    tags,
    detail,
    body,
    placed,
  });
  const plainTenant = ({ tenantId, name, plan }: TenantRow): Tenant => ({ tenantId, name, plan });
  return {
    async addTenants(list) {
      await tenants.insert(list.map((t) => ({ ...t })));
    },
    async addOrders(list) {
      await orders.insert(list.map((o) => ({ ...o, tags: [...o.tags] })) as never);
    },
    async order(tenantId, id) {
      const found = await orders.findOneBy({ tenantId, id });
      return found && plain(found);
    },
    async orders(tenantId, { skip, take }) {
      return (await orders.find({ where: { tenantId }, order: { id: 'DESC' }, skip, take })).map(plain);
    },
    async ordersAmong(tenantId, ids) {
      return (await orders.findBy({ tenantId, id: In([...ids]) })).map(plain);
    },
    async tenantsAmong(ids) {
      return (await tenants.findBy({ tenantId: In([...ids]) })).map(plainTenant);
    },
    async setNote(tenantId, id, note) {
      return (await orders.update({ tenantId, id }, { note })).affected ?? -1;
    },
    async putTenant(t) {
      await tenants.upsert({ ...t }, ['tenantId']);
    },
    async removeOrder(tenantId, id) {
      return (await orders.delete({ tenantId, id })).affected ?? -1;
    },
    async named(tenantId) {
      const rows = await orders.find({ where: { tenantId }, relations: { tenant: true }, order: { id: 'ASC' } });
      return rows.map((o) => ({ id: o.id, name: o.tenant?.name ?? '' }));
    },
    async totals(tenantId) {
      const sum = await orders
        .createQueryBuilder('o')
        .select('sum(o.total)', 'sum')
        .where('o.tenantId = :tenantId', { tenantId: `${tenantId}` })
        .getRawOne<{ sum: string | null }>();
      return { count: await orders.countBy({ tenantId }), sum: sum?.sum ?? '0' };
    },
    async lockTenant(tenantId) {
      const found = await tenants.findOne({ where: { tenantId }, lock: { mode: 'pessimistic_write' } });
      return found && plainTenant(found);
    },
    transaction: (work, isolation) =>
      isolation
        ? manager.transaction('REPEATABLE READ', (t) => work(shopOf(t)))
        : manager.transaction((t) => work(shopOf(t))),
    nested: (work) => manager.transaction((t) => work(shopOf(t))),
  };
}

describeShop<TypeOrmShop>(
  {
    async migrate(url) {
      const source = await open(url);
      expect((await source.runMigrations()).map((m) => m.name)).toHaveLength(2);
      await source.undoLastMigration();
      expect(await source.runMigrations({ transaction: 'each' })).toHaveLength(1);
      expect(await source.runMigrations()).toHaveLength(0);
      await source.destroy();
    },
    async connect(url) {
      const source = await open(url);
      return { ...shopOf(source.manager), source, close: () => source.destroy() };
    },
    refused: {
      "queryRunner.addColumn('orders', …)": async ({ source }) => {
        const runner = source.createQueryRunner();
        try {
          await runner.addColumn('orders', new TableColumn({ name: 'extra', type: 'int', isNullable: true }));
          await runner.dropColumn('orders', 'extra');
        } finally {
          await runner.release();
        }
      },
      'repository.insert(rows of several keys)': ({ source }) =>
        source.getRepository(TenantEntity).insert([8n, 108n, 208n].map((tenantId) => ({ tenantId, name: 'new' }))),
      'repository.save(entities of several keys)': ({ source }) =>
        source
          .getRepository(TenantEntity)
          .save([9n, 109n, 209n].map((tenantId) => ({ tenantId, name: 'new', plan: null }))),
      'repository.update({ note }, …)': ({ source }) =>
        source.getRepository(OrderEntity).update({ note: 'order 1 of 7' }, { note: 'changed' }),
      'repository.delete({ note })': ({ source }) => source.getRepository(OrderEntity).delete({ note: 'changed' }),
      'repository.clear()': ({ source }) => source.getRepository(OrderEntity).clear(),
    },
    gathered: {
      'repository.find({ order })': ({ source }) =>
        source.getRepository(OrderEntity).find({ order: { placed: 'ASC' } }),
      'repository.findOneBy({ note })': ({ source }) =>
        source.getRepository(OrderEntity).findOneBy({ note: 'order 1 of 107' }),
      'repository.find({ order, skip, take })': ({ source }) =>
        source.getRepository(OrderEntity).find({ order: { placed: 'ASC' }, skip: 1, take: 3 }),
      'repository.find({ relations, order, take })': ({ source }) =>
        source.getRepository(TenantEntity).find({ relations: { orders: true }, order: { tenantId: 'DESC' }, take: 2 }),
      'repository.count()': ({ source }) => source.getRepository(OrderEntity).count(),
      'repository.findAndCount()': ({ source }) =>
        source.getRepository(OrderEntity).findAndCount({ order: { placed: 'DESC' }, take: 2 }),
      'repository.existsBy({ note })': ({ source }) =>
        source.getRepository(OrderEntity).existsBy({ note: 'order 1 of 207' }),
      'repository.sum()': ({ source }) => source.getRepository(OrderEntity).sum('total' as never),
    },
    also(place, shop) {
      it('finds by the catalogs that the schema is what the entities say', async () => {
        const log = await shop().source.driver.createSchemaBuilder().log();
        const tables = new Set(
          log.upQueries.map((q) => q.query).filter((q) => /CREATE TABLE|ADD COLUMN|DROP COLUMN/i.test(q)),
        );
        expect([...tables]).toEqual([]);
      });

      it('saves an entity with what changed in it', async () => {
        const [, key] = TENANTS;
        await shop().addTenants([tenant(key)]);
        const orders = shop().source.getRepository(OrderEntity);
        await orders.save({ ...anOrder(key, 1n), tags: ['a'] } as OrderRow);
        const order = await orders.findOneByOrFail({ tenantId: key, id: 1n });
        order.note = 'saved again';
        await orders.save(order);
        expect(await shop().order(key, 1n)).toEqual(anOrder(key, 1n, { tags: ['a'], note: 'saved again' }));
      });

      it('streams rows', async () => {
        const [, key] = TENANTS;
        await shop().addTenants([tenant(key)]);
        await shop().addOrders(Array.from({ length: 300 }, (_, i) => anOrder(key, BigInt(i))));
        const stream = await shop()
          .source.getRepository(OrderEntity)
          .createQueryBuilder('o')
          .where('o.tenantId = :key', { key: `${key}` })
          .orderBy('o.id')
          .stream();
        const ids: string[] = [];
        for await (const row of stream) ids.push((row as { o_id: string }).o_id);
        expect(ids, place().name).toEqual(Array.from({ length: 300 }, (_, i) => `${i}`));
      });
    },
  },
  refusalsOf('TypeORM'),
);
