import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Session } from '../../proxy/session/session.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// What a proxy is answered when its lease has ended: the rows may have been moved, and removed, without it.

let s: Sharded;
let direct: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, leaseTtlMs: 1000 });
  direct = await superuser();
});
beforeEach(async () => {
  await s.flipTo(1_000_000); // nothing beyond
  await direct.query(`DELETE FROM tenants; INSERT INTO tenants VALUES (150, 'here')`);
  await s.reloaded();
});
afterAll(async () => {
  await direct.end();
  await s.stop();
});

/** Of the first shard, past the proxy. */
async function superuser(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: s.clusters[0].url('shop') });
  await client.connect();
  return client;
}

const READ = 'SELECT name FROM tenants WHERE tenant_id = 150';

/** Says `text`, by default asks for the row; it is answered when `go` has done what it does to the table. */
async function blocked(
  go: () => Promise<void>,
  client: pg.Client | null = null,
  text = READ,
): Promise<PromiseSettledResult<unknown>> {
  const asker = client ?? (await s.connect());
  asker.on('error', () => undefined);
  await direct.query('BEGIN; LOCK TABLE tenants, settings IN ACCESS EXCLUSIVE MODE');
  const asked = asker.query(text);
  const settled = Promise.allSettled([asked]).then(([result]) => result as PromiseSettledResult<unknown>);
  await waitFor(async () => (await waiting()) === 1, { what: 'the statement to wait' });
  await go();
  return settled;
}

async function waiting(): Promise<number> {
  const { rows } = await direct.query(
    `SELECT count(*)::int AS n FROM pg_locks WHERE NOT granted AND relation IN ('tenants'::regclass, 'settings'::regclass)`,
  );
  return rows[0].n;
}

/** While `work` is done, the proxy's lease has ended and cannot be renewed. */
async function withoutLease(work: () => Promise<void>): Promise<void> {
  const catalog = await s.catalog.pool.connect();
  try {
    await catalog.query('BEGIN; LOCK TABLE foreshard.proxy IN EXCLUSIVE MODE');
    const over = async () => {
      const { rows } = await catalog.query(
        'SELECT bool_and(lease_until < clock_timestamp()) AS over FROM foreshard.proxy',
      );
      return rows[0].over === true;
    };
    await waitFor(over, { what: 'the end of the lease' });
    await work();
  } finally {
    await catalog.query('ROLLBACK');
    catalog.release();
  }
}

describe('an answer that comes when the lease has ended', () => {
  it('is the client’s when the lease is back and nothing has moved', async () => {
    const result = await blocked(() =>
      withoutLease(async () => {
        await direct.query(`UPDATE tenants SET name = 'still here'; COMMIT`);
        await waitFor(async () => (await waiting()) === 0, { what: 'the answer' });
      }),
    );
    expect(result).toMatchObject({ status: 'fulfilled', value: { rows: [{ name: 'still here' }] } });
  });

  it('is not, when the rows have another owner since', async () => {
    const result = await blocked(() =>
      withoutLease(async () => {
        // As a migrator removes them, when no proxy that lives is on the old epoch any more.
        await direct.query('DELETE FROM tenants; COMMIT');
        await waitFor(async () => (await waiting()) === 0, { what: 'the answer' });
        await s.flipTo(100);
      }),
    );
    expect(result).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
  });

  describe('and the rows have left and come back meanwhile', () => {
    /** The table is free again while the rows are elsewhere; then they are back, and the proxy hears of both at once. */
    const away = () =>
      withoutLease(async () => {
        await direct.query('DELETE FROM tenants; COMMIT');
        await waitFor(async () => (await waiting()) === 0, { what: 'the answer' });
        await direct.query(`INSERT INTO tenants VALUES (150, 'here')`);
        await s.flipTo(100, 1_000_000);
      });

    it('is not the client’s', async () => {
      expect(await blocked(away)).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
    });

    it('is not either, when it comes from a lane', async () => {
      const client = await s.connect();
      const inLane = () => [...s.proxy.clients].some(({ session }) => session.lanes.lane !== null);
      const session = [...s.proxy.clients].at(-1)?.session as Session;
      const runsInALane = async () => {
        const before = session.activity.laneReads;
        await client.query(READ);
        return session.activity.laneReads > before;
      };
      // On a busy machine, or for having waited here, it may lose its place there.
      let ran = false;
      for (let tries = 0; !ran && tries < 50; tries++) {
        await waitFor(runsInALane, { what: 'the read to run in a lane' });
        const result = await blocked(async () => {
          ran = inLane();
          if (ran) await away();
          else await direct.query('COMMIT');
        }, client);
        if (ran) expect(result).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
      }
      expect(ran).toBe(true);
    });

    it('is not either, when it is of several shards', async () => {
      const result = await blocked(away, null, 'SELECT name FROM tenants');
      expect(result).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
    });

    it('is not either in a transaction', async () => {
      const client = await s.connect();
      await client.query('BEGIN');
      await client.query('SELECT FROM orders WHERE tenant_id = 150');
      expect(await blocked(away, client)).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
    });

    it('is unknown, when something was written', async () => {
      const write = `UPDATE tenants SET name = 'twice' WHERE tenant_id = 150`;
      expect(await blocked(away, null, write)).toMatchObject({ status: 'rejected', reason: { code: '08007' } });
    });

    it('is the client’s, when it has nothing to do with ranges', async () => {
      const client = await s.connect();
      const result = await blocked(
        async () => {
          await withoutLease(() => s.flipTo(100, 1_000_000));
          await s.reloaded();
          await direct.query('COMMIT');
        },
        client,
        'SELECT count(*)::int AS n FROM settings',
      );
      expect(result).toMatchObject({ status: 'fulfilled', value: { rows: [{ n: 0 }] } });
      await client.query('BEGIN');
      await client.query('SELECT count(*) FROM settings');
      await withoutLease(() => s.flipTo(100, 1_000_000));
      await client.query(READ);
      await client.query('COMMIT');
    });

    it('a transaction whose next statement waited for the lease is to be retried, and its session lives on', async () => {
      const client = await s.connect();
      await client.query('BEGIN');
      await client.query(READ);
      let asked: Promise<unknown> = Promise.resolve();
      await withoutLease(async () => {
        asked = expect(client.query(READ)).rejects.toMatchObject({ code: '40001', severity: 'ERROR' });
        const session = [...s.proxy.clients].at(-1)?.session as Session;
        await waitFor(() => session.lease.map.waits, { what: 'the statement to wait for the lease' });
        await s.flipTo(100, 1_000_000);
      });
      await asked;
      await client.query('ROLLBACK');
      expect((await client.query(READ)).rows).toEqual([{ name: 'here' }]);
    });

    it('a transaction that waited for its client meanwhile is to be retried', async () => {
      const client = await s.connect();
      await client.query('BEGIN');
      await client.query(READ);
      await withoutLease(() => s.flipTo(100, 1_000_000));
      await expect(client.query(READ)).rejects.toMatchObject({ code: '40001' });
      await client.query('ROLLBACK');
      expect((await client.query(READ)).rows).toEqual([{ name: 'here' }]);
    });
  });

  describe('when the lease does not come back', () => {
    let around: [Sharded, pg.Client];
    beforeAll(async () => {
      around = [s, direct];
      s = await Sharded.start({ splitAt: null, leaseTtlMs: 1000, holdTimeoutMs: 500 });
      direct = await superuser();
    });
    afterAll(async () => {
      await direct.end();
      await s.stop();
      [s, direct] = around;
    });

    /** The table is free again while the lease is over. */
    const unlocked = () =>
      withoutLease(async () => {
        await direct.query('COMMIT');
        const cut = async () =>
          (await direct.query('SELECT FROM pg_stat_activity WHERE usename = $1', ['app'])).rowCount === 0;
        await waitFor(cut, { what: 'the connection to be cut' });
      });

    it('a read fails, and its session lives on', async () => {
      const client = await s.connect();
      const result = await blocked(unlocked, client);
      expect(result).toMatchObject({ status: 'rejected', reason: { code: '57P03', severity: 'ERROR' } });
      const again = () => client.query(READ).then(({ rows }) => rows);
      expect(await waitFor(again, { what: 'the lease to be back' })).toEqual([{ name: 'here' }]);
    });

    it('a read with others in one Query fails as a whole', async () => {
      const client = await s.connect();
      const result = await blocked(unlocked, client, `SELECT 1; ${READ}; SELECT 2`);
      expect(result).toMatchObject({ status: 'rejected', reason: { code: '57P03', severity: 'ERROR' } });
    });

    it('a write ends the session: nobody knows what has become of it', async () => {
      const client = await s.connect();
      const result = await blocked(unlocked, client, `UPDATE tenants SET name = 'x' WHERE tenant_id = 150`);
      expect(result).toMatchObject({ status: 'rejected', reason: { code: '08007', severity: 'FATAL' } });
    });

    it('a transaction ends the session: it is lost with the connection', async () => {
      const client = await s.connect();
      await client.query('BEGIN');
      expect(await blocked(unlocked, client)).toMatchObject({ status: 'rejected', reason: { code: '08006' } });
      const inOne = await blocked(unlocked, await s.connect(), `BEGIN; ${READ}; SELECT 2`);
      expect(inOne).toMatchObject({ status: 'rejected', reason: { code: '08006' } });
    });
  });
});
