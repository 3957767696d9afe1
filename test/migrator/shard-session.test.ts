import { afterAll, beforeAll, expect, it } from 'vitest';
import { ShardSession, ShardUnavailableError } from '../../migrator/shard-session.js';
import type { Shard } from '../../topology/topology.js';
import { Relay } from '../chaos/relay.js';
import { startTestCluster } from '../support/cluster.js';

let relay: Relay;
let shard: Shard;

beforeAll(async () => {
  const cluster = await startTestCluster();
  relay = await Relay.start(cluster.port);
  const url = cluster.url().replace(`:${cluster.port}/`, `:${relay.port}/`);
  shard = { name: 's1', url } as unknown as Shard;
});
afterAll(() => relay.close());

it('takes a server that does not answer in time for lost, and does not wait for its good-bye', async () => {
  const session = await ShardSession.open(shard, null);
  const other = await ShardSession.open(shard, null);
  session.answerWithin(300);
  expect(await session.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
  relay.stall();
  await expect(session.query('SELECT 1')).rejects.toThrow(ShardUnavailableError);
  await expect(session.query('SELECT 1')).rejects.toThrow('no answer within 300 ms');
  await session.close();
  await other.close();
  relay.resume();
});

it('waits for as long as it takes when it is told to', async () => {
  const session = await ShardSession.open(shard, null);
  session.answerWithin(300);
  session.answerWithin(null);
  expect(await session.query("SELECT pg_sleep(0.6), 'there' AS it")).toEqual([{ pg_sleep: '', it: 'there' }]);
  await session.close();
});
