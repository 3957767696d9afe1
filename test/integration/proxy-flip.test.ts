import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createHold, dropHold, holdStatus } from '../../topology/catalog/leases.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
let keyspace: Keyspace;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null });
  keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
});
afterAll(() => s.stop());

function hold(deadlineMs: number): Promise<bigint> {
  return createHold(s.catalog.pool, {
    migrationId: 1n,
    keyspace,
    lo: [100n],
    hi: null,
    referenceTables: true,
    deadlineMs,
  });
}

const acked = async (id: bigint) => {
  const { remainingMs, waitingFor } = await holdStatus(s.catalog.pool, id);
  return remainingMs > 0 && waitingFor.length === 0;
};

/** Whether a promise has settled by now. */
async function settled(p: Promise<unknown>): Promise<boolean> {
  const pending = Symbol();
  const first = await Promise.race([
    p.then(
      () => 0,
      () => 0,
    ),
    new Promise((r) => setImmediate(() => r(pending))),
  ]);
  return first !== pending;
}

describe('a hold', () => {
  it('lets nothing new start on its interval, and everything beside it go on', async () => {
    const c = await s.connect();
    const other = await s.connect();
    await c.query(`INSERT INTO tenants VALUES (150, 'before')`);
    const id = await hold(20_000);
    await waitFor(() => acked(id), { what: 'the acknowledgement' });
    const held = c.query(`UPDATE tenants SET name = 'after' WHERE tenant_id = 150`);
    const everything = other.query('UPDATE tenants SET name = name');
    const beside = await s.connect();
    await beside.query(`INSERT INTO tenants VALUES (1, 'beside')`);
    expect((await beside.query('SELECT name FROM tenants WHERE tenant_id = 1')).rows).toEqual([{ name: 'beside' }]);
    expect(await settled(held)).toBe(false);
    expect(await settled(everything)).toBe(false);
    await dropHold(s.catalog.pool, id);
    expect((await held).rowCount).toBe(1);
    expect((await everything).rowCount).toBe(2);
  });

  it('is acknowledged only when the transactions open on it are over, and does not stop those', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    const id = await hold(20_000);
    // The statement beside it proves that the proxy has seen the hold: a new one on the interval waits.
    const other = await s.connect();
    const held = other.query('SELECT name FROM tenants WHERE tenant_id = 151');
    await c.query(`UPDATE tenants SET name = 'in the transaction' WHERE tenant_id = 150`);
    expect(await acked(id)).toBe(false);
    await c.query('COMMIT');
    await waitFor(() => acked(id), { what: 'the acknowledgement' });
    await dropHold(s.catalog.pool, id);
    await held;
  });

  it('ends by itself at its deadline', async () => {
    const id = await hold(300);
    const c = await s.connect();
    await waitFor(async () => (await holdStatus(s.catalog.pool, id)).remainingMs === 0, { what: 'the deadline' });
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 150')).rowCount).toBe(1);
    await dropHold(s.catalog.pool, id);
  });

  it('lets a client cancel what waits for it', async () => {
    const id = await hold(20_000);
    await waitFor(() => acked(id), { what: 'the acknowledgement' });
    const c = await s.connect();
    const held = c.query('SELECT name FROM tenants WHERE tenant_id = 150').then(
      () => 'answered',
      (e: { code: string }) => e.code,
    );
    await s.cancel(c);
    expect(await held).toBe('57014');
    await dropHold(s.catalog.pool, id);
    expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
  });
});

describe('a flip', () => {
  it('sends held statements to the new owner, and replays a write that came too late unseen', async () => {
    // The guard at the source, as a migration leaves it behind for proxies with an old map.
    await s.onShard(
      0,
      `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'moved' USING ERRCODE = 'SH001'; END $$;
       CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tenants FOR EACH ROW WHEN (NEW.tenant_id >= 100) EXECUTE FUNCTION refuse();
       CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON orders FOR EACH ROW WHEN (NEW.tenant_id >= 100) EXECUTE FUNCTION refuse()`,
    );
    const late = [await s.connect(), await s.connect(), await s.connect()] as const;
    const writes = [
      late[0].query(`INSERT INTO tenants VALUES (200, 'simple')`),
      late[1].query('INSERT INTO tenants VALUES ($1, $2) RETURNING name', [201, 'extended']),
      (async () => {
        await late[2].query('BEGIN');
        await late[2].query(`INSERT INTO tenants VALUES (202, 'in a transaction')`);
        await late[2].query('INSERT INTO orders VALUES ($1, 1, $2)', [202, 'x']);
        return late[2].query('COMMIT');
      })(),
    ];
    await s.flipTo(100);
    const [simple, extended, transaction] = await Promise.all(writes);
    expect(simple?.rowCount).toBe(1);
    expect(extended?.rows).toEqual([{ name: 'extended' }]);
    expect(transaction?.command).toBe('COMMIT');
    expect(await s.onShard(1, 'SELECT tenant_id::int AS id FROM tenants ORDER BY 1')).toEqual([
      { id: 200 },
      { id: 201 },
      { id: 202 },
    ]);
    expect(await s.onShard(1, 'SELECT count(*)::int AS n FROM orders')).toEqual([{ n: 1 }]);
    expect(await s.onShard(0, 'SELECT count(*)::int AS n FROM tenants WHERE tenant_id >= 200')).toEqual([{ n: 0 }]);
  });

  describe('brings rows to a shard where a transaction is open', () => {
    /** The range from 200 on comes back to the first shard, with a row that its new owner has got. */
    async function bringBack(row: number): Promise<void> {
      await s.onShard(0, 'ALTER TABLE tenants DISABLE TRIGGER ALL');
      await s.onShard(0, `INSERT INTO tenants VALUES (${row}, 'has come')`);
      await s.flipTo(1000);
      const other = await s.connect();
      await waitFor(async () => (await other.query(`SELECT FROM tenants WHERE tenant_id = ${row}`)).rowCount === 1, {
        what: 'the new map',
      });
      await other.end();
    }
    async function takeAway(): Promise<void> {
      await s.flipTo(100);
      await s.onShard(0, 'ALTER TABLE tenants ENABLE TRIGGER ALL');
    }

    it.each(['REPEATABLE READ', 'SERIALIZABLE'])(
      '%s: its snapshot has none of them, so it is to be retried',
      async (level) => {
        const row = level === 'SERIALIZABLE' ? 301 : 300;
        const c = await s.connect();
        await c.query(`BEGIN ISOLATION LEVEL ${level}`);
        await c.query('SELECT name FROM tenants WHERE tenant_id = 90');
        await bringBack(row);
        expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
        await expect(c.query('SELECT name FROM tenants WHERE tenant_id = $1', [row])).rejects.toMatchObject({
          code: '40001',
          message: 'the range of these rows has come to this shard since the transaction began',
        });
        await c.query('ROLLBACK');
        expect((await c.query(`SELECT name FROM tenants WHERE tenant_id = ${row}`)).rows).toEqual([
          { name: 'has come' },
        ]);
        await takeAway();
      },
    );

    it('READ COMMITTED: it sees them', async () => {
      const c = await s.connect();
      await c.query('BEGIN');
      await c.query('SELECT name FROM tenants WHERE tenant_id = 90');
      await bringBack(302);
      expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 302')).rows).toEqual([{ name: 'has come' }]);
      expect((await c.query('SELECT name FROM tenants WHERE tenant_id = $1', [302])).rows).toEqual([
        { name: 'has come' },
      ]);
      await c.query('COMMIT');
      await takeAway();
    });
  });

  it('tells a transaction whose rows have gone to be retried', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query('SELECT name FROM tenants WHERE tenant_id = 90');
    await s.flipTo(80);
    await waitFor(
      async () =>
        (
          await s.catalog.pool.query(
            `SELECT FROM foreshard.meta m WHERE NOT EXISTS (SELECT FROM foreshard.proxy p WHERE p.epoch_acked >= m.epoch)`,
          )
        ).rowCount === 1,
      { what: 'an epoch that is not acknowledged while the transaction is open' },
    );
    const refusal = await waitFor(
      () =>
        c.query('SELECT name FROM tenants WHERE tenant_id = 90').then(
          () => null,
          (error: { code: string }) => error,
        ),
      { what: 'the refusal' },
    );
    expect(refusal.code).toBe('40001');
    await c.query('ROLLBACK');
    await waitFor(
      async () =>
        (await s.catalog.pool.query(`SELECT FROM foreshard.meta m JOIN foreshard.proxy p ON p.epoch_acked >= m.epoch`))
          .rowCount === 1,
      { what: 'the acknowledgement' },
    );
  });
});
