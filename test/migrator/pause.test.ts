import { afterEach, describe, expect, test } from 'vitest';
import { requestAbort, setPaused } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers, pauseOnEntering } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 50);
const { s } = moves;

describe('a pause', () => {
  const following = () =>
    withClient(s.urlTwo, async (c) => (await c.query('SELECT subenabled AS on FROM pg_subscription')).rows);

  const limit = () =>
    withClient(s.urlTwo, async (c) => {
      const found = await c.query("SELECT oid::regclass::text AS name FROM pg_class WHERE relname ~ '^pace_'");
      return Number((await c.query(`SELECT last_value AS n FROM ${found.rows[0]?.name}`)).rows[0].n);
    });

  afterEach(() => pauseOnEntering(s, null));

  test.each(['preparing', 'copying', 'catching_up', 'verifying', 'ready', 'cleaning'])(
    'in state %s stops what loads the servers, and nothing is lost when it goes on',
    async (state) => {
      const { writers } = await moves.startLoad(12, { stale: false });
      await pauseOnEntering(s, state);
      const id = await approveMove(s, [6n], null);
      moves.startMigrator();
      await moves.noted(id, /^paused$/);
      expect((await moves.load(id)).state).toBe(state);
      const on = await following();
      // A copy that has begun is stopped where it is, by the limit of its rate; its worker stays.
      const isStopped = state === 'copying' && (await limit()) === 1;
      expect(on).toEqual(['preparing', 'cleaning'].includes(state) ? [] : [{ on: isStopped }]);
      const before = writers.acknowledged;
      await waitFor(() => writers.acknowledged > before + 50, { what: 'writes meanwhile' });
      await pauseOnEntering(s, null);
      await setPaused(s.catalog.pool, id, false, 'test');
      expect(await moves.atRest(id)).toBe('done');
      await writers.stop();
      expect(writers.errors).toEqual([]);
      expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
      expect(await leftovers(s)).toEqual([]);
    },
  );

  test('does not keep a migration from being aborted, and outlives the migrator', async () => {
    await pauseOnEntering(s, 'catching_up');
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    await moves.noted(id, /^paused$/);
    await moves.stop();
    moves.startMigrator();
    await pauseOnEntering(s, null);
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    await expect(setPaused(s.catalog.pool, id, true, 'test')).rejects.toThrow(/is paused already/);
    expect(await audit(s, null, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});
