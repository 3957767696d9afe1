import { readFile } from 'node:fs/promises';
import { PrismaPg } from '@prisma/adapter-pg';
import { expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { type Prisma, PrismaClient } from './prisma/generated/client.js';
import { refusalsOf } from './refusals.js';
import { describeShop, TENANTS, tenant } from './scenarios.js';
import { anOrder, type ConnectedShop, type Order, type Shop } from './shop.js';

interface PrismaShop extends ConnectedShop {
  readonly prisma: PrismaClient;
}

type Row = Prisma.OrderGetPayload<object>;

const orderOf = (r: Row): Order => ({
  ...r,
  total: r.total.toFixed(2),
  body: r.body && Buffer.from(r.body),
});

function shopOf(db: Prisma.TransactionClient): Shop {
  const at = (tenantId: bigint, id: bigint) => ({ tenantId_id: { tenantId, id } });
  return {
    async addTenants(list) {
      await db.tenant.createMany({ data: [...list] });
    },
    async addOrders(list) {
      await db.order.createMany({
        data: list.map(({ detail, body, ...o }) => ({
          ...o,
          tags: [...o.tags],
          ...(detail === null ? {} : { detail: detail as Prisma.InputJsonValue }),
          body: body && new Uint8Array(body),
        })),
      });
    },
    async order(tenantId, id) {
      const found = await db.order.findUnique({ where: at(tenantId, id) });
      return found && orderOf(found);
    },
    async orders(tenantId, { skip, take }) {
      return (await db.order.findMany({ where: { tenantId }, orderBy: { id: 'desc' }, skip, take })).map(orderOf);
    },
    async ordersAmong(tenantId, ids) {
      return (await db.order.findMany({ where: { tenantId, id: { in: [...ids] } } })).map(orderOf);
    },
    async tenantsAmong(ids) {
      return db.tenant.findMany({ where: { tenantId: { in: [...ids] } } });
    },
    async setNote(tenantId, id, note) {
      return (await db.order.updateMany({ where: { tenantId, id }, data: { note } })).count;
    },
    async putTenant({ tenantId, name, plan }) {
      await db.tenant.upsert({
        where: { tenantId },
        create: { tenantId, name, plan },
        update: { name, plan },
      });
    },
    async removeOrder(tenantId, id) {
      return (await db.order.deleteMany({ where: { tenantId, id } })).count;
    },
    async named(tenantId) {
      const found = await db.order.findMany({
        where: { tenantId },
        include: { tenant: true },
        orderBy: { id: 'asc' },
      });
      return found.map((o) => ({ id: o.id, name: o.tenant.name }));
    },
    async totals(tenantId) {
      const r = await db.order.aggregate({ where: { tenantId }, _count: true, _sum: { total: true } });
      return { count: r._count, sum: r._sum.total?.toFixed(2) ?? '0' };
    },
    transaction: (work, isolation) =>
      (db as PrismaClient).$transaction((t) => work(shopOf(t)), isolation ? { isolationLevel: 'RepeatableRead' } : {}),
  };
}

describeShop<PrismaShop>(
  {
    /** `prisma migrate` needs a program that is not on npm; this is what it does with a migration: its text as one Query. */
    async migrate(url) {
      const file = new URL('./prisma/migrations/20260101000000_shop/migration.sql', import.meta.url);
      const sql = await readFile(file, 'utf8');
      await withClient(url, async (client) => {
        await client.query('SELECT pg_advisory_lock(72707369)');
        await client.query(sql);
      });
    },
    async connect(url) {
      const adapter = new PrismaPg({ connectionString: url, max: 8 });
      // Its own are 2 and 5 s, which is not what is tested here.
      const transactionOptions = { maxWait: 60_000, timeout: 60_000 };
      const prisma = new PrismaClient({ adapter, transactionOptions });
      await prisma.$connect();
      return { ...shopOf(prisma), prisma, close: () => prisma.$disconnect() };
    },
    refused: {
      'prisma.tenant.createMany(rows of several keys)': ({ prisma }) =>
        prisma.tenant.createMany({ data: [8n, 108n, 208n].map((tenantId) => ({ tenantId, name: 'new' })) }),
      'prisma.order.updateMany({ where: { note } })': ({ prisma }) =>
        prisma.order.updateMany({ where: { note: 'order 1 of 7' }, data: { note: 'changed' } }),
      'prisma.order.deleteMany({ where: { note } })': ({ prisma }) =>
        prisma.order.deleteMany({ where: { note: 'changed' } }),
      'prisma.$executeRaw: ALTER TABLE orders': async ({ prisma }) => {
        await prisma.$executeRaw`ALTER TABLE orders ADD COLUMN extra int`;
        await prisma.$executeRaw`ALTER TABLE orders DROP COLUMN extra`;
      },
    },
    gathered: {
      'prisma.tenant.findMany({ skip })': ({ prisma }) => prisma.tenant.findMany({ skip: 1 }),
      'prisma.order.findFirst({ where: { note } })': ({ prisma }) =>
        prisma.order.findFirst({ where: { note: 'order 1 of 107' } }),
      'prisma.tenant.findMany({ orderBy, include })': ({ prisma }) =>
        prisma.tenant.findMany({ orderBy: { name: 'asc' }, include: { orders: { orderBy: { placed: 'asc' } } } }),
      'prisma.order.count()': ({ prisma }) => prisma.order.count(),
      'prisma.order.aggregate(…)': ({ prisma }) =>
        prisma.order.aggregate({ _sum: { total: true }, _max: { placed: true } }),
      'prisma.tenant.groupBy(…)': ({ prisma }) =>
        prisma.tenant.groupBy({ by: ['plan'], _count: true, orderBy: { plan: 'asc' } }),
    },
    also(place, shop) {
      it('commits a transaction over keys of several shards', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const { prisma } = shop();
        const changed = await prisma.$transaction(
          TENANTS.map((tenantId) => prisma.tenant.updateMany({ where: { tenantId }, data: { name: 'all' } })),
        );
        expect(changed.map(({ count }) => count)).toEqual(TENANTS.map(() => 1));
        for (const tenantId of TENANTS)
          expect(await prisma.tenant.findUnique({ where: { tenantId } })).toMatchObject({ name: 'all' });
      });

      it('reads a tenant with its orders', async () => {
        const [, tenantId] = TENANTS;
        await shop().addTenants([tenant(tenantId)]);
        await shop().addOrders([anOrder(tenantId, 1n), anOrder(tenantId, 2n)]);
        const found = await shop().prisma.tenant.findUnique({
          where: { tenantId },
          include: { orders: { select: { note: true }, orderBy: { id: 'asc' } } },
        });
        expect(found, place().name).toEqual({
          ...tenant(tenantId),
          orders: [{ note: 'order 1 of 107' }, { note: 'order 2 of 107' }],
        });
      });

      it('reads all tenants, although it sends OFFSET 0', async () => {
        for (const id of TENANTS) await shop().addTenants([tenant(id)]);
        const found = await shop().prisma.tenant.findMany();
        for (const id of TENANTS) expect(found, place().name).toContainEqual(tenant(id));
      });

      it('writes a tenant with its orders, all or nothing', async () => {
        const { prisma } = shop();
        for (const tenantId of TENANTS) {
          const data = { ...tenant(tenantId), orders: { create: [{ id: 1n }, { id: 2n }] } };
          expect((await prisma.tenant.create({ data, include: { orders: true } })).orders).toHaveLength(2);
          const twice = { ...tenant(tenantId + 1n), orders: { create: [{ id: 1n }, { id: 1n }] } };
          await expect(prisma.tenant.create({ data: twice })).rejects.toMatchObject({ code: 'P2002' });
          expect(await prisma.tenant.findUnique({ where: { tenantId: tenantId + 1n } })).toBeNull();
        }
      });

      it('runs several statements in one transaction, given as a list', async () => {
        const { prisma } = shop();
        const [, tenantId] = TENANTS;
        const [created, count] = await prisma.$transaction([
          prisma.tenant.create({ data: tenant(tenantId) }),
          prisma.tenant.count({ where: { tenantId } }),
        ]);
        expect([created, count]).toEqual([tenant(tenantId), 1]);
      });

      it('runs SQL of its own', async () => {
        const { prisma } = shop();
        for (const tenantId of TENANTS) {
          expect(await prisma.$executeRaw`INSERT INTO tenants (tenant_id, name) VALUES (${tenantId}, 'raw')`).toBe(1);
          expect(await prisma.$queryRaw`SELECT name FROM tenants WHERE tenant_id = ${tenantId}`).toEqual([
            { name: 'raw' },
          ]);
        }
      });
    },
  },
  refusalsOf('Prisma'),
);
