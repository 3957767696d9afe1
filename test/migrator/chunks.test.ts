import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Chunk, Chunks, chunked, chunkPredicate, type Layout } from '../../migrator/chunks.js';
import { shardedTableOf } from '../../migrator/move.js';
import { readTable, type TableInfo } from '../../migrator/schema-read.js';
import { ShardSession } from '../../migrator/shard-session.js';
import { quoteTable } from '../../topology/quote.js';
import type { Keyspace, Shard } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

// A table that is larger than a few chunks, in the order of its identity or in none, cut where a sample of its pages says.

const ROWS = 120_000;
const CHUNK = 12_000;
const keyspace = { method: 'range', keyTypes: ['int8'] } as unknown as Keyspace;
let session: ShardSession;
let url: string;

beforeAll(async () => {
  url = (await startTestCluster()).url();
  await withClient(url, async (c) => {
    for (const [name, order] of [
      ['ordered', 'ORDER BY t, i'],
      ['scattered', 'ORDER BY i, t'],
    ])
      await c.query(
        `CREATE TABLE ${name} (tenant_id bigint, id text, body text, PRIMARY KEY (tenant_id, id));
         INSERT INTO ${name} SELECT t, 'order ' || i, repeat('x', 60) FROM generate_series(1, 100) t, generate_series(1, ${ROWS / 100}) i ${order}`,
      );
  });
  session = await ShardSession.open({ name: 's1', url } as unknown as Shard, null);
}, 60_000);
afterAll(() => session.close());

/** All chunks of the tenants from `lo` on, with the rows of each; and which statements the server was asked to find them. */
async function cut(name: string, rows: (n: number) => number, lo: bigint | null = null) {
  const table = { schema: 'public', table: name };
  const info = (await readTable(session.reader, quoteTable(table))) as TableInfo;
  const of = chunked(
    shardedTableOf(keyspace, { ...table, keyColumns: ['tenant_id'] }, { lo: lo === null ? null : [lo], hi: null }),
    info,
  );
  const [{ pages, all }] = (await session.query<{ pages: number; all: number }>(
    `SELECT pg_relation_size('public.${name}')::int / 8192 AS pages, (SELECT count(*)::int FROM public.${name} WHERE ${of.table.predicate()}) AS all`,
  )) as [{ pages: number; all: number }];
  const rowBytes = (pages * 8192) / ROWS;
  const layout: Layout = { pages, bytes: all * rowBytes, rowBytes };
  const asked: string[] = [];
  const listening = new Proxy(session, {
    get: (target, property) =>
      property === 'interruptible'
        ? (sql: string, values: unknown[], check: () => void) => {
            asked.push(sql);
            return target.interruptible(sql, values, check);
          }
        : Reflect.get(target, property),
  });
  const chunks = new Chunks(listening, of, layout, () => undefined);
  const counts: number[] = [];
  let chunk: Chunk = { after: null, to: null };
  do {
    chunk = await chunks.next(chunk.to, rows(counts.length));
    const [counted] = await session.query<{ n: number }>(
      `SELECT count(*)::int AS n FROM public.${name} WHERE ${chunkPredicate(of, chunk)}`,
    );
    counts.push(counted?.n as number);
  } while (chunk.to !== null);
  const sampled = asked.filter((sql) => sql.includes('TABLESAMPLE')).length;
  return { all, counts, sampled, passed: asked.length - sampled };
}

describe.each(['ordered', 'scattered'])('of a table whose rows lie %s', (name) => {
  test('each row is in one chunk, and one look at a part of its pages tells most of the chunks', async () => {
    const { all, counts, sampled, passed } = await cut(name, () => CHUNK);
    expect(counts.reduce((a, b) => a + b)).toBe(all);
    expect(sampled).toBe(1);
    expect(passed).toBeLessThan(4);
    const whole = counts.slice(0, -2);
    expect(whole.length).toBeGreaterThan(4);
    for (const n of whole) expect(n).toBeGreaterThan(CHUNK / 4);
    for (const n of whole) expect(n).toBeLessThan(CHUNK * 3);
  });

  test('they are looked for anew when chunks are to be of another size', async () => {
    const { all, counts, sampled } = await cut(name, (n) => (n < 2 ? CHUNK : 3 * CHUNK));
    expect(counts.reduce((a, b) => a + b)).toBe(all);
    expect(sampled).toBe(2);
  });

  test('rows are passed one by one where the sample would not be small', async () => {
    const small = await cut(name, () => 1000, 81n);
    expect(small.counts.reduce((a, b) => a + b)).toBe(small.all);
    expect(small.sampled).toBe(0);
    expect(small.counts.slice(0, -1)).toEqual(small.counts.slice(0, -1).map(() => 1000));
  });
});
