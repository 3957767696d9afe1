import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Backend } from '../../../proxy/backend/backend.js';
import { type Ask, HalvesReading, TornError } from '../../../proxy/gather/halves.js';
import type { HalvedTable } from '../../../proxy/router/gather-halves.js';
import type { KeyspaceName, Range, ShardedTable, ShardName, Topology } from '../../../topology/topology.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';

// Transactions that write both halves of rows commit on one server and the other between any two steps of a reading: what it takes for whole must be the
// rows as they were before, or as they were behind it. Every order of steps is tried.

const HOME = 'home' as ShardName;
const A = 'a' as ShardName;
const B = 'b' as ShardName;

const clients = new Map<
  ShardName,
  { readonly reader: pg.Client; readonly writer: pg.Client; readonly other: pg.Client }
>();

beforeAll(async () => {
  const cluster = await startTestCluster();
  for (const shard of [HOME, A, B]) {
    await withClient(cluster.url('postgres'), (c) => c.query(`CREATE DATABASE ${shard}`));
    const connected = async () => {
      const client = new pg.Client({ connectionString: cluster.url(shard) });
      await client.connect();
      return client;
    };
    const all = { reader: await connected(), writer: await connected(), other: await connected() };
    await all.writer.query(`
      CREATE TABLE documents (tenant_id bigint, id int, title text, views int, PRIMARY KEY (tenant_id, id));
      CREATE TABLE documents_hot (tenant_id bigint, id int, views int, PRIMARY KEY (tenant_id, id))`);
    clients.set(shard, all);
  }
}, 60_000);
afterAll(async () => {
  for (const { reader, writer, other } of clients.values()) for (const c of [reader, writer, other]) await c.end();
});

const of = (shard: ShardName) => clients.get(shard) as NonNullable<ReturnType<typeof clients.get>>;

/** Base halves on one shard, hot halves on another one. */
function topologyOf(base: ShardName, hot: ShardName): Topology {
  const split = {
    hot: { schema: 'public', table: 'documents_hot' },
    columns: ['views'],
    primaryKey: ['tenant_id', 'id'],
  };
  const keyspaces = [
    ['main', 'documents', base],
    ['views', 'documents_hot', hot],
  ].map(([name, table, shard], i) => {
    const keyspace = name as KeyspaceName;
    const sharded = {
      schema: 'public',
      table: table as string,
      keyspace,
      keyColumns: ['tenant_id'],
      ...(i === 0 ? { split } : {}),
    } satisfies ShardedTable;
    const range: Range = { id: BigInt(i), keyspace, shard: shard as ShardName, lo: null, hi: null };
    return { name: keyspace, method: 'range', keyTypes: ['int8'], tables: [sharded], ranges: [range] } as const;
  });
  return {
    epoch: 1n,
    schemaGeneration: 0n,
    database: 'shop',
    shards: new Map(
      [HOME, A, B].map((name) => [name, { name, url: '', home: name === HOME, capacityMsPerSecond: null }]),
    ),
    home: HOME,
    keyspaces: new Map(keyspaces.map((k) => [k.name, k])),
    shardedTables: new Map(keyspaces.flatMap((k) => k.tables.map((t) => [`public.${t.table}`, t]))),
    referenceTables: new Map(),
    holds: [],
    replicas: [],
  } as unknown as Topology;
}

const DOCUMENTS: HalvedTable = {
  schema: 'public',
  table: 'documents',
  keyspace: 'main' as KeyspaceName,
  keyColumns: ['tenant_id'],
  columns: ['tenant_id', 'id', 'title', 'views'],
  primaryKey: null,
  filter: '"t"."tenant_id" = 1',
  halves: {
    hot: { schema: 'public', table: 'documents_hot' },
    keyspace: 'views' as KeyspaceName,
    primaryKey: ['tenant_id', 'id'],
    baseColumns: ['tenant_id', 'id', 'title'],
    hotColumns: ['views'],
    baseFilter: '"t"."tenant_id" = 1',
    hotFilter: '"t"."tenant_id" = 1',
    keyFilter: '"t"."tenant_id" = 1',
  },
};

/** id, title, views of the rows. */
type State = string;
const OLD: State = '1 old 1, 2 old 1';

/** A transaction on both shards. */
interface Write {
  readonly base: string;
  readonly hot: string;
  readonly after: State;
  /** Held by others on both shards, all the time. */
  readonly besides?: string;
}

const SECOND = 'UPDATE documents_hot SET views = 2 WHERE id = 2';
const WRITES: Readonly<Record<string, Write>> = {
  'an update of both halves': {
    base: `UPDATE documents SET title = 'new' WHERE id = 1`,
    hot: 'UPDATE documents_hot SET views = 2 WHERE id = 1',
    after: '1 new 2, 2 old 1',
  },
  'an update of the base half of one row and the hot half of another': {
    base: `UPDATE documents SET title = 'new' WHERE id = 1`,
    hot: `SELECT FROM documents_hot WHERE id = 1 FOR NO KEY UPDATE; ${SECOND}`,
    after: '1 new 1, 2 old 2',
  },
  'an insert': {
    base: `INSERT INTO documents VALUES (1, 3, 'new', -1)`,
    hot: `INSERT INTO documents_hot VALUES (1, 3, 3); ${SECOND}`,
    after: '1 old 1, 2 old 2, 3 new 3',
  },
  'a delete': {
    base: 'DELETE FROM documents WHERE id = 1',
    hot: `DELETE FROM documents_hot WHERE id = 1; ${SECOND}`,
    after: '2 old 2',
  },
  subtransactions: {
    base: `SAVEPOINT s; UPDATE documents SET title = 'new' WHERE id = 1; RELEASE s`,
    hot: 'SAVEPOINT s; SELECT FROM documents_hot WHERE id = 1 FOR UPDATE; RELEASE s; SAVEPOINT s; UPDATE documents_hot SET views = 2; RELEASE s',
    after: '1 new 2, 2 old 2',
  },
  'rows that others lock as well': {
    base: `UPDATE documents SET title = 'new'`,
    hot: 'UPDATE documents_hot SET views = 2 WHERE id = 1; SELECT FROM documents_hot WHERE id = 2 FOR NO KEY UPDATE',
    after: '1 new 2, 2 new 1',
    besides: 'FOR KEY SHARE',
  },
};

/** What happens at a step of the reading, before it. */
type Events = ReadonlyMap<number, readonly (() => Promise<unknown>)[]>;

/** As the gather reads. @returns null: it is not to be trusted */
async function read(
  base: ShardName,
  hot: ShardName,
  events: Events,
): Promise<{ readonly state: State | null; readonly steps: number }> {
  let step = 0;
  let order = Promise.resolve();
  /** One after the other, with what happens in between. */
  const next = <T>(work: () => Promise<T>): Promise<T> => {
    const done = order.then(async () => {
      for (const happens of events.get(step++) ?? []) await happens();
      return work();
    });
    order = done.then(
      () => undefined,
      () => undefined,
    );
    return done;
  };
  const ask: Ask = ({ shard }, sql) =>
    next(async () => {
      const { rows } = await of(shard).reader.query<string[]>({ text: sql, rowMode: 'array' });
      return rows[0]?.[0] as string;
    });
  const backend = (shard: ShardName) => ({ shard }) as Backend;
  const home = backend(HOME);
  const readers = [A, B].map(backend);
  const begin = (shard: ShardName) => of(shard).reader.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  const reading = new HalvesReading([DOCUMENTS], true, topologyOf(base, hot), [HOME, A, B], ask);
  try {
    await reading.ahead([...readers, home]);
    for (const { shard } of readers) await begin(shard);
    await reading.inSnapshots(readers);
    await reading.aheadAtHome(home);
    await begin(HOME);
    await reading.inSnapshotAtHome(home);
    const rowsOf = (shard: ShardName, sql: string) =>
      next(async () => (await of(shard).reader.query<{ id: number; title: string; views: number }>(sql)).rows);
    const ours = await rowsOf(base, 'SELECT id, title FROM documents WHERE tenant_id = 1 ORDER BY id');
    const theirs = new Map(
      (await rowsOf(hot, 'SELECT id, views FROM documents_hot WHERE tenant_id = 1')).map((row) => [row.id, row.views]),
    );
    for (const { shard } of readers) await of(shard).reader.query('COMMIT');
    await reading.behind(readers);
    const whole = ours.filter(({ id }) => theirs.has(id));
    return { state: whole.map(({ id, title }) => `${id} ${title} ${theirs.get(id)}`).join(', '), steps: step };
  } catch (error) {
    if (!(error instanceof TornError)) throw error;
    return { state: null, steps: step };
  } finally {
    await order;
    for (const { reader } of clients.values()) await reader.query('ROLLBACK');
  }
}

async function reset(base: ShardName, hot: ShardName): Promise<void> {
  await of(base).writer.query(
    `TRUNCATE documents; INSERT INTO documents VALUES (1, 1, 'old', -1), (1, 2, 'old', -1), (2, 9, 'x', 0)`,
  );
  await of(hot).writer.query(
    'TRUNCATE documents_hot; INSERT INTO documents_hot VALUES (1, 1, 1), (1, 2, 1), (3, 9, 0)',
  );
}

let transactions = 0;

/** Prepared on both shards. @returns how it is committed on the one and the other */
async function prepare(base: ShardName, hot: ShardName, write: Write) {
  transactions += 1;
  const gid = `t${transactions}`;
  for (const [shard, sql] of [
    [base, write.base],
    [hot, write.hot],
  ] as const)
    await of(shard).writer.query(`BEGIN; ${sql}; PREPARE TRANSACTION '${gid}_${shard}'`);
  const commit = (shard: ShardName) => () => of(shard).writer.query(`COMMIT PREPARED '${gid}_${shard}'`);
  return { onBase: commit(base), onHot: commit(hot) };
}

async function besides(base: ShardName, hot: ShardName, lock: string | undefined): Promise<void> {
  if (lock === undefined) return;
  await of(base).other.query(`BEGIN; SELECT FROM documents ${lock}`);
  await of(hot).other.query(`BEGIN; SELECT FROM documents_hot ${lock}`);
}

/** When it happens: before the reading, before its n-th step, or behind it. */
function eventsOf(
  all: readonly (readonly [number, () => Promise<unknown>])[],
): Map<number, (() => Promise<unknown>)[]> {
  const events = new Map<number, (() => Promise<unknown>)[]>();
  for (const [at, happens] of all) events.set(at, [...(events.get(at) ?? []), happens]);
  return events;
}

const LAYOUTS = [
  ['on other shards than the home shard', A, B],
  ['with the base half at home', HOME, B],
  ['with the hot half at home', A, HOME],
] as const;

const CASES = Object.keys(WRITES).flatMap((name) =>
  LAYOUTS.filter(([, base, hot]) => (base === A && hot === B) || !/insert|delete/.test(name)).map(
    ([where, base, hot]) => [name, where, base, hot] as const,
  ),
);

describe('a transaction that commits on the two shards at any two steps of a reading', () => {
  it.each(CASES)('%s, %s', async (name, _, base, hot) => {
    const write = WRITES[name] as Write;
    await reset(base, hot);
    const { state, steps } = await read(base, hot, new Map());
    expect(state).toBe(OLD);
    const seen = new Set<State | null>();
    for (let first = 0; first <= steps; first++)
      for (let second = 0; second <= steps; second++) {
        await reset(base, hot);
        await besides(base, hot, write.besides);
        const { onBase, onHot } = await prepare(base, hot, write);
        const events = eventsOf([
          [first, onBase],
          [second, onHot],
        ]);
        const left = new Set(events.keys());
        const noted: Events = new Map(
          [...events].map(([at, list]) => [at, [...list, async () => void left.delete(at)]]),
        );
        const found = await read(base, hot, noted);
        for (const at of left) for (const happens of events.get(at) ?? []) await happens();
        for (const shard of [base, hot]) await of(shard).other.query('ROLLBACK');
        const when = { base: first, hot: second };
        expect([OLD, write.after, null], JSON.stringify(when)).toContain(found.state);
        seen.add(found.state);
        // Behind its end it is seen; and nothing is held against it then.
        if (first !== second) continue;
        if (first === 0) expect(found.state, JSON.stringify(when)).toBe(write.after);
        expect((await read(base, hot, new Map())).state, JSON.stringify(when)).toBe(write.after);
      }
    expect(seen).toContain(null);
  });
});

describe('a row that is there only between two looks', () => {
  it.each(LAYOUTS.slice(0, 2))('%s', async (_, base, hot) => {
    const insert = WRITES['an insert'] as Write;
    const remove: Write = {
      base: 'DELETE FROM documents WHERE id = 3',
      hot: 'DELETE FROM documents_hot WHERE id = 3; UPDATE documents_hot SET views = 3 WHERE id = 1',
      after: '1 old 3, 2 old 2',
    };
    await reset(base, hot);
    const { steps } = await read(base, hot, new Map());
    const places = Array.from({ length: steps + 1 }, (_unused, i) => i);
    for (const inserted of places)
      for (const removed of places.filter((at) => at >= inserted))
        for (const late of [removed, Math.min(removed + 2, steps), steps])
          for (const baseFirst of [true, false]) {
            await reset(base, hot);
            const one = await prepare(base, hot, insert);
            let two: Awaited<ReturnType<typeof prepare>> | undefined;
            const events = eventsOf([
              [inserted, one.onBase],
              [inserted, one.onHot],
              [
                removed,
                async () => {
                  two = await prepare(base, hot, remove);
                  await (baseFirst ? two.onBase : two.onHot)();
                },
              ],
              [late, async () => (baseFirst ? two?.onHot : two?.onBase)?.()],
            ]);
            const left = new Set(events.keys());
            const noted: Events = new Map(
              [...events].map(([at, list]) => [at, [...list, async () => void left.delete(at)]]),
            );
            const found = await read(base, hot, noted);
            for (const at of [...left].sort((x, y) => x - y))
              for (const happens of events.get(at) ?? []) await happens();
            const when = JSON.stringify({ inserted, removed, late, baseFirst });
            expect([OLD, insert.after, remove.after, null], when).toContain(found.state);
          }
  });
});

describe('rows that are not settled', () => {
  it('are not held to be so for what only runs, or has been rolled back', async () => {
    await reset(A, B);
    // Something else of the same tables is prepared all the while.
    await of(B).writer.query(`BEGIN; UPDATE documents_hot SET views = 5 WHERE id = 9; PREPARE TRANSACTION 'another'`);
    try {
      await of(B).other.query(
        'BEGIN; SAVEPOINT s; SELECT FROM documents_hot FOR UPDATE SKIP LOCKED; UPDATE documents_hot SET views = 7 WHERE id = 1',
      );
      expect((await read(A, B, new Map())).state).toBe(OLD);
      await of(B).other.query('ROLLBACK');
    } finally {
      await of(B).writer.query(`ROLLBACK PREPARED 'another'`);
    }
    const { onBase, onHot } = await prepare(A, B, WRITES['an update of both halves'] as Write);
    expect((await read(A, B, new Map())).state).toBeNull();
    await onBase();
    expect((await read(A, B, new Map())).state).toBeNull();
    await onHot();
    expect((await read(A, B, new Map())).state).toBe('1 new 2, 2 old 1');
  });
});
