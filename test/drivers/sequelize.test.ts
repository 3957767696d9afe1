import { DataTypes, type Model, type ModelStatic, Op, QueryTypes, Sequelize, Transaction } from 'sequelize';
import { expect, it } from 'vitest';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS, tenant } from './scenarios.js';
import type { ConnectedShop, Order, Shop, Tenant } from './shop.js';

interface SequelizeShop extends ConnectedShop {
  readonly db: Models;
}

interface Models {
  readonly sequelize: Sequelize;
  readonly Tenant: ModelStatic<Model>;
  readonly Order: ModelStatic<Model>;
}

function open(url: string): Models {
  const sequelize = new Sequelize(url, { dialect: 'postgres', logging: false, pool: { max: 8, min: 0 } });
  const Tenant = sequelize.define(
    'Tenant',
    {
      tenantId: { type: DataTypes.BIGINT, primaryKey: true, field: 'tenant_id' },
      name: { type: DataTypes.TEXT, allowNull: false },
      plan: DataTypes.TEXT,
    },
    { tableName: 'tenants', timestamps: false },
  );
  const Order = sequelize.define(
    'Order',
    {
      tenantId: { type: DataTypes.BIGINT, primaryKey: true, field: 'tenant_id' },
      id: { type: DataTypes.BIGINT, primaryKey: true },
      note: DataTypes.TEXT,
      total: { type: DataTypes.DECIMAL(12, 2), allowNull: false, defaultValue: 0 },
      tags: { type: DataTypes.ARRAY(DataTypes.TEXT), allowNull: false, defaultValue: [] },
      detail: DataTypes.JSONB,
      body: DataTypes.BLOB,
      placed: { type: DataTypes.DATE, allowNull: false, defaultValue: DataTypes.NOW },
    },
    { tableName: 'orders', timestamps: false, indexes: [{ fields: ['tenant_id', 'placed'] }] },
  );
  Tenant.hasMany(Order, { foreignKey: { name: 'tenantId', field: 'tenant_id' }, as: 'orders' });
  Order.belongsTo(Tenant, { foreignKey: { name: 'tenantId', field: 'tenant_id' }, as: 'tenant' });
  return { sequelize, Tenant, Order };
}

const key = (tenantId: bigint, id: bigint) => ({ tenantId: `${tenantId}`, id: `${id}` });

function shopOf(db: Models, transaction: Transaction | null): Shop {
  const { sequelize, Tenant, Order } = db;
  const tenantOf = (m: Model): Tenant => {
    const r = m.get() as { tenantId: string; name: string; plan: string | null };
    return { tenantId: BigInt(r.tenantId), name: r.name, plan: r.plan };
  };
  const orderOf = (m: Model): Order => {
    const r = m.get() as Omit<Order, 'tenantId' | 'id'> & { tenantId: string; id: string };
    return { ...r, tenantId: BigInt(r.tenantId), id: BigInt(r.id) };
  };
  return {
    async addTenants(list) {
      await Tenant.bulkCreate(
        list.map((t) => ({ ...t, tenantId: `${t.tenantId}` })),
        { transaction },
      );
    },
    async addOrders(list) {
      await Order.bulkCreate(
        list.map((o) => ({ ...o, ...key(o.tenantId, o.id) })),
        { transaction },
      );
    },
    async order(tenantId, id) {
      const found = await Order.findOne({ where: key(tenantId, id), transaction });
      return found && orderOf(found);
    },
    async orders(tenantId, { skip, take }) {
      const where = { tenantId: `${tenantId}` };
      return (await Order.findAll({ where, order: [['id', 'DESC']], offset: skip, limit: take, transaction })).map(
        orderOf,
      );
    },
    async ordersAmong(tenantId, ids) {
      const where = { tenantId: `${tenantId}`, id: { [Op.in]: ids.map(String) } };
      return (await Order.findAll({ where, transaction })).map(orderOf);
    },
    async tenantsAmong(ids) {
      return (await Tenant.findAll({ where: { tenantId: ids.map(String) }, transaction })).map(tenantOf);
    },
    async setNote(tenantId, id, note) {
      return (await Order.update({ note }, { where: key(tenantId, id), transaction }))[0];
    },
    async putTenant(t) {
      await Tenant.upsert({ ...t, tenantId: `${t.tenantId}` }, { fields: ['tenantId', 'name', 'plan'], transaction });
    },
    async removeOrder(tenantId, id) {
      return Order.destroy({ where: key(tenantId, id), transaction });
    },
    async named(tenantId) {
      const found = await Order.findAll({
        where: { tenantId: `${tenantId}` },
        include: { association: 'tenant', attributes: ['name'] },
        order: ['id'],
        transaction,
      });
      return found.map((o) => ({
        id: BigInt(o.get('id') as string),
        name: (o.get('tenant') as Model).get('name') as string,
      }));
    },
    async totals(tenantId) {
      const where = { tenantId: `${tenantId}` };
      const sum = (await Order.sum('total', { where, transaction })) as number | null;
      return { count: await Order.count({ where, transaction }), sum: (sum ?? 0).toFixed(sum ? 2 : 0) };
    },
    async lockTenant(tenantId) {
      const found = await Tenant.findOne({
        where: { tenantId: `${tenantId}` },
        lock: Transaction.LOCK.UPDATE,
        transaction,
      });
      return found && tenantOf(found);
    },
    transaction: (work, isolation) =>
      sequelize.transaction(isolation ? { isolationLevel: Transaction.ISOLATION_LEVELS.REPEATABLE_READ } : {}, (t) =>
        work(shopOf(db, t)),
      ),
    nested: (work) => sequelize.transaction({ transaction }, (t) => work(shopOf(db, t))),
  };
}

describeShop<SequelizeShop>(
  {
    async migrate(url) {
      const { sequelize, Tenant } = open(url);
      await Tenant.sync();
      const queries = sequelize.getQueryInterface();
      await queries.removeColumn('tenants', 'plan');
      await sequelize.sync({ alter: true });
      await sequelize.sync({ alter: true });
      expect(Object.keys(await queries.describeTable('tenants'))).toEqual(['tenant_id', 'name', 'plan']);
      await sequelize.close();
    },
    async connect(url) {
      const db = open(url);
      return { ...shopOf(db, null), db, close: () => db.sequelize.close() };
    },
    refused: {
      'queryInterface.addColumn(…)': async ({ db }) => {
        await db.sequelize.getQueryInterface().addColumn('tenants', 'extra', DataTypes.TEXT);
        await db.sequelize.getQueryInterface().removeColumn('tenants', 'extra');
      },
      'Tenant.bulkCreate(rows of several keys)': ({ db }) =>
        db.Tenant.bulkCreate(['8', '108', '208'].map((tenantId) => ({ tenantId, name: 'new' }))),
      'Tenant.findOrCreate({ where: key })': ({ db }) =>
        db.Tenant.findOrCreate({ where: { tenantId: '110' }, defaults: { name: 'new' } }),
      'Order.update(…, { where: { note } })': ({ db }) =>
        db.Order.update({ note: 'changed' }, { where: { note: 'order 1 of 7' } }),
      'Order.destroy({ where: { note } })': ({ db }) => db.Order.destroy({ where: { note: 'changed' } }),
      'Order.truncate()': ({ db }) => db.Order.truncate(),
    },
    gathered: {
      'Order.findAll({ order })': ({ db }) => db.Order.findAll({ order: ['placed'], raw: true }),
      'Order.findOne({ where: { note } })': ({ db }) =>
        db.Order.findOne({ where: { note: 'order 1 of 107' }, raw: true }),
      'Order.findAll({ limit })': ({ db }) => db.Order.findAll({ order: ['placed'], limit: 2, raw: true }),
      'Order.count()': ({ db }) => db.Order.count(),
      'Order.findAndCountAll()': ({ db }) =>
        db.Order.findAndCountAll({ order: [['placed', 'DESC']], offset: 1, limit: 3, raw: true }),
      'Order.max()': ({ db }) => db.Order.max('total'),
    },
    also(place, shop) {
      it('binds the parameters of SQL of its own', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const { sequelize } = shop().db;
        for (const id of TENANTS) {
          const found = await sequelize.query('SELECT name FROM tenants WHERE tenant_id = $key', {
            bind: { key: `${id}` },
            type: QueryTypes.SELECT,
          });
          expect(found, place().name).toEqual([{ name: `tenant ${id}` }]);
        }
      });
    },
  },
  refusalsOf('Sequelize'),
);
