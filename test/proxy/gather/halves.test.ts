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
  { readonly reader: pg.Client; readonly writer: pg.Client; readonly other: pg.Client; readonly own: pg.Client }
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
    const all = {
      reader: await connected(),
      writer: await connected(),
      other: await connected(),
      own: await connected(),
    };
    await all.writer.query(`
      CREATE TABLE documents (tenant_id bigint, id int, title text, views int, PRIMARY KEY (tenant_id, id));
      CREATE TABLE documents_hot (tenant_id bigint, id int, views int, PRIMARY KEY (tenant_id, id))`);
    clients.set(shard, all);
  }
}, 60_000);
afterAll(async () => {
  for (const { reader, writer, other, own } of clients.values())
    for (const c of [reader, writer, other, own]) await c.end();
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

const BASE_ROWS = 'SELECT id, title FROM documents WHERE tenant_id = 1 ORDER BY id';
const HOT_ROWS = 'SELECT id, views FROM documents_hot WHERE tenant_id = 1';

interface Row {
  readonly id: number;
  readonly title: string;
  readonly views: number;
}

/** As the gather reads. @param lent where it reads in a transaction that has written there @returns null: it is not to be trusted */
async function read(
  base: ShardName,
  hot: ShardName,
  events: Events,
  lent: readonly ShardName[] = [],
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
  const backend = (shard: ShardName) => ({ shard }) as Backend;
  const owns = lent.map(backend);
  const ask: Ask = (on, sql) =>
    next(async () => {
      const { reader, own } = of(on.shard);
      const { rows } = await (owns.includes(on) ? own : reader).query<string[]>({ text: sql, rowMode: 'array' });
      return rows[0]?.[0] as string;
    });
  const home = backend(HOME);
  const atHome = lent.includes(HOME) ? [] : [home];
  const away = [A, B].map(backend);
  const readers = away.filter(({ shard }) => !lent.includes(shard));
  const begin = (shard: ShardName) => of(shard).reader.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  const places = { topology: topologyOf(base, hot), shards: [HOME, A, B], lent: new Set(lent) };
  const reading = new HalvesReading([DOCUMENTS], true, places, ask);
  const fetched = new Map<string, readonly Row[]>();
  /** What is looked at, and the rows, by one statement. */
  const atOnce = async (shard: ShardName) => {
    const asked = reading.asked(shard);
    const texts = [...(shard === base ? [BASE_ROWS] : []), ...(shard === hot ? [HOT_ROWS] : [])];
    const all = [...asked, ...texts.map((text) => `SELECT coalesce(json_agg(r), '[]')::text FROM (${text}) r`)];
    const values = await next(async () => {
      const sql = `SELECT ${all.map((text) => `(${text})`).join(', ')}`;
      return (await of(shard).own.query<string[]>({ text: sql, rowMode: 'array' })).rows[0] ?? [];
    });
    reading.told(shard, values);
    for (const [i, text] of texts.entries()) fetched.set(text, JSON.parse(values[asked.length + i] ?? ''));
  };
  try {
    await reading.ahead([...readers, ...atHome, ...owns], [...away, home]);
    for (const { shard } of readers) await begin(shard);
    await reading.inSnapshots(readers);
    for (const shard of lent) await atOnce(shard);
    await reading.aheadAtHome(home);
    await begin(HOME);
    await reading.inSnapshots(atHome);
    reading.check();
    const rowsOf = (shard: ShardName, sql: string) =>
      fetched.get(sql) ?? next(async () => (await of(shard).reader.query<Row>(sql)).rows);
    const ours = await rowsOf(base, BASE_ROWS);
    const theirs = new Map((await rowsOf(hot, HOT_ROWS)).map((row) => [row.id, row.views]));
    for (const { shard } of readers) await of(shard).reader.query('COMMIT');
    await reading.behind([...readers, ...owns], away);
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

/** A transaction that has written: rows 5 and 6 are there before, and nobody else changes them. */
interface Own {
  readonly base?: string;
  readonly hot: string;
  /** Its rows as it sees them. */
  readonly sees: State;
}

const OWN_OF_BOTH: Own = {
  base: `SAVEPOINT s; UPDATE documents SET title = 'mine' WHERE id = 6; RELEASE s; DELETE FROM documents WHERE id = 5; INSERT INTO documents VALUES (1, 7, 'mine', -1)`,
  hot: 'SELECT FROM documents_hot WHERE id = 6 FOR NO KEY UPDATE; DELETE FROM documents_hot WHERE id = 5; INSERT INTO documents_hot VALUES (1, 7, 70)',
  sees: '6 mine 1, 7 mine 70',
};
const OWN_OF_HOT: Own = { hot: 'UPDATE documents_hot SET views = 66 WHERE id = 6', sees: '5 old 1, 6 old 66' };

const OWN_CASES = [
  ...LAYOUTS.map((layout) => ['an update of both halves', ...layout, 'of both halves', OWN_OF_BOTH] as const),
  ...LAYOUTS.slice(0, 2).map((layout) => ['an update of both halves', ...layout, 'of hot halves', OWN_OF_HOT] as const),
  ...['an update of the base half of one row and the hot half of another', 'an insert', 'a delete'].map(
    (name) => [name, ...LAYOUTS[0], 'of both halves', OWN_OF_BOTH] as const,
  ),
];

describe('a transaction that commits on the two shards at any two steps of a reading in a transaction that has written', () => {
  it.each(OWN_CASES)('%s, %s, seen with changes of its own', async (name, _, base, hot, _of, own) => {
    const write = WRITES[name] as Write;
    const lent = own.base === undefined ? [hot] : [base, hot];
    const begin = async () => {
      await reset(base, hot);
      await of(base).writer.query(`INSERT INTO documents VALUES (1, 5, 'old', -1), (1, 6, 'old', -1)`);
      await of(hot).writer.query('INSERT INTO documents_hot VALUES (1, 5, 1), (1, 6, 1)');
      if (own.base !== undefined) await of(base).own.query(`BEGIN; ${own.base}`);
      await of(hot).own.query(`BEGIN; ${own.hot}`);
    };
    const end = async () => {
      for (const shard of lent) await of(shard).own.query('ROLLBACK');
    };
    const seenAs = (state: State) => `${state}, ${own.sees}`;
    await begin();
    const { state, steps } = await read(base, hot, new Map(), lent);
    expect(state).toBe(seenAs(OLD));
    await end();
    const seen = new Set<State | null>();
    for (let first = 0; first <= steps; first++)
      for (let second = 0; second <= steps; second++) {
        await begin();
        const { onBase, onHot } = await prepare(base, hot, write);
        const events = eventsOf([
          [first, onBase],
          [second, onHot],
        ]);
        const left = new Set(events.keys());
        const noted: Events = new Map(
          [...events].map(([at, list]) => [at, [...list, async () => void left.delete(at)]]),
        );
        const found = await read(base, hot, noted, lent);
        for (const at of left) for (const happens of events.get(at) ?? []) await happens();
        const when = JSON.stringify({ base: first, hot: second });
        expect([seenAs(OLD), seenAs(write.after), null], when).toContain(found.state);
        seen.add(found.state);
        if (first === 0 && second === 0) expect(found.state, when).toBe(seenAs(write.after));
        if (first === second) expect((await read(base, hot, new Map(), lent)).state, when).toBe(seenAs(write.after));
        await end();
      }
    expect(seen).toContain(null);
  });

  it('does not wait for what others have prepared on other rows', async () => {
    await reset(A, B);
    for (const [shard, table] of [
      [A, 'documents'],
      [B, 'documents_hot'],
    ] as const)
      await of(shard).other.query(`SELECT FROM ${table} WHERE id = 2 FOR UPDATE`);
    for (const [shard, sql] of [
      [A, `UPDATE documents SET title = 'mine' WHERE id = 1`],
      [B, 'UPDATE documents_hot SET views = 9 WHERE id = 1'],
    ] as const)
      await of(shard).own.query(`BEGIN; ${sql}`);
    const { onBase, onHot } = await prepare(A, B, {
      base: `UPDATE documents SET title = 'new' WHERE tenant_id = 2`,
      hot: 'UPDATE documents_hot SET views = 2 WHERE tenant_id = 3',
      after: '',
    });
    try {
      expect((await read(A, B, new Map(), [A, B])).state).toBe('1 mine 9, 2 old 1');
    } finally {
      for (const shard of [A, B]) await of(shard).own.query('ROLLBACK');
      await onBase();
      await onHot();
    }
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
