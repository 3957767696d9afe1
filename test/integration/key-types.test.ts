import { randomInt, randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { positionOf } from '../../topology/hash.js';
import { intervalPredicate } from '../../topology/interval-sql.js';
import { comparePositions, type KeyType, type Method, type Position } from '../../topology/key.js';
import { decodeText, positionToJson } from '../../topology/key-codec.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { Sharded } from '../support/sharded.js';

interface Case {
  readonly name: string;
  readonly types: readonly KeyType[];
  readonly sqlTypes: readonly string[];
  readonly make: (i: number) => readonly string[];
}

const LETTERS = [...'aZ09 é語😀_-'];
const word = () => Array.from({ length: randomInt(1, 12) }, () => LETTERS[randomInt(0, LETTERS.length)]).join('');
const day = (i: number) =>
  new Date(Date.UTC(1970 + (i % 120), i % 12, 1 + (i % 28), i % 24, i % 60, i % 60)).toISOString();

const CASES: readonly Case[] = [
  { name: 'i2', types: ['int2'], sqlTypes: ['smallint'], make: () => [String(randomInt(-32768, 32768))] },
  { name: 'i4', types: ['int4'], sqlTypes: ['int'], make: () => [String(randomInt(-2147483648, 2147483647))] },
  {
    name: 'i8',
    types: ['int8'],
    sqlTypes: ['bigint'],
    make: () => [String(BigInt(randomInt(-(2 ** 40), 2 ** 40)) * 7919n)],
  },
  { name: 'u', types: ['uuid'], sqlTypes: ['uuid'], make: () => [randomUUID()] },
  { name: 't', types: ['text'], sqlTypes: ['text'], make: () => [word()] },
  { name: 'v', types: ['varchar'], sqlTypes: ['varchar(40)'], make: () => [`${word()}x`] },
  { name: 'd', types: ['date'], sqlTypes: ['date'], make: (i) => [day(i).slice(0, 10)] },
  { name: 'ts', types: ['timestamp'], sqlTypes: ['timestamp'], make: (i) => [day(i).slice(0, 19)] },
  { name: 'tz', types: ['timestamptz'], sqlTypes: ['timestamptz'], make: (i) => [`${day(i).slice(0, 19)}+02`] },
  { name: 'c', types: ['int4', 'text'], sqlTypes: ['int', 'text'], make: (i) => [String(i % 7), word()] },
];

const ROWS = 120;
let s: Sharded;
let c: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null });
  c = await s.connect();
});
afterAll(() => s.stop());

describe.each(CASES)('a key of $types', (kase) => {
  it.each(['range', 'hash'] as const)(
    'sends every row, by %s, where PostgreSQL itself says that it belongs, and finds it there',
    async (method: Method) => {
      const table = `k_${kase.name}_${method}`;
      const columns = kase.types.map((_, i) => `k${i}`);
      const definition = columns.map((k, i) => `${k} ${kase.sqlTypes[i]} NOT NULL`).join(', ');
      for (const shard of [0, 1] as const)
        await s.onShard(
          shard,
          `CREATE TABLE ${table} (${definition}, n int, PRIMARY KEY (${columns.join(', ')})); GRANT ALL ON ${table} TO app`,
        );
      const registry = new Registry(s.catalog, 'test');
      await registry.createKeyspace({ name: table, method, keyTypes: kase.types });
      await registry.addTable({ table: { schema: 'public', table }, keyspace: table, keyColumns: columns });

      const scheme = { method, keyTypes: kase.types };
      const keys = [
        ...new Map(Array.from({ length: ROWS }, (_, i) => kase.make(i)).map((k) => [k.join('\0'), k])).values(),
      ];
      const positions = keys.map((key): Position => {
        const scalars = key.map((text, i) => decodeText(kase.types[i] as KeyType, text));
        if (scalars.some((x) => x === null)) throw new Error(`not a key: ${key}`);
        return positionOf(scheme, scalars as Position);
      });
      const cut = [...positions].sort(comparePositions)[Math.floor(positions.length / 2)] as Position;
      const bound = JSON.stringify(positionToJson(scheme, cut));
      await s.catalog.pool.query(
        `WITH r AS (UPDATE foreshard.range SET hi = $2 WHERE keyspace = $1), e AS (UPDATE foreshard.meta SET epoch = epoch + 1)
       INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ($1, $2, 's2')`,
        [table, bound],
      );
      await s.reloaded();

      const list = [...columns, 'n'].join(', ');
      const marks = columns.map((_, i) => `$${i + 1}`).join(', ');
      for (const [n, key] of keys.entries()) {
        const literals = key.map((text) => `'${text}'`).join(', ');
        if (n % 2 === 0) await c.query(`INSERT INTO ${table} (${list}) VALUES (${marks}, ${n})`, [...key]);
        else await c.query(`INSERT INTO ${table} (${list}) VALUES (${literals}, ${n})`);
      }
      const { ranges } = (await s.catalog.loadTopology()).keyspaces.get(table as KeyspaceName) ?? { ranges: [] };
      let found = 0;
      for (const range of ranges) {
        const shard = range.shard === 's1' ? 0 : 1;
        const predicate = intervalPredicate(scheme, columns, range);
        const [row] = await s.onShard<{ here: number; wrong: number }>(
          shard,
          `SELECT count(*)::int AS here, count(*) FILTER (WHERE NOT (${predicate}))::int AS wrong FROM ${table}`,
        );
        expect(row?.wrong).toBe(0);
        expect(row?.here).toBeGreaterThan(0);
        found += row?.here ?? 0;
      }
      expect(found).toBe(keys.length);

      const where = columns.map((k, i) => `${k} = $${i + 1}`).join(' AND ');
      for (const [n, key] of keys.entries()) {
        const { rows } = await c.query({
          name: `get_${table}`,
          text: `SELECT n FROM ${table} WHERE ${where}`,
          values: [...key],
        });
        expect(rows).toEqual([{ n }]);
      }
    },
  );
});
