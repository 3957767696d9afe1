import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  blockCall,
  type KeyRole,
  keyOfLock,
  markSql,
  newKey,
  readingKey,
} from '../../../proxy/transactions/transaction-key.js';
import {
  conflict,
  deadlocks,
  describeCycle,
  lasting,
  type ShardReading,
  type Wait,
  waitsOn,
} from '../../../proxy/transactions/wait-graph.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';

function wait(pid: number, blockers: number | number[], more: Partial<Wait> = {}): Wait {
  const lock = `transaction ${pid}`;
  return { pid, process: pid, since: `since ${pid}`, mode: 'ShareLock', lock, blockers: [blockers].flat(), ...more };
}

/** `branches`: key to process. */
function reading(shard: string, branches: Record<number, number | null>, ...waits: Wait[]): ShardReading {
  const keyed = Object.entries(branches).map(([key, pid]) => ({
    key: BigInt(key),
    role: 'branch' as const,
    pid,
    database: '5',
  }));
  return { shard, branches: keyed, waits, prepared: [] };
}

const victims = (...readings: ShardReading[]) => deadlocks(waitsOn(readings)).map((d) => d.victim);

describe('a deadlock over shards', () => {
  const a = reading('a', { 1: 11, 2: 12 }, wait(11, 12));
  const b = reading('b', { 1: 21, 2: 22 }, wait(22, 21));

  test('is found by joining what the shards say, and falls to the largest key', () => {
    expect(victims(a)).toEqual([]);
    expect(victims(a, b)).toEqual([2n]);
  });

  test('is told with who waits for whom', () => {
    const [deadlock] = deadlocks(waitsOn([a, b]));
    expect(describeCycle(deadlock?.cycle ?? [])).toBe(
      [
        'Process 22 on shard "b" (the same transaction as process 12 on shard "a") waits for ShareLock on transaction 22; blocked by process 21.',
        'Process 11 on shard "a" (the same transaction as process 21 on shard "b") waits for ShareLock on transaction 11; blocked by process 12.',
      ].join('\n'),
    );
  });

  test('may lead through sessions without a key; the same process id elsewhere is another', () => {
    expect(victims(reading('a', { 1: 11, 2: 12 }, wait(11, 13), wait(13, 12)), b)).toEqual([2n]);
    expect(
      victims(reading('a', { 1: 11 }, wait(11, 13)), b, reading('c', { 2: 32 }, wait(13, 32), wait(32, 13))),
    ).toEqual([]);
  });

  test('within one server is left to it, with all who are in it', () => {
    const own = reading('a', { 1: 11, 2: 12 }, wait(11, 12), wait(12, 11));
    expect(victims(own)).toEqual([]);
    expect(victims(own, b)).toEqual([]);
  });

  test('between two shards of one server, which shows the same for both, is not one of the server', () => {
    const waits = [wait(11, 12), wait(22, 21)];
    const branches = [...a.branches, ...b.branches.map((x) => ({ ...x, database: '6' }))];
    expect(victims({ ...a, branches, waits }, { ...b, branches, waits })).toEqual([2n]);
    // A transaction that waits for its own other branch.
    expect(
      victims({ ...reading('a', {}, wait(11, 21)), branches: branches.filter((x) => x.key === 1n) }, reading('b', {})),
    ).toEqual([1n]);
  });

  test('counts no wait whose beginning is not known', () => {
    expect(victims(reading('a', { 1: 11, 2: 12 }, wait(11, 12, { since: null })), b)).toEqual([]);
  });

  test('takes the waits of all parallel workers of a session as its own', () => {
    const workers = [wait(11, 12, { process: 91 }), wait(11, 12, { process: 92, since: 'later' })];
    expect(victims(reading('a', { 1: 11, 2: 12 }, ...workers), b)).toEqual([2n]);
  });

  test('leads through what a prepared transaction holds, if that is in the way', () => {
    const behind = reading('a', { 1: 11, 2: null }, wait(11, 0, { lock: 'relation 7', mode: 'RowExclusiveLock' }));
    const held = (mode: string, lock = 'relation 7') => ({ ...behind, prepared: [{ key: 2n, lock, mode }] });
    expect(victims(behind, b)).toEqual([]);
    expect(victims(held('ShareLock'), b)).toEqual([2n]);
    expect(victims(held('RowShareLock'), b)).toEqual([]);
    expect(victims(held('ShareLock', 'relation 8'), b)).toEqual([]);
  });

  test('is not made of a lock of an application that looks like a key', () => {
    const twice = [...a.branches, { key: 2n, role: 'branch' as const, pid: 13, database: '5' }];
    expect(victims({ ...a, branches: twice }, b)).toEqual([]);
  });

  test('leads through the connections of a statement and its block, though they are on one shard', () => {
    const block = { key: 1n, role: 'block' as const, pid: 11, database: '5' };
    const own = { ...block, role: 'statement' as const, pid: 12 };
    const waits = [wait(12, 13), wait(13, 11)];
    expect(victims({ ...reading('a', {}, ...waits), branches: [block, own] })).toEqual([1n]);
    // The statement is through: nobody would end the block for it.
    expect(victims({ ...reading('a', {}, ...waits), branches: [block] })).toEqual([]);
    const other = reading('b', { 2: 22 }, wait(22, 21));
    expect(victims({ ...reading('a', {}), branches: [block], waits: [wait(11, 12)] }, other)).toEqual([]);
  });

  test('of one session that has several keys is that of the smallest: it has read by the other before it wrote', () => {
    const before = { key: 9n, role: 'block' as const, pid: 11, database: '5' };
    const now = { ...before, key: 1n };
    for (const branches of [
      [before, now],
      [now, before],
    ]) {
      const all = [...branches, ...a.branches.filter((x) => x.pid !== 11)];
      expect(victims({ ...a, branches: all }, b)).toEqual([2n]);
    }
  });

  test('does not fall to a block of which nothing runs on several shards, whatever its key', () => {
    const block = { key: 3n, role: 'block' as const, pid: 13, database: '5' };
    const through = reading('a', { 1: 11, 2: 12 }, wait(11, 13), wait(13, 12));
    const branches = [...through.branches, block];
    expect(victims({ ...through, branches }, b)).toEqual([2n]);
    // A statement of its runs, and be it on another shard.
    const own = { ...block, role: 'statement' as const, pid: 23 };
    expect(victims({ ...through, branches }, { ...b, branches: [...b.branches, own] })).toEqual([3n]);
  });

  test('is one only if the same waits are there a second time', () => {
    const again = (other: ShardReading) => deadlocks(lasting(waitsOn([a, b]), waitsOn([other, b])));
    expect(again(a)).toHaveLength(1);
    expect(again(reading('a', { 1: 11, 2: 12 }))).toEqual([]);
    expect(again(reading('a', { 1: 11, 2: 12 }, wait(11, 12, { since: 'later' })))).toEqual([]);
    expect(again(reading('a', { 1: 11, 3: 12 }, wait(11, 12)))).toEqual([]);
  });

  test('of many who wait in line is found without a deep recursion', () => {
    const line = Array.from({ length: 20_000 }, (_, i) => wait(1_000 + i, 1_001 + i));
    const branches = { 1: 1_000, 2: 21_000 };
    const back = reading('b', { 1: 21, 2: 22 }, wait(22, 21));
    expect(victims(reading('a', branches, ...line), back)).toEqual([2n]);
  });
});

describe('any waits', () => {
  /** Waits of branches on three shards; every pid is 100 times the shard's number and the transaction's. Above 5 they have no key. */
  const anyWaits = fc.array(
    fc.record({ shard: fc.nat(2), from: fc.nat(7), to: fc.nat(7) }).filter(({ from, to }) => from !== to),
    { maxLength: 14 },
  );

  const readingsOf = (waits: readonly { shard: number; from: number; to: number }[]) =>
    [0, 1, 2].map((shard) => {
      const pid = (transaction: number) => 100 * (shard + 1) + transaction;
      const branches = Object.fromEntries([0, 1, 2, 3, 4, 5].map((t) => [t, pid(t)]));
      const mine = waits.filter((w) => w.shard === shard).map((w) => wait(pid(w.from), pid(w.to)));
      return reading(String(shard), branches, ...mine);
    });

  test('end exactly one of each set of those that wait for one another', () => {
    fc.assert(
      fc.property(anyWaits, (waits) => {
        const edges = waitsOn(readingsOf(waits));
        const reach = closure(edges);
        const local = closure(edges.map((e) => ({ from: `${e.shard} ${e.pid}`, to: `${e.shard} ${e.blocker}` })));
        const servers = new Set(
          edges.filter((e) => local(`${e.shard} ${e.pid}`, `${e.shard} ${e.pid}`)).map((e) => e.from),
        );
        const rest = edges.filter((e) => !servers.has(e.from) && !servers.has(e.to));
        const left = closure(rest);
        const found = deadlocks(edges);
        for (const { victim, cycle } of found) {
          const node = `key ${victim}`;
          expect(reach(node, node)).toBe(true);
          expect([cycle[0]?.from, cycle.at(-1)?.to]).toEqual([node, node]);
          for (const [i, step] of cycle.entries()) if (i > 0) expect(step.from).toBe(cycle[i - 1]?.to);
          expect(new Set(cycle.map((step) => step.shard)).size).toBeGreaterThan(1);
        }
        const stuck = [...new Set(rest.filter((e) => left(e.from, e.from)).map((e) => e.from))];
        for (const node of stuck) {
          const others = stuck.filter((other) => left(node, other) && left(other, node));
          const largest = others
            .filter((n) => n.startsWith('key '))
            .sort()
            .at(-1);
          expect(found.filter((d) => `key ${d.victim}` === largest)).toHaveLength(1);
        }
        expect(found.length).toBeLessThanOrEqual(stuck.length);
      }),
      { numRuns: 2_000 },
    );
  });

  const anyOrder = fc.shuffledSubarray([0, 1, 2], { minLength: 3 });

  /** Something that happens: one begins to wait for another on a shard, or goes on. */
  const anyEvent = fc.record({ shard: fc.nat(2), from: fc.nat(4), to: fc.nat(4), ends: fc.boolean() });

  test('that change while they are read never end one who was in no deadlock, and always one of those who were in it all the time', () => {
    fc.assert(
      fc.property(
        fc.array(anyEvent, { maxLength: 40 }),
        fc.array(fc.nat(40), { minLength: 6, maxLength: 6 }),
        anyOrder,
        anyOrder,
        (events, moments, once, twice) => {
          const at = moments.sort((x, y) => x - y);
          // Each shard is read in one of the first three of these moments, and in one of the last three.
          const first = once.map((i) => at[i] as number);
          const second = twice.map((i) => at[3 + i] as number);
          const history = play(events, 41);
          const read = (moments: number[]) =>
            waitsOn(moments.map((moment, shard) => shown(history[moment] as State)[shard] as ShardReading));
          const found = deadlocks(lasting(read(first), read(second)));
          const between = history[at[3] as number] as State;
          const reach = closure(waitsOn(shown(between)));
          for (const { victim } of found) expect(reach(`key ${victim}`, `key ${victim}`)).toBe(true);
          const [begin, end] = [at[0], at[5]] as [number, number];
          const always = history
            .slice(begin, end + 1)
            .map((state) => waitsOn(shown(state)))
            .reduce((x, y) => lasting(x, y));
          expect(found.length > 0 || deadlocks(read(first)).length === 0 || deadlocks(always).length === 0).toBe(true);
        },
      ),
      { numRuns: 3_000 },
    );
  });

  /** By transaction: where it waits, for whom, since when. A transaction waits in one place at a time. */
  type State = ReadonlyMap<number, { readonly shard: number; readonly to: number; readonly since: number }>;

  /** What was so at each moment. One lets go of another only when it is not waiting itself. */
  function play(
    events: readonly { shard: number; from: number; to: number; ends: boolean }[],
    moments: number,
  ): State[] {
    const history: State[] = [];
    let state: State = new Map();
    for (let moment = 0; moment < moments; moment++) {
      history.push(state);
      const event = events[moment];
      if (event === undefined) continue;
      const { shard, from, to, ends } = event;
      const now = state.get(from);
      const next = new Map(state);
      if (now === undefined && from !== to) next.set(from, { shard, to, since: moment });
      else if (now !== undefined && ends && !state.has(now.to)) next.delete(from);
      state = next;
    }
    return history;
  }

  function shown(state: State): ShardReading[] {
    return [0, 1, 2].map((shard) => {
      const branches = Object.fromEntries([0, 1, 2, 3, 4].map((t) => [t, 10 * (shard + 1) + t]));
      const waits = [...state].filter(([, w]) => w.shard === shard);
      const pid = (t: number) => 10 * (shard + 1) + t;
      return reading(
        String(shard),
        branches,
        ...waits.map(([t, w]) => wait(pid(t), pid(w.to), { since: String(w.since) })),
      );
    });
  }
});

/** Whether one can be reached from the other by at least one step. */
function closure(edges: readonly { from: string; to: string }[]): (from: string, to: string) => boolean {
  const reached = new Set(edges.map((e) => JSON.stringify([e.from, e.to])));
  for (let size = -1; size !== reached.size; ) {
    size = reached.size;
    for (const pair of [...reached]) {
      const [from, via] = JSON.parse(pair) as [string, string];
      for (const e of edges) if (e.from === via) reached.add(JSON.stringify([from, e.to]));
    }
  }
  return (from, to) => reached.has(JSON.stringify([from, to]));
}

test('lock modes conflict as they do in PostgreSQL', async () => {
  const cluster = await startTestCluster();
  const modes = [
    'ACCESS SHARE',
    'ROW SHARE',
    'ROW EXCLUSIVE',
    'SHARE UPDATE EXCLUSIVE',
    'SHARE',
    'SHARE ROW EXCLUSIVE',
    'EXCLUSIVE',
    'ACCESS EXCLUSIVE',
  ];
  const inLocks = (mode: string) =>
    `${mode
      .split(' ')
      .map((word) => `${word.charAt(0)}${word.slice(1).toLowerCase()}`)
      .join('')}Lock`;
  await withClient(cluster.url('postgres'), (one) =>
    withClient(cluster.url('postgres'), async (other) => {
      await one.query('CREATE TABLE t (a int)');
      for (const held of modes) {
        await one.query(`BEGIN; LOCK TABLE t IN ${held} MODE`);
        for (const wanted of modes) {
          const refused = await other.query(`BEGIN; LOCK TABLE t IN ${wanted} MODE NOWAIT`).then(
            () => false,
            () => true,
          );
          await other.query('ROLLBACK');
          expect([held, wanted, conflict(inLocks(held), inLocks(wanted))]).toEqual([held, wanted, refused]);
        }
        await one.query('ROLLBACK');
      }
    }),
  );
});

test('keys are positive, marked, and new each time', () => {
  const keys = Array.from({ length: 1_000 }, newKey);
  expect(new Set(keys).size).toBe(1_000);
  for (const key of keys) expect(key >> 48n).toBe(0x4653n);
});

test('keys of queries are larger than those of transactions', () => {
  expect(Array.from({ length: 100 }, () => newKey('query') > newKey()).every(Boolean)).toBe(true);
});

test('a block has the key of a query until it has written', () => {
  const key = newKey();
  const locks = [...blockCall(key).matchAll(/ (\d+)/g)].map(([, lock]) => keyOfLock(BigInt(lock as string)));
  expect(locks).toEqual([
    { key, role: 'block' },
    { key: readingKey(key), role: 'block' },
  ]);
  expect(readingKey(key)).toBeGreaterThan(newKey());
});

test('a lock tells whose it is, and as what; or that it is none of ours', () => {
  const key = newKey('query');
  const lock = (role: KeyRole) => BigInt(/\((\d+)\)/.exec(markSql(key, role))?.[1] as string);
  const locks = (['branch', 'statement', 'block'] as const).map(lock);
  expect(locks.map(keyOfLock)).toEqual([
    { key, role: 'branch' },
    { key, role: 'statement' },
    { key, role: 'block' },
  ]);
  expect(new Set(locks).size).toBe(3);
  expect(keyOfLock(key | 3n)).toBeNull();
});
