import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { comparePositions, contains, KEY_TYPES, type KeyScalar, type KeyType } from '../../topology/key.js';
import { encodeText } from '../../topology/key-codec.js';
import { intervalOf } from '../../topology/successor.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { EDGES, Random, randomScalar } from './random-keys.js';

const range = (...keyTypes: KeyType[]) => ({ method: 'range', keyTypes }) as const;

describe('the interval of one key', () => {
  test('ends at the next value of its type', () => {
    const next = (type: KeyType, scalar: KeyScalar) => intervalOf(range(type), [scalar]).hi;
    expect(next('int2', 5n)).toEqual([6n]);
    expect(next('int2', 32767n)).toBeNull();
    expect(next('int4', 32767n)).toEqual([32768n]);
    expect(next('int8', 2n ** 63n - 1n)).toBeNull();
    expect(next('text', '')).toEqual(['\u0001']);
    expect(next('varchar', 'abc')).toEqual(['abc\u0001']);
    expect(next('uuid', `${'0'.repeat(30)}ff`)).toEqual([`${'0'.repeat(29)}100`]);
    expect(next('uuid', 'f'.repeat(32))).toBeNull();
    expect(next('date', -2147483648n)).toEqual([-2451545n]);
    expect(next('date', 0n)).toEqual([1n]);
    expect(next('date', 2145031948n)).toEqual([2147483647n]);
    expect(next('date', 2147483647n)).toBeNull();
    expect(next('timestamptz', -(2n ** 63n))).toEqual([-211813488000000000n]);
    expect(next('timestamp', 9223371331199999999n)).toEqual([2n ** 63n - 1n]);
  });

  test('of several columns, or the first of them, has everything that begins with it', () => {
    const scheme = range('int2', 'text', 'int2');
    expect(intervalOf(scheme, [5n]).hi).toEqual([6n]);
    expect(intervalOf(scheme, [5n, 'a']).hi).toEqual([5n, 'a\u0001']);
    expect(intervalOf(scheme, [5n, 'a', 7n]).hi).toEqual([5n, 'a', 8n]);
    expect(intervalOf(scheme, [5n, 'a', 32767n]).hi).toEqual([5n, 'a\u0001']);
    expect(intervalOf(scheme, [32767n]).hi).toBeNull();
    expect(contains(intervalOf(scheme, [5n, 'a', 32767n]), [5n, 'a', 32767n])).toBe(true);
    expect(contains(intervalOf(scheme, [5n, 'a']), [5n, 'a', 9n])).toBe(true);
  });

  test('by hash is that one hash', () => {
    const scheme = { method: 'hash', keyTypes: ['text', 'uuid'] } as const;
    expect(intervalOf(scheme, [-7n])).toEqual({ lo: [-7n], hi: [-6n] });
    expect(intervalOf(scheme, [2n ** 63n - 1n]).hi).toBeNull();
  });

  test('has that key and no other', () => {
    const random = new Random(7);
    for (const type of KEY_TYPES) {
      const values = [...EDGES[type], ...Array.from({ length: 100 }, () => randomScalar(type, random))];
      for (const key of values) {
        const interval = intervalOf(range(type), [key]);
        const inside = values.filter((other) => contains(interval, [other]));
        expect(inside).toEqual(values.filter((other) => comparePositions([other], [key]) === 0));
      }
    }
  });
});

test('PostgreSQL knows no value between a key and the end of its interval', async () => {
  const cluster = await startTestCluster();
  await withClient(cluster.url('postgres'), async (client) => {
    await client.query("SET TimeZone = 'UTC'");
    // What lies behind a value by the server's own arithmetic.
    const steps = {
      int2: '+ 1::int2',
      int4: '+ 1',
      int8: '+ 1',
      date: '+ 1',
      timestamp: "+ interval '0.000001 s'",
    } as const;
    await fc.assert(
      fc.asyncProperty(fc.bigInt(-1_000_000_000n, 1_000_000_000n), async (n) => {
        for (const [type, step] of Object.entries(steps) as [KeyType, string][]) {
          const scalar = type === 'int2' ? n % 30_000n : type === 'date' ? n % 2_000_000n : n;
          const hi = intervalOf(range(type), [scalar]).hi?.[0] as KeyScalar;
          const { rows } = await client.query(`SELECT $1::${type} ${step} = $2::${type} AS same`, [
            encodeText(type, scalar),
            encodeText(type, hi),
          ]);
          expect(rows).toEqual([{ same: true }]);
        }
      }),
      { numRuns: 20 },
    );
    // Texts: the key and U+0001 is the first text behind it; 0 is no character of a text.
    const { rows } = await client.query(
      `SELECT bool_and(t COLLATE "C" > 'ab' AND t >= 'ab' || chr(1)) AS first FROM (
         SELECT 'ab' || chr(i) AS t FROM generate_series(1, 127) i UNION ALL SELECT 'ab' || chr(1) || chr(i) FROM generate_series(1, 127) i) x`,
    );
    expect(rows).toEqual([{ first: true }]);
  });
});
