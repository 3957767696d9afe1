import { expect, test } from 'vitest';
import type { CommitPoint } from '../../../proxy/transactions/coordinator.js';
import type { ShardName } from '../../../topology/topology.js';
import { waitFor } from '../../support/wait-for.js';
import { type Branch, Kill, S1, S2, transactionSetting } from './setting.js';

const s = transactionSetting();

const DECIDED: readonly (readonly [CommitPoint, ShardName | null])[] = [
  ['after:decide', null],
  ['before:end', S1],
  ['before:end', S2],
  ['after:end', S1],
  ['after:end', S2],
];
const NOT_DECIDED: readonly (readonly [CommitPoint, ShardName | null])[] = [
  ['before:prepare', S1],
  ['before:prepare', S2],
  ['after:prepare', S1],
  ['after:prepare', S2],
  ['before:decide', null],
];

/** The coordinator is killed at this point, its lease ends, and `resolvers` other proxies look after what it has left. */
async function killedAt(point: readonly [CommitPoint, ShardName | null], resolvers: number): Promise<number[][]> {
  let branches: readonly Branch[] = [];
  const kill = new Kill(point, () => branches);
  const proxy = await s.proxy({ at: kill.at });
  branches = await s.written(1);
  void proxy.coordinator.commit(branches);
  await kill.happened;
  await s.sessionsGone();
  const others = await Promise.all(Array.from({ length: resolvers }, () => s.proxy()));
  const round = () => Promise.all(others.map(({ resolver }) => resolver.round()));
  const before = await s.prepared();
  await round();
  expect(await s.prepared()).toEqual(before);
  await proxy.endLease();
  await waitFor(
    async () => {
      await round();
      return (await s.prepared()).flat().length === 0;
    },
    { what: 'the transaction to be ended' },
  );
  return s.rows();
}

test.each(NOT_DECIDED)('a coordinator that dies at %s %s has committed nothing anywhere', async (...point) => {
  expect(await killedAt(point, 1)).toEqual([[], []]);
});

test.each(DECIDED)('what a coordinator that dies at %s %s has decided is committed everywhere', async (...point) => {
  expect(await killedAt(point, 1)).toEqual([[1], [1]]);
});

test('several resolvers at once end it in one way', async () => {
  expect(await killedAt(['after:decide', null], 4)).toEqual([[1], [1]]);
  await s.reset();
  expect(await killedAt(['before:decide', null], 4)).toEqual([[], []]);
});

test('rows of a coordinator go when nothing of it was found anywhere for long enough', async () => {
  await killedAt(['after:decide', null], 1);
  const other = await s.proxy();
  await other.resolver.round();
  expect([await s.count('coordinator'), await s.count('decision')]).toEqual([1, 1]);
  await s.catalog.pool.query(
    "UPDATE foreshard.coordinator SET clean_since = clean_since - interval '1 hour', looked_at = looked_at - interval '1 hour'",
  );
  // Not while a shard cannot be looked at.
  s.toShard.refuse(true);
  await other.resolver.round();
  expect(await s.count('coordinator')).toBe(1);
  s.toShard.heal();
  await other.resolver.round();
  expect([await s.count('coordinator'), await s.count('decision')]).toEqual([0, 0]);
});

test('a shard that cannot be reached does not keep the others waiting, and gets its turn later', async () => {
  let branches: readonly Branch[] = [];
  const kill = new Kill(['after:decide', null], () => branches);
  const proxy = await s.proxy({ at: kill.at });
  branches = await s.written(1);
  void proxy.coordinator.commit(branches);
  await kill.happened;
  await proxy.endLease();
  s.toShard.refuse(true);
  const other = await s.proxy();
  await other.resolver.round();
  expect((await s.prepared()).map((gids) => gids.length)).toEqual([0, 1]);
  expect(await s.rows()).toEqual([[1], []]);
  s.toShard.heal();
  await other.resolver.round();
  expect(await s.rows()).toEqual([[1], [1]]);
});

/** A commit that sleeps in front of its decision. */
async function commitAsleep(): Promise<{
  proxy: Awaited<ReturnType<typeof s.proxy>>;
  late: Promise<void>;
  wake: () => void;
}> {
  let wake: () => void = () => undefined;
  let asleep: () => void = () => undefined;
  const sleeping = new Promise<void>((resolve) => {
    asleep = resolve;
  });
  const awake = new Promise<void>((resolve) => {
    wake = resolve;
  });
  const proxy = await s.proxy({
    at: async (point) => {
      if (point !== 'before:decide') return;
      asleep();
      await awake;
    },
  });
  const late = proxy.coordinator.commit(await s.written(1));
  late.catch(() => undefined);
  await sleeping;
  return { proxy, late, wake };
}

test('a coordinator that wakes up when it was fenced commits nothing, and enrolls anew', async () => {
  const { proxy, late, wake } = await commitAsleep();
  await proxy.endLease();
  await (await s.proxy()).resolver.round();
  expect(await s.prepared()).toEqual([[], []]);
  wake();
  await expect(late).rejects.toMatchObject({ sqlstate: '40001' });
  expect(await s.rows()).toEqual([[], []]);
  // Without a lease nothing can be decided; with a new one there is a new coordinator.
  await expect(proxy.coordinator.commit(await s.written(2))).rejects.toMatchObject({ sqlstate: '57P03' });
  await proxy.register();
  await proxy.coordinator.commit(await s.written(3));
  expect(await s.rows()).toEqual([[3], [3]]);
});

test.each([
  ['when its lease has ended', false],
  ['when its proxy has another one', true],
])('one that wakes up %s commits nothing either, though nobody else has looked', async (_, again) => {
  const { proxy, late, wake } = await commitAsleep();
  await proxy.endLease();
  if (again) await proxy.register();
  wake();
  await expect(late).rejects.toMatchObject({ sqlstate: '40001' });
  expect(await s.rows()).toEqual([[], []]);
  expect(await s.prepared()).toEqual([[], []]);
});

test('prepared transactions that are not ours are never touched', async () => {
  const branches = await s.written(1);
  const strange = ["elsewhere's", `foreshard_${'0'.repeat(32)}_1_0`];
  for (const [i, gid] of strange.entries())
    await branches[i]?.client.query(`PREPARE TRANSACTION '${gid.replaceAll("'", "''")}'`);
  const proxy = await s.proxy();
  await proxy.coordinator.commit(await s.written(2));
  await proxy.endLease();
  const other = await s.proxy();
  await other.resolver.round();
  await other.resolver.round();
  expect(await s.prepared()).toEqual(strange.map((gid) => [gid]));
  expect(await s.rows()).toEqual([[2], [2]]);
});
