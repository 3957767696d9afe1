import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hashKey, hashScalar } from '../../topology/hash.js';
import { hashExpression } from '../../topology/interval-sql.js';
import { KEY_TYPES, type KeyScalar, type KeyType } from '../../topology/key.js';
import { decodeText, encodeText } from '../../topology/key-codec.js';
import { startTestCluster } from '../support/cluster.js';
import { EDGES, Random, randomScalar } from './random-keys.js';

const VALUES_PER_TYPE = 1_000_000;
const BATCH = 50_000;

let client: pg.Client;
let major: number;

beforeAll(async () => {
  const cluster = await startTestCluster();
  client = new pg.Client({ connectionString: cluster.url() });
  await client.connect();
  const version = await client.query<{ v: number }>(`SELECT current_setting('server_version_num')::int AS v`);
  major = Math.floor((version.rows[0] as { v: number }).v / 10000);
  await client.query(`SET TimeZone = 'Asia/Kolkata'`);
});

afterAll(async () => {
  await client?.end();
});

/** PostgreSQL's own function for the type, on a column v. */
function native(type: KeyType): string {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
      return `hash${type}extended(v, $2)`;
    case 'uuid':
      return 'uuid_hash_extended(v, $2)';
    case 'text':
    case 'varchar':
      return 'hashtextextended(v, $2)';
    case 'date':
      return major >= 18 ? 'hashdateextended(v, $2)' : hashExpression(['date'], ['v']).replace('0::bigint', '$2');
    case 'timestamp':
      return 'timestamp_hash_extended(v, $2)';
    case 'timestamptz':
      return major >= 18 ? 'timestamptz_hash_extended(v, $2)' : `timestamp_hash_extended(v AT TIME ZONE 'UTC', $2)`;
  }
}

describe('hashScalar is what PostgreSQL computes', () => {
  for (const type of KEY_TYPES) {
    it(`${type}: ${VALUES_PER_TYPE} random values`, async () => {
      const random = new Random(20240229);
      for (let done = 0; done < VALUES_PER_TYPE; done += BATCH) {
        const seed = done === 0 ? 0n : random.int64();
        const values: KeyScalar[] = [...EDGES[type]];
        while (values.length < BATCH) values.push(randomScalar(type, random));
        await compareBatch(type, values, seed);
      }
    });
  }
});

async function compareBatch(type: KeyType, values: readonly KeyScalar[], seed: bigint): Promise<void> {
  const texts = values.map((value) => encodeText(type, value));
  const ours = values.map((value) => hashScalar(type, value, seed));
  const ownSql = hashExpression([type], ['v']).replace('0::bigint', '$2');
  const result = await client.query<{ native: string; own: string }>(
    `SELECT sum(${native(type)})::text AS native, sum(${ownSql})::text AS own FROM unnest($1::${type}[]) AS t(v)`,
    [texts, seed.toString()],
  );
  const sum = ours.reduce((a, b) => a + b, 0n).toString();
  if (result.rows[0]?.native === sum && result.rows[0].own === sum) return;

  const rows = await client.query<{ native: string; own: string }>(
    `SELECT ${native(type)}::text AS native, ${ownSql}::text AS own FROM unnest($1::${type}[]) WITH ORDINALITY AS t(v, n) ORDER BY n`,
    [texts, seed.toString()],
  );
  const wrong = rows.rows.findIndex((row, i) => row.native !== ours[i]?.toString() || row.own !== row.native);
  expect({ value: texts[wrong], seed, hash: ours[wrong]?.toString() }).toEqual({
    value: texts[wrong],
    seed,
    hash: `${rows.rows[wrong]?.native} (row filter: ${rows.rows[wrong]?.own})`,
  });
}

describe('hashKey', () => {
  it('chains the columns of a composite key as the SQL expression does', async () => {
    const random = new Random(7);
    for (let round = 0; round < 40; round++) {
      const types = Array.from({ length: 1 + random.below(4) }, () => random.pick(KEY_TYPES));
      const keys = Array.from({ length: 200 }, () => types.map((type) => randomScalar(type, random)));
      const columns = types.map((_, i) => `c${i}`);
      const arrays = types.map((type, i) => keys.map((key) => encodeText(type, key[i] as KeyScalar)));
      const { rows } = await client.query<{ h: string }>(
        `SELECT (${hashExpression(types, columns)})::text AS h
           FROM ROWS FROM (${types.map((type, i) => `unnest($${i + 1}::${type}[])`).join(', ')}) WITH ORDINALITY
             AS t(${columns.join(', ')}, n) ORDER BY n`,
        arrays,
      );
      expect(rows.map((row) => row.h)).toEqual(keys.map((key) => hashKey(types, key).toString()));
    }
  });
});

describe('the text form of keys', () => {
  for (const type of KEY_TYPES) {
    it(`${type}: what encodeText writes is what PostgreSQL prints, and decodes to the same key`, async () => {
      const random = new Random(99);
      const values = [...EDGES[type], ...Array.from({ length: 20_000 }, () => randomScalar(type, random))];
      const texts = values.map((value) => encodeText(type, value));
      await client.query(`BEGIN; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'`);
      const { rows } = await client.query<{ t: string }>(
        `SELECT v::text AS t FROM unnest($1::${type}[]) WITH ORDINALITY AS t(v, n) ORDER BY n`,
        [texts],
      );
      await client.query('COMMIT');
      expect(rows.map((row) => row.t)).toEqual(texts);
      expect(texts.map((text) => decodeText(type, text))).toEqual(values);
      expect(texts.map((text) => decodeText(type, Buffer.from(`xx${text}y`), 2, 2 + Buffer.byteLength(text)))).toEqual(
        values,
      );
    });
  }
});
