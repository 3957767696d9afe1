import { expect, test } from 'vitest';
import type { CommitPoint } from '../../../proxy/transactions/coordinator.js';
import { withClient } from '../../support/client.js';
import { waitFor } from '../../support/wait-for.js';
import { S1, S2, transactionSetting } from './setting.js';

const s = transactionSetting();

/** Does something when a coordinator comes to a point for the first time. */
function once(where: CommitPoint, work: () => Promise<void> | void, shard: string | null = null) {
  let done = false;
  return async (point: CommitPoint, at: string | null) => {
    if (done || point !== where || at !== shard) return;
    done = true;
    await work();
  };
}

/** The decision is asked for, and its statement waits in the catalog's server; then `work`, and it goes on. */
async function whileDeciding(work: (pid: number) => Promise<void>): Promise<void> {
  const client = await s.catalog.pool.connect();
  try {
    await client.query('BEGIN; LOCK TABLE foreshard.decision IN SHARE MODE');
    deciding.resolve();
    const waiting = await waitFor(
      async () =>
        (
          await client.query<{ pid: number }>(
            `SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'foreshard.decision'::regclass ORDER BY waitstart`,
          )
        ).rows[0],
      { what: 'the decision to wait' },
    );
    await work(waiting.pid);
    await client.query('COMMIT');
  } finally {
    client.release();
  }
}

let deciding = later();

function later(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve: () => void = () => undefined;
  const promise = new Promise<void>((r) => {
    resolve = r;
  });
  return { promise, resolve };
}

test('all branches are committed, and nothing is left behind: no prepared transaction, decision or coordinator', async () => {
  const proxy = await s.proxy();
  await Promise.all([1, 2, 3, 4].map(async (id) => proxy.coordinator.commit(await s.written(id))));
  expect(await s.rows()).toEqual([
    [1, 2, 3, 4],
    [1, 2, 3, 4],
  ]);
  expect(await s.prepared()).toEqual([[], []]);
  expect(await s.count('coordinator')).toBe(1);
  await proxy.coordinator.close();
  expect([await s.count('coordinator'), await s.count('decision')]).toEqual([0, 0]);
});

test('two shards on one server are two branches', async () => {
  const server = s.servers[0];
  await withClient(server.url('postgres'), (c) => c.query('CREATE DATABASE second TEMPLATE shop'));
  const [first] = await s.written(1);
  const proxy = await s.proxy();
  await withClient(server.url('second'), async (client) => {
    await client.query('BEGIN; INSERT INTO t VALUES (1)');
    let tag = '';
    (client as unknown as { connection: NodeJS.EventEmitter }).connection.on('commandComplete', ({ text }) => {
      tag = text;
    });
    const run = (text: string) => client.query(text).then(() => tag);
    await proxy.coordinator.commit([first, { shard: S2, run, giveUp: () => undefined }]);
    expect((await client.query('SELECT id FROM t')).rows).toEqual([{ id: 1 }]);
  });
  expect(await s.rows()).toEqual([[1], []]);
  await withClient(server.url('postgres'), (c) => c.query('DROP DATABASE second WITH (FORCE)'));
});

test('a constraint that fails when it is prepared is the client’s error, with all it says, and nothing is committed anywhere', async () => {
  const proxy = await s.proxy();
  for (const failing of [0, 1]) {
    const branches = await s.written(1);
    await branches[failing]?.client.query('UPDATE t SET parent = 7');
    await expect(proxy.coordinator.commit(branches)).rejects.toMatchObject({
      sqlstate: '23503',
      fields: { message: expect.stringContaining('violates foreign key constraint') },
    });
    expect(await s.rows()).toEqual([[], []]);
    expect(await s.prepared()).toEqual([[], []]);
    // The connections are free for others.
    for (const { client } of branches) await client.query('BEGIN; COMMIT');
  }
});

test('a transaction that has failed on one shard is committed on none', async () => {
  const branches = await s.written(1);
  await branches[1].client.query('SELECT 1 / 0').catch(() => undefined);
  const proxy = await s.proxy();
  await expect(proxy.coordinator.commit(branches)).rejects.toMatchObject({ sqlstate: '40000' });
  expect(await s.rows()).toEqual([[], []]);
  expect(await s.prepared()).toEqual([[], []]);
});

test('a server without max_prepared_transactions says so, and nothing is committed', async () => {
  const [, b] = s.servers;
  await withClient(b.url('shop'), (c) => c.query('ALTER SYSTEM SET max_prepared_transactions = 0'));
  await b.restart();
  try {
    const proxy = await s.proxy();
    await expect(proxy.coordinator.commit(await s.written(1))).rejects.toMatchObject({
      sqlstate: '55000',
      message: 'prepared transactions are disabled',
    });
    expect(await s.rows()).toEqual([[], []]);
    expect(await s.prepared()).toEqual([[], []]);
  } finally {
    await withClient(b.url('shop'), (c) => c.query('ALTER SYSTEM RESET max_prepared_transactions'));
    await b.restart();
  }
});

test('what was prepared under SET LOCAL ROLE, which has ended by then, is committed all the same', async () => {
  const branches = await s.written(1, 'app');
  for (const { client } of branches) await client.query('SET LOCAL ROLE tenant');
  await (await s.proxy()).coordinator.commit(branches);
  expect(await s.rows()).toEqual([[1], [1]]);
});

test('a connection that is lost while it is being prepared: nothing is committed, also if the server has prepared it', async () => {
  for (const point of ['before:prepare', 'after:prepare'] as const) {
    const branches = await s.written(1);
    const [, two] = branches;
    const run = two.run.bind(two);
    two.run = async (text) => {
      if (!text.startsWith('PREPARE')) return run(text);
      if (point === 'after:prepare') await run(text);
      two.cut();
      throw new Error('Connection terminated');
    };
    const proxy = await s.proxy();
    await expect(proxy.coordinator.commit(branches)).rejects.toMatchObject({ sqlstate: '08006' });
    await proxy.resolver.round();
    expect(await s.prepared()).toEqual([[], []]);
    expect(await s.rows()).toEqual([[], []]);
    await proxy.coordinator.close();
  }
});

test.each(['while its proxy runs', 'when its proxy has ended'])(
  'a branch that comes to be prepared when nobody waits for it any more, %s, is taken back',
  async (when) => {
    const branches = await s.written(1);
    const [one, two] = branches;
    let gid = '';
    const proxy = await s.proxy();
    const lost = {
      shard: S2,
      run: (text: string) => {
        gid = /'(.*)'/.exec(text)?.[1] ?? '';
        return Promise.reject(new Error('Connection terminated'));
      },
      giveUp: () => undefined,
    };
    await expect(proxy.coordinator.commit([one, lost])).rejects.toMatchObject({ sqlstate: '08006' });
    await proxy.resolver.round();
    if (when === 'when its proxy has ended') await proxy.coordinator.close();
    await two.run(`PREPARE TRANSACTION '${gid}'`);
    await (when === 'when its proxy has ended' ? await s.proxy() : proxy).resolver.round();
    expect(await s.prepared()).toEqual([[], []]);
    expect(await s.rows()).toEqual([[], []]);
  },
);

test('a server process that hangs when it is to prepare is given up: nothing is committed, also when it goes on', async () => {
  const proxy = await s.proxy({ prepareMs: () => 3_000 });
  const branches = await s.written(1);
  const { processID } = branches[1].client as unknown as { processID: number };
  process.kill(processID, 'SIGSTOP');
  try {
    await expect(proxy.coordinator.commit(branches)).rejects.toMatchObject({
      sqlstate: '08006',
      message: 'shard "s2" has not prepared its part of the transaction in time',
    });
    await proxy.resolver.round();
    expect(await s.prepared()).toEqual([[], []]);
  } finally {
    process.kill(processID, 'SIGCONT');
  }
  branches[0].cut();
  await s.sessionsGone();
  expect((await s.prepared()).map((gids) => gids.length)).toEqual([0, 1]);
  await proxy.resolver.round();
  expect(await s.prepared()).toEqual([[], []]);
  expect(await s.rows()).toEqual([[], []]);
});

test('a connection that is lost while it is being committed: it is committed over another one', async () => {
  const branches = await s.written(1);
  const cut = once('before:end', () => branches[1].cut(), S2);
  await (await s.proxy({ at: cut })).coordinator.commit(branches);
  expect(await s.rows()).toEqual([[1], [1]]);

  const more = await s.written(2);
  const run = more[0].run.bind(more[0]);
  more[0].run = async (text) => {
    const tag = await run(text);
    if (!text.startsWith('COMMIT')) return tag;
    throw new Error('Connection terminated');
  };
  await (await s.proxy()).coordinator.commit(more);
  expect(await s.rows()).toEqual([
    [1, 2],
    [1, 2],
  ]);
});

test('a shard that is down when it is to commit: the client is told 08007, and it is committed when it is back', async () => {
  const down = once('before:end', () => s.servers[1].crash(), S2);
  const proxy = await s.proxy({ at: down, patienceMs: 300 });
  await expect(proxy.coordinator.commit(await s.written(1))).rejects.toMatchObject({
    sqlstate: '08007',
    message: 'the transaction is decided to be committed, but not yet visible on shard "s2"',
  });
  await proxy.resolver.round();
  expect(await s.count('decision')).toBe(1);
  await s.servers[1].restart();
  await proxy.resolver.round();
  expect(await s.rows()).toEqual([[1], [1]]);
  expect(await s.count('decision')).toBe(0);
});

test('a process that ends while a shard is away leaves it to the others', async () => {
  const away = once(
    'before:end',
    () => {
      s.toShard.refuse(true);
      s.toShard.cut('reset');
    },
    S2,
  );
  const proxy = await s.proxy({ at: away, patienceMs: 300 });
  await expect(proxy.coordinator.commit(await s.written(1))).rejects.toMatchObject({ sqlstate: '08007' });
  await proxy.coordinator.close();
  s.toShard.heal();
  expect((await s.prepared()).map((gids) => gids.length)).toEqual([0, 1]);
  await (await s.proxy()).resolver.round();
  expect(await s.rows()).toEqual([[1], [1]]);
});

test('a catalog that cannot be asked: nothing is committed', async () => {
  const proxy = await s.proxy({}, 'relay');
  await proxy.coordinator.commit(await s.written(1));
  s.toCatalog.refuse(true);
  s.toCatalog.cut('reset');
  const fresh = await s.proxy({ decisions: proxy.decisions });
  await expect(fresh.coordinator.commit(await s.written(2))).rejects.toMatchObject({ sqlstate: '57P03' });
  expect(await s.rows()).toEqual([[1], [1]]);
  expect(await s.prepared()).toEqual([[], []]);
});

test('a catalog that is lost when the decision was sent, and has recorded it: all is committed', async () => {
  deciding = later();
  const proxy = await s.proxy({ at: once('before:decide', () => deciding.promise) }, 'relay');
  const committed = proxy.coordinator.commit(await s.written(1));
  await whileDeciding(async () => s.toCatalog.cut('reset'));
  await committed;
  expect(await s.rows()).toEqual([[1], [1]]);
});

test('a catalog that is lost when the decision was sent, and has not recorded it: nothing is committed', async () => {
  deciding = later();
  const proxy = await s.proxy({ at: once('before:decide', () => deciding.promise) }, 'relay');
  const refused = proxy.coordinator.commit(await s.written(1));
  refused.catch(() => undefined);
  await whileDeciding(async (pid) => {
    await s.catalog.pool.query('SELECT pg_terminate_backend($1)', [pid]);
  });
  await expect(refused).rejects.toMatchObject({ sqlstate: '57P03' });
  expect(await s.rows()).toEqual([[], []]);
  expect(await s.prepared()).toEqual([[], []]);
});

test('a catalog that stays away when the decision was sent: 08007, and all ends in one way when it is back', async () => {
  deciding = later();
  const proxy = await s.proxy({ at: once('before:decide', () => deciding.promise), patienceMs: 300 }, 'relay');
  const unknown = proxy.coordinator.commit(await s.written(1));
  unknown.catch(() => undefined);
  await whileDeciding(async () => {
    s.toCatalog.refuse(true);
    s.toCatalog.cut('reset');
  });
  await expect(unknown).rejects.toMatchObject({ sqlstate: '08007' });
  expect((await s.prepared()).map((gids) => gids.length)).toEqual([1, 1]);
  await proxy.resolver.round();
  expect((await s.prepared()).map((gids) => gids.length)).toEqual([1, 1]);
  s.toCatalog.heal();
  await proxy.resolver.round();
  expect(await s.rows()).toEqual([[1], [1]]);
});

test('when it was found that nothing is decided, the statement that would decide, late, finds that out too', async () => {
  const proxy = await s.proxy();
  await proxy.coordinator.commit(await s.written(1));
  const { rows } = await s.catalog.pool.query('SELECT id FROM foreshard.coordinator');
  const name = { coordinator: rows[0].id, number: 99n };
  expect(await proxy.decisions.settle(name)).toBe('rollback');
  await expect(proxy.decisions.decide(name.coordinator, [{ number: 99n, shards: [S1] }])).rejects.toMatchObject({
    code: '23505',
  });
  expect(await proxy.decisions.settle(name)).toBe('rollback');
  expect(await proxy.decisions.isDecided(name)).toBe(false);
});

test('a lease that has ended and is back has another coordinator', async () => {
  const proxy = await s.proxy();
  await proxy.coordinator.commit(await s.written(1));
  proxy.lease.era += 1;
  await proxy.coordinator.commit(await s.written(2));
  await waitFor(
    async () =>
      (await s.catalog.pool.query('SELECT FROM foreshard.coordinator WHERE fenced_at IS NOT NULL')).rowCount === 1,
    { what: 'the earlier one to be fenced' },
  );
  expect(await s.count('coordinator')).toBe(2);
});

test('a decision under way is not waited for by whoever would fence its coordinator, and counts', async () => {
  const rival = await s.catalog.pool.connect();
  // Its row under the same key holds up the decision, which has locked the coordinator's row by then.
  const inTheWay = async () => {
    await rival.query('BEGIN');
    await rival.query(`INSERT INTO foreshard.decision SELECT id, 1, false, '{}' FROM foreshard.coordinator`);
  };
  const proxy = await s.proxy({ at: once('before:decide', inTheWay) });
  const other = await s.proxy();
  try {
    const committed = proxy.coordinator.commit(await s.written(1));
    const waits = `SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'`;
    await waitFor(async () => (await s.catalog.pool.query(waits)).rowCount === 1, { what: 'the decision to wait' });
    await proxy.endLease();
    expect(await other.decisions.fenceExpired()).toEqual([]);
    expect((await s.prepared()).map((gids) => gids.length)).toEqual([1, 1]);
    await rival.query('ROLLBACK');
    await committed;
    expect(await s.rows()).toEqual([[1], [1]]);
    expect(await other.decisions.fenceExpired()).toMatchObject([{ fenced: true, expired: true }]);
  } finally {
    rival.release(true);
  }
});
