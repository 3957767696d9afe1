import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { DriverSetting, PLACES, type Place } from '../support/driver-setting.js';
import type { Refusal } from './refusals.js';
import { anOrder, type ConnectedShop, messages, type Shop, sqlstate, type Tenant } from './shop.js';

/** A driver or ORM whose ways are tried. */
export interface Driver<C extends ConnectedShop> {
  /** Its own migration tool, or its own way to run the statements of one. */
  migrate(url: string): Promise<void>;
  connect(url: string): Promise<C>;
  /** Its statements that several shards refuse, by what REFUSALS calls them. */
  readonly refused: Readonly<Record<string, (shop: C) => Promise<unknown>>>;
  /** Its queries that need rows of several shards in one place, by what the application calls: what they give, as plain data, in one order. */
  readonly gathered: Readonly<Record<string, (shop: C) => Promise<unknown>>>;
  /** What only it has. */
  readonly also?: (place: () => Place, shop: () => C) => void;
}

/** One tenant on each of the three shards. */
export const TENANTS = [7n, 107n, 207n] as const;
const [A, B, C] = TENANTS;
const BULK = 1000;

/** Does the same with a driver on PostgreSQL itself, through the proxy on one shard, and on three. */
export function describeShop<T extends ConnectedShop>(driver: Driver<T>, refusals: readonly Refusal[]): void {
  let setting: DriverSetting;
  /** At PostgreSQL itself. */
  let plain: T;
  beforeAll(async () => {
    setting = await DriverSetting.start();
    const itself = setting.place('PostgreSQL itself');
    await setting.migrate(itself.name, driver.migrate);
    plain = await driver.connect(itself.url);
  });
  afterAll(async () => {
    await plain?.close();
    await setting?.stop();
  });

  describe.each(PLACES)('%s', (name) => {
    let place: Place;
    let shop: T;

    beforeAll(async () => {
      place = setting.place(name);
      if (name !== 'PostgreSQL itself') await setting.migrate(name, driver.migrate);
      shop = await driver.connect(place.url);
    });
    afterAll(() => shop?.close());
    beforeEach(() => empty(place));

    it('gives back every value as it was', async () => {
      await addTenants(shop);
      for (const id of TENANTS) {
        await shop.addOrders([anOrder(id, 1n)]);
        await shop.addOrders([anOrder(id, 2n, { note: null, total: '-0.01', tags: [], detail: null, body: null })]);
        expect(await shop.order(id, 1n)).toEqual(anOrder(id, 1n));
        expect(await shop.order(id, 2n)).toEqual(
          anOrder(id, 2n, { note: null, total: '-0.01', tags: [], detail: null, body: null }),
        );
        expect(await shop.order(id, 3n)).toBeNull();
      }
    });

    it('keeps a bigint that no number holds', async () => {
      const id = 9_007_199_254_740_993n;
      await shop.addTenants([tenant(id)]);
      await shop.addOrders([anOrder(id, id)]);
      expect((await shop.order(id, id))?.id).toBe(id);
      expect(await rowsPerServer(place, 'orders')).toEqual(place.several ? [0, 0, 1] : [1]);
    });

    it('loads a thousand rows at once, onto the shard of their key', async () => {
      await addTenants(shop);
      await shop.addOrders(Array.from({ length: BULK }, (_, i) => anOrder(B, BigInt(i), { total: `${i}.50` })));
      expect(await rowsPerServer(place, 'orders')).toEqual(place.several ? [0, BULK, 0] : [BULK]);
      const last = await shop.orders(B, { skip: 10, take: 3 });
      expect(last.map((o) => o.id)).toEqual([989n, 988n, 987n]);
      expect(await shop.totals(B)).toEqual({ count: BULK, sum: '500000.00' });
      expect(await shop.totals(A)).toEqual({ count: 0, sum: '0' });
    });

    it('changes and removes rows, and says how many', async () => {
      await addTenants(shop);
      for (const id of TENANTS) await shop.addOrders([anOrder(id, 1n), anOrder(id, 2n)]);
      expect(await shop.setNote(C, 2n, "it's changed")).toBe(1);
      expect(await shop.setNote(C, 3n, 'nothing')).toBe(0);
      expect((await shop.order(C, 2n))?.note).toBe("it's changed");
      expect((await shop.order(A, 2n))?.note).toBe('order 2 of 7');
      expect(await shop.removeOrder(B, 1n)).toBe(1);
      expect(await shop.removeOrder(B, 1n)).toBe(0);
      expect(await shop.order(B, 1n)).toBeNull();
      expect((await shop.orders(B, { skip: 0, take: 10 })).map((o) => o.id)).toEqual([2n]);
    });

    it('finds rows by a list within a key', async () => {
      await addTenants(shop);
      await shop.addOrders([1n, 2n, 3n, 4n].map((id) => anOrder(B, id)));
      const found = await shop.ordersAmong(B, [4n, 2n, 9n]);
      expect(found.map((o) => o.id).sort()).toEqual([2n, 4n]);
      expect(found.find((o) => o.id === 4n)).toEqual(anOrder(B, 4n));
    });

    it('finds rows by a list of keys, wherever they are', async () => {
      await addTenants(shop);
      expect(await shop.tenantsAmong([C])).toEqual([tenant(C)]);
      const found = await shop.tenantsAmong([...TENANTS, 8n]);
      expect([...found].sort((x, y) => Number(x.tenantId - y.tenantId))).toEqual(TENANTS.map((id) => tenant(id)));
    });

    it('inserts or updates', async () => {
      for (const id of TENANTS) {
        await shop.putTenant(tenant(id));
        await shop.putTenant({ tenantId: id, name: 'renamed', plan: null });
      }
      expect(await shop.tenantsAmong([B])).toEqual([{ tenantId: B, name: 'renamed', plan: null }]);
      expect(await rowsPerServer(place, 'tenants')).toEqual(place.several ? [1, 1, 1] : [3]);
    });

    it('joins', async () => {
      await addTenants(shop);
      for (const id of TENANTS) await shop.addOrders([anOrder(id, 1n), anOrder(id, 5n)]);
      expect(await shop.named(B)).toEqual([
        { id: 1n, name: 'tenant 107' },
        { id: 5n, name: 'tenant 107' },
      ]);
    });

    it('tells which constraint was violated, by SQLSTATE', async () => {
      await shop.addTenants([tenant(B)]);
      await shop.addOrders([anOrder(B, 1n)]);
      const duplicate = await caught(shop.addOrders([anOrder(B, 2n), anOrder(B, 1n)]));
      expect(sqlstate(duplicate)).toBe('23505');
      const orphan = await caught(shop.addOrders([anOrder(C, 1n)]));
      expect(sqlstate(orphan)).toBe('23503');
      // The connection is as good as before, and nothing was half done.
      expect((await shop.orders(B, { skip: 0, take: 10 })).map((o) => o.id)).toEqual([1n]);
    });

    it('commits, and rolls back what throws', async () => {
      await addTenants(shop);
      await shop.transaction(async (t) => {
        await t.addOrders([anOrder(B, 1n)]);
        expect((await t.order(B, 1n))?.id).toBe(1n);
        expect(await shop.order(B, 1n)).toBeNull();
      });
      expect((await shop.order(B, 1n))?.id).toBe(1n);
      const thrown = new Error('the application changed its mind');
      const error = await caught(
        shop.transaction(async (t) => {
          await t.setNote(B, 1n, 'never seen');
          await t.removeOrder(B, 1n);
          throw thrown;
        }),
      );
      expect(messages(error)).toContain(thrown.message);
      expect((await shop.order(B, 1n))?.note).toBe('order 1 of 107');
    });

    it('undoes the inner transaction and keeps the outer one', async ({ skip }) => {
      await addTenants(shop);
      let supported = true;
      await shop.transaction(async (t) => {
        await t.addOrders([anOrder(B, 1n)]);
        if (!t.nested) {
          supported = false;
          return;
        }
        const error = await caught(t.nested((n) => n.addOrders([anOrder(B, 2n), anOrder(B, 1n)])));
        expect(sqlstate(error)).toBe('23505');
        await t.nested((n) => n.addOrders([anOrder(B, 3n)]));
        await t.addOrders([anOrder(B, 4n)]);
      });
      if (!supported) skip('it has no nested transactions');
      expect((await shop.orders(B, { skip: 0, take: 10 })).map((o) => o.id)).toEqual([4n, 3n, 1n]);
    });

    it('fails with 40001 where two transactions cross, and succeeds when it tries again', async () => {
      await shop.addTenants([tenant(B)]);
      await shop.addOrders([anOrder(B, 1n)]);
      let attempts = 0;
      const attempt = () =>
        shop.transaction(async (t) => {
          attempts++;
          const before = await t.order(B, 1n);
          if (attempts === 1) await shop.setNote(B, 1n, 'by another');
          await t.setNote(B, 1n, `${before?.note}, then by this`);
        }, 'repeatable read');
      expect(sqlstate(await caught(attempt()))).toBe('40001');
      await attempt();
      expect((await shop.order(B, 1n))?.note).toBe('by another, then by this');
    });

    it('makes others wait for a locked row', async ({ skip }) => {
      await shop.addTenants([tenant(B)]);
      const done: string[] = [];
      let second: Promise<void> | null = null;
      let supported = true;
      await shop.transaction(async (t) => {
        if (!t.lockTenant) {
          supported = false;
          return;
        }
        expect(await t.lockTenant(B)).toEqual(tenant(B));
        second = shop.putTenant({ ...tenant(B), name: 'second' }).then(() => {
          done.push('second');
        });
        await t.putTenant({ ...tenant(B), name: 'first' });
        done.push('first');
      });
      if (!supported) skip('it has no row locks');
      await second;
      expect(done).toEqual(['first', 'second']);
      expect((await shop.tenantsAmong([B]))[0]?.name).toBe('second');
    });

    it('runs many transactions at once, each on its own', async () => {
      await addTenants(shop);
      await Promise.all(
        Array.from({ length: 30 }, (_, i) =>
          shop.transaction(async (t) => {
            const key = TENANTS[i % 3] as bigint;
            await t.addOrders([anOrder(key, BigInt(i))]);
            await t.setNote(key, BigInt(i), `by transaction ${i}`);
            const own = await t.orders(key, { skip: 0, take: 100 });
            expect(own.find((o) => o.id === BigInt(i))?.note).toBe(`by transaction ${i}`);
            expect(own.every((o) => o.tenantId === key)).toBe(true);
          }),
        ),
      );
      for (const key of TENANTS) expect((await shop.totals(key)).count).toBe(10);
    });

    it('commits a transaction over keys of several shards, and takes one back', async () => {
      const both = (thinksBetter: boolean) =>
        shop.transaction(async (t) => {
          await t.addTenants([tenant(A)]);
          await t.addTenants([tenant(B)]);
          if (thinksBetter) throw new Error('the application thinks better of it');
        });
      await expect(both(true)).rejects.toThrow('thinks better');
      const none = await rowsPerServer(place, 'tenants');
      expect(none.every((rows) => rows === 0)).toBe(true);
      await both(false);
      const rows = await rowsPerServer(place, 'tenants');
      expect(rows.filter((n) => n > 0)).toEqual(place.several ? [1, 1] : [2]);
    });

    // What several shards refuse works elsewhere, so that the refusals are the proxy's and not mistakes of ours.
    it.each(Object.keys(driver.refused))('refuses on three shards, and only there: %s', async (what) => {
      await addTenants(shop);
      for (const id of TENANTS) await shop.addOrders([anOrder(id, 1n)]);
      const action = driver.refused[what] as (shop: T) => Promise<unknown>;
      if (!place.several) return void (await action(shop));
      const before = await contents(place);
      const error = await caught(action(shop));
      expect(sqlstate(error)).toBe('0A000');
      expect(messages(error)).toContain(refusals.find((r) => r.what === what)?.message ?? 'something listed');
      expect(await contents(place)).toEqual(before);
    });

    it.each(Object.keys(driver.gathered))('answers as PostgreSQL itself does: %s', async (what) => {
      await empty(setting.place('PostgreSQL itself'));
      await fill(plain);
      if (name !== 'PostgreSQL itself') await fill(shop);
      const action = driver.gathered[what] as (shop: T) => Promise<unknown>;
      const expected = await action(plain);
      expect([[], {}, undefined, null]).not.toContainEqual(expected);
      expect(await action(shop)).toEqual(expected);
    });

    it('refuses what the list says, no more and no less', () => {
      expect(Object.keys(driver.refused).sort()).toEqual(refusals.map((r) => r.what).sort());
    });

    driver.also?.(
      () => place,
      () => shop,
    );
  });
}

export function tenant(tenantId: bigint): Tenant {
  return { tenantId, name: `tenant ${tenantId}`, plan: 'free' };
}

/** One statement for each, as statements for several shards cannot write. */
async function addTenants(shop: Shop): Promise<void> {
  for (const id of TENANTS) await shop.addTenants([tenant(id)]);
}

async function empty(place: Place): Promise<void> {
  for (const url of place.servers) await withClient(url, (c) => c.query('TRUNCATE orders, tenants CASCADE'));
}

/** Three orders of each tenant, whose order in time goes from shard to shard. */
async function fill(shop: Shop): Promise<void> {
  for (const [i, id] of TENANTS.entries()) {
    await shop.addTenants([{ ...tenant(id), plan: i === 1 ? null : 'free' }]);
    await shop.addOrders(
      [1n, 2n, 3n].map((n) =>
        anOrder(id, n, {
          note: n === 3n ? 'the last' : `order ${n} of ${id}`,
          total: `${n * id}.25`,
          placed: new Date(Date.UTC(2026, 1, 28 - 3 * Number(n) - i)),
        }),
      ),
    );
  }
}

export async function caught(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('it should have failed, and did not');
}

/** All rows that the servers have, asked without the proxy. */
async function contents(place: Place): Promise<unknown> {
  const all: unknown[] = [];
  for (const url of place.servers)
    all.push(
      await withClient(url, async (c) => [
        (await c.query('SELECT * FROM tenants ORDER BY 1')).rows,
        (await c.query('SELECT * FROM orders ORDER BY 1, 2')).rows,
      ]),
    );
  return all;
}

/** How many rows of a table each of the servers has, asked without the proxy. */
export async function rowsPerServer(place: Place, table: 'orders' | 'tenants'): Promise<number[]> {
  const counts: number[] = [];
  for (const url of place.servers)
    counts.push(
      await withClient(
        url,
        async (c) => (await c.query<{ n: number }>(`SELECT count(*)::int AS n FROM ${table}`)).rows[0]?.n ?? -1,
      ),
    );
  return counts;
}
