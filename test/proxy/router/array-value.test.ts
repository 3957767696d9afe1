import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { elementsOfBinary, elementsOfText } from '../../../proxy/router/array-value.js';
import { startTestCluster } from '../../support/cluster.js';

let client: pg.Client;

beforeAll(async () => {
  const cluster = await startTestCluster();
  client = new pg.Client(cluster.url());
  await client.connect();
});
afterAll(() => client?.end());

const strings = (elements: readonly (Buffer | null)[] | null | undefined) =>
  elements?.map((e) => e?.toString('utf8') ?? null) ?? null;

/** What PostgreSQL finds in it: null when it says that it is no array, or one of several dimensions. */
async function asServerReads(text: string): Promise<(string | null)[] | null> {
  try {
    const { rows } = await client.query<{ elements: string; dimensions: number | null }>(
      `SELECT coalesce(jsonb_agg(e ORDER BY i), '[]')::text AS elements, max(array_ndims($1::text[])) AS dimensions
       FROM unnest($1::text[]) WITH ORDINALITY u(e, i)`,
      [text],
    );
    return JSON.parse(rows[0]?.elements ?? 'null');
  } catch (error) {
    if ((error as { code?: string }).code === '22P02') return null;
    throw error;
  }
}

describe('an array in text form', () => {
  it.each([
    ['{}', []],
    [' { } ', []],
    ['{1,2}', ['1', '2']],
    ['\t{ 1 ,\n2 } ', ['1', '2']],
    ['{a b, c}', ['a b', 'c']],
    ['{NULL,null,"NULL"}', [null, null, 'NULL']],
    ['{"a,b","c\\"d","e\\\\f"," g "}', ['a,b', 'c"d', 'e\\f', ' g ']],
    ['{""}', ['']],
    ['{ümläut}', ['ümläut']],
  ])('%j holds %j', async (text, elements) => {
    expect(strings(elementsOfText(Buffer.from(text)))).toEqual(elements);
    expect(await asServerReads(text)).toEqual(elements);
  });

  it.each(['', '{', '1', '{1', '{1,}', '{,1}', '{"a"b}', '{a"b"}', '{1}2', '{{1}}', '[0:1]={1,2}', '{a\\b}', '{"a'])(
    'does not read %j',
    (text) => {
      expect(elementsOfText(Buffer.from(text))).toBeNull();
    },
  );

  it('is read as PostgreSQL reads it, or not at all', async () => {
    const piece = fc.constantFrom(
      '{',
      '}',
      ',',
      '"',
      '\\',
      ' ',
      '\t',
      '\v',
      'a',
      '1',
      'NULL',
      'nUll',
      'é',
      '-',
      '[',
      ':',
      '=',
    );
    const text = fc.array(piece, { maxLength: 10 }).map((p) => p.join(''));
    let read = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          text,
          text.map((t) => `{${t}}`),
        ),
        async (value) => {
          const elements = strings(elementsOfText(Buffer.from(value)));
          if (elements === null) return;
          read++;
          expect(await asServerReads(value)).toEqual(elements);
        },
      ),
      { numRuns: 3000 },
    );
    expect(read).toBeGreaterThan(100);
  });
});

describe('an array in binary form', () => {
  it.each([
    ["'{}'::int8[]", 20, []],
    ["'{1,NULL,-3}'::int8[]", 20, ['0000000000000001', null, 'fffffffffffffffd']],
    ['\'{a,""}\'::text[]', 25, ['61', '']],
    ["'{7}'::int4[]", 23, ['00000007']],
  ])('%s', async (sql, oid, elements) => {
    const { rows } = await client.query<{ bytes: Buffer }>(`SELECT array_send(${sql}) AS bytes`);
    const found = elementsOfBinary(rows[0]?.bytes as Buffer);
    expect(found?.oid).toBe(oid);
    expect(found?.elements?.map((e) => e?.toString('hex') ?? null)).toEqual(elements);
  });

  it('is not read when it has several dimensions, or another length than it says', async () => {
    const { rows } = await client.query<{ flat: Buffer; deep: Buffer }>(
      `SELECT array_send('{1,2}'::int8[]) AS flat, array_send('{{1},{2}}'::int8[]) AS deep`,
    );
    const { flat, deep } = rows[0] as { flat: Buffer; deep: Buffer };
    expect(elementsOfBinary(deep)).toBeNull();
    for (let length = 0; length < flat.length; length++) expect(elementsOfBinary(flat.subarray(0, length))).toBeNull();
    expect(elementsOfBinary(Buffer.concat([flat, Buffer.of(0)]))).toBeNull();
  });
});
