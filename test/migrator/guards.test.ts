import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { gateAction, guardTableAction, setGateSql } from '../../migrator/guards.js';
import { shardedTableOf } from '../../migrator/move.js';
import { GATE_CLOSED, GATE_OPEN, objectNames } from '../../migrator/names.js';
import { readTable, type TableInfo } from '../../migrator/schema-read.js';
import { ShardSession } from '../../migrator/shard-session.js';
import { positionOf } from '../../topology/hash.js';
import { comparePositions, contains, type KeyTuple, type KeyType, type Method } from '../../topology/key.js';
import { decodeText } from '../../topology/key-codec.js';
import { quoteTable } from '../../topology/quote.js';
import type { Keyspace, Shard } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';

// A closed gate keeps out the rows of the interval, and no others, whatever the key is made of and whatever their writer's names mean.

let session: ShardSession;
let writer: pg.Client;
let made = 0;

beforeAll(async () => {
  const url = (await startTestCluster()).url();
  session = await ShardSession.open({ name: 's1', url } as unknown as Shard, null);
  writer = new pg.Client(url);
  await writer.connect();
  await writer.query(`
    CREATE SCHEMA mine;
    CREATE DOMAIN mine.int8 AS pg_catalog.text; CREATE DOMAIN mine.text AS pg_catalog.int4 CHECK (VALUE > 100);
    CREATE FUNCTION mine.never(bigint, bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
    CREATE FUNCTION mine.never(bigint, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
    CREATE FUNCTION mine.hashint8extended(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 0';
    CREATE OPERATOR mine.>= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = mine.never);
    CREATE OPERATOR mine.= (LEFTARG = bigint, RIGHTARG = int, FUNCTION = mine.never);
    CREATE OPERATOR mine.<> (LEFTARG = bigint, RIGHTARG = int, FUNCTION = mine.never);
    SET search_path = mine, pg_catalog`);
});
afterAll(async () => {
  await writer.end();
  await session.close();
});

const DAYS = ['2023-12-31', '2024-02-29', '2024-03-01', '2030-01-01'];
const UUIDS = ['0', '7', '8', 'f'].map((c) => `${c.repeat(8)}-0000-4000-8000-000000000000`);
const KEYS: Readonly<Record<KeyType, readonly string[]>> = {
  int2: ['-3', '0', '7', '32767'],
  int4: ['-3', '0', '7', '2147483647'],
  int8: ['-3', '0', '7', '9223372036854775807'],
  uuid: UUIDS,
  text: ['', 'B', 'a', 'é'],
  varchar: ['', 'B', 'a', "it's"],
  date: DAYS,
  timestamp: DAYS.map((day) => `${day} 12:00:00`),
  timestamptz: DAYS.map((day) => `${day} 12:00:00+00`),
};
const SINGLE = Object.keys(KEYS).map((type) => [type as KeyType]);
const CASES = (['range', 'hash'] as const).flatMap((method) =>
  [...SINGLE, ['int8', 'text'] as KeyType[], ['date', 'uuid'] as KeyType[]].map(
    (types): [string, Method, readonly KeyType[]] => [`${method} of ${types.join(', ')}`, method, types],
  ),
);

/** All keys with these columns. */
const tuples = (types: readonly KeyType[]): string[][] =>
  types.reduce<string[][]>((all, type) => all.flatMap((key) => KEYS[type].map((value) => [...key, value])), [[]]);

/** What `work` fails with, and nothing of it stays. */
async function refusal(sql: string, values: readonly string[]): Promise<string | null> {
  await writer.query('BEGIN');
  try {
    await writer.query(sql, [...values]);
    return null;
  } catch (error) {
    return (error as { code: string }).code;
  } finally {
    await writer.query('ROLLBACK');
  }
}

test.each(CASES)('%s', async (_, method, types) => {
  const keyspace = { method, keyTypes: types } as unknown as Keyspace;
  const keyColumns = types.map((_, i) => `Key ${i}`);
  const table = { schema: 'public', table: `t${++made}` };
  const columns = keyColumns.map((c) => `"${c}"`).join(', ');
  await session.query(
    `CREATE TABLE ${quoteTable(table)} (${keyColumns.map((c, i) => `"${c}" ${types[i]}`).join(', ')}, n int, PRIMARY KEY (${columns}))`,
  );
  const keys = tuples(types);
  const position = (key: string[]) =>
    positionOf(keyspace, key.map((value, i) => decodeText(types[i] as KeyType, value)) as KeyTuple);
  const sorted = keys.map(position).toSorted(comparePositions);
  const interval = { lo: sorted[1] ?? null, hi: sorted[3] ?? null };
  const isIn = (key: string[]) => contains(interval, position(key));
  expect(keys.filter(isIn)).toHaveLength(2);

  const insert = `INSERT INTO ${quoteTable(table)} VALUES (${types.map((_, i) => `$${i + 1}`).join(', ')}, 0)`;
  for (const key of keys) await writer.query(insert, key);
  const names = objectNames(BigInt(made), '00000000-0000-0000-0000-000000000001');
  const info = (await readTable(session.reader, quoteTable(table))) as TableInfo;
  const moving = shardedTableOf(keyspace, { ...table, keyColumns }, interval);
  await session.transaction(gateAction(names, { keyspace, interval, keys: [keyColumns] }, 'source', 's1').sql);
  await session.transaction(guardTableAction(names, 'source', moving, info).sql);

  const own = `WHERE (${columns}) = (${types.map((_, i) => `$${i + 1}`).join(', ')})`;
  const to = `SET (${columns}) = ROW (${types.map((_, i) => `$${types.length + i + 1}`).join(', ')})`;
  const writes = async (key: string[]) => {
    const there = `DELETE FROM ${quoteTable(table)} ${own}`;
    const outcomes = [await refusal(`UPDATE ${quoteTable(table)} SET n = 1 ${own}`, key), await refusal(there, key)];
    // Whoever is on his way in or out is of the interval, too.
    const other = keys.find((k) => !isIn(k) && k !== key) as string[];
    outcomes.push(await refusal(`UPDATE ${quoteTable(table)} ${to} ${own}`, [...key, ...other]));
    outcomes.push(await refusal(`UPDATE ${quoteTable(table)} ${to} ${own}`, [...other, ...key]));
    return outcomes;
  };
  const DUPLICATE = '23505';
  for (const key of keys) expect(await writes(key)).toEqual([null, null, DUPLICATE, DUPLICATE]);
  await session.query(setGateSql(names, GATE_CLOSED));
  for (const key of keys)
    expect([key, ...(await writes(key)), await refusal(insert, key)]).toEqual(
      isIn(key)
        ? [key, 'SH001', 'SH001', 'SH001', 'SH001', 'SH001']
        : [key, null, null, DUPLICATE, DUPLICATE, DUPLICATE],
    );
  await session.query(setGateSql(names, GATE_OPEN));
  for (const key of keys) expect(await refusal(insert, key)).toBe(DUPLICATE);

  // Asked within its caller: a call of its own would take longer than all of the guard.
  const plan = await session.query(
    `EXPLAIN (VERBOSE) SELECT FROM ${quoteTable(table)} WHERE foreshard_shard.${names.guardFunction.table}_has(${columns})`,
  );
  expect(JSON.stringify(plan)).not.toContain('_has(');
});
