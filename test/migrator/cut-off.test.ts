import { expect, test } from 'vitest';
import { requestEnd } from '../../migrator/migration-requests.js';
import { Relay } from '../chaos/relay.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 50);
const { s } = moves;

/** From now on the shard is reached through a network of ours. */
async function throughRelay(shard: 'one' | 'two'): Promise<Relay> {
  const relay = await Relay.start(s[shard].port);
  moves.atStop(() => relay.close());
  const url = new URL(shard === 'one' ? s.urlOne : s.urlTwo);
  url.port = `${relay.port}`;
  await s.catalog.pool.query('UPDATE foreshard.shard SET url = $2 WHERE name = $1', [shard, url.href]);
  return relay;
}

/** The next subscription there is kept waiting. @returns what waits until it is, and gives what lets it go on */
async function holdSubscription(url: string): Promise<() => Promise<() => Promise<unknown>>> {
  const session = await moves.session(url);
  await session.query('BEGIN; LOCK TABLE pg_subscription IN SHARE MODE');
  return async () => {
    const waiting = "SELECT FROM pg_locks WHERE relation = 'pg_subscription'::regclass AND NOT granted";
    await waitFor(async () => (await session.query(waiting)).rowCount === 1, { what: 'the subscription' });
    return () => session.query('ROLLBACK');
  };
}

test('a source that the destination cannot reach for a while is tried again', async () => {
  const relay = await throughRelay('one');
  const held = await holdSubscription(s.urlTwo);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  const goOn = await held();
  relay.refuse(true);
  await goOn();
  await moves.noted(id, /cannot use shard "(one|two)"/);
  relay.refuse(false);
  expect(await moves.atRest(id)).toBe('done');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('and so is the new owner, so that the way back is not lost for that', async () => {
  const relay = await throughRelay('two');
  const held = await holdSubscription(s.urlOne);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ wayBackMs: 3_600_000 });
  const goOn = await held();
  relay.refuse(true);
  await goOn();
  await moves.noted(id, /cannot use shard "(one|two)"/);
  relay.refuse(false);
  await moves.noted(id, /^the way back is open/);
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect(await audit(s, null, () => false)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});
