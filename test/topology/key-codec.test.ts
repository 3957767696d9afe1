import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { comparePositions, KEY_TYPES, type KeyScalar, type KeyType } from '../../topology/key.js';
import {
  acceptsOid,
  decodeBinary,
  decodeText,
  encodeText,
  KEY_TYPE_OID,
  keyTypeFromOid,
  keyTypeFromPg,
  positionFromJson,
  positionToJson,
  sameFamily,
} from '../../topology/key-codec.js';
import { startTestCluster } from '../support/cluster.js';
import { EDGES, Random, randomScalar } from './random-keys.js';

let client: pg.Client;

beforeAll(async () => {
  const cluster = await startTestCluster();
  client = new pg.Client({ connectionString: cluster.url() });
  await client.connect();
});

afterAll(async () => {
  await client?.end();
});

/** Forms people and drivers write, from which the random inputs below are bred. */
const FORMS: Readonly<Record<KeyType, readonly string[]>> = {
  int2: ['1', '-32768', '32768', '+7', ' 42 ', '\t-5\n', '007', '0x1F', '1_000', '1e3', '5.0', '- 5', ''],
  int4: ['2147483647', '2147483648', '-2147483648', '-2147483649', ' +12 ', '0b11', '1 2'],
  int8: [
    '9223372036854775807',
    '9223372036854775808',
    '-9223372036854775808',
    '-9223372036854775809',
    '0o17',
    '000000000000000000000000012',
  ],
  uuid: [
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
    'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
    '{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}',
    'a0eebc999c0b4ef8bb6d6bb9bd380a11',
    'a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11',
    ' a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
  ],
  text: ['', 'a', ' padded ', 'é€😀', "o'clock", '\\'],
  varchar: ['', 'a', ' padded', 'trailing ', 'é€😀'],
  date: [
    '2024-02-29',
    '2023-02-29',
    '1900-02-29',
    '2000-02-29',
    '0001-01-01',
    '0000-01-01',
    '0044-03-15 BC',
    '4714-11-24 BC',
    '4714-11-23 BC',
    '5874897-12-31',
    '5874898-01-01',
    'infinity',
    '-Infinity',
    '2024-1-2',
    '01/02/03',
    'today',
    'epoch',
    '20240229',
    'January 8, 1999',
  ],
  timestamp: [
    '2024-02-29 12:34:56.789',
    '2024-02-29T12:34:56.789012Z',
    '2024-02-29 12:34',
    '2024-02-29',
    '2024-02-29 24:00:00',
    '2024-02-29 12:34:60',
    '2024-02-29 12:34:56+05:30',
    '2024-02-29 12:34:56.1234567',
    '294276-12-31 23:59:59.999999',
    '294277-01-01 00:00:00',
    '4714-11-24 00:00:00 BC',
    '4714-11-23 23:59:59 BC',
    'infinity',
    'now',
  ],
  timestamptz: [
    '2024-02-29 12:34:56.789+00',
    '2024-02-29T12:34:56.789012Z',
    '2024-02-29 12:34+05:30',
    '2024-02-29 12:34:56-0330',
    '2024-02-29 12:34:56+15:59:59',
    '2024-02-29 12:34:56+16:00',
    '2024-02-29 12:34:56',
    '2024-02-29 12:34:56 America/New_York',
    '294276-12-31 23:59:59.999999+00',
    '4714-11-24 00:00:00+00 BC',
    '4714-11-24 00:00:00+01 BC',
    '-infinity',
  ],
};

const ALPHABET = '0123456789abcdefT Z+-:./{}BC_xé';

function mutate(form: string, random: Random): string {
  const chars = [...form];
  for (let n = random.below(3); n >= 0; n--) {
    const at = random.below(chars.length + 1);
    const other = ALPHABET[random.below(ALPHABET.length)] as string;
    const what = random.below(3);
    if (what === 0) chars.splice(at, 1, other);
    else if (what === 1) chars.splice(at, 0, other);
    else chars.splice(at, 1);
  }
  return chars.join('');
}

describe('decodeText', () => {
  for (const type of KEY_TYPES) {
    it(`${type}: is sure only of what PostgreSQL reads the same way, under any DateStyle and TimeZone`, async () => {
      const random = new Random(31);
      const inputs = [...FORMS[type]];
      while (inputs.length < 20_000) {
        const form = random.below(2) ? random.pick(FORMS[type]) : encodeText(type, randomScalar(type, random));
        inputs.push(mutate(form, random));
      }
      const ours = inputs.map((input) => decodeText(type, input));
      const sure = inputs.flatMap((input, i) => (ours[i] === null ? [] : [{ input, scalar: ours[i] as KeyScalar }]));
      expect(sure.length).toBeGreaterThan(500);
      for (const [style, zone] of [
        ['ISO, MDY', 'UTC'],
        ['German', 'Asia/Kolkata'],
        ['SQL, DMY', 'America/St_Johns'],
        ['Postgres, YMD', 'Pacific/Apia'],
      ]) {
        await client.query(`SELECT set_config('DateStyle', $1, false), set_config('TimeZone', $2, false)`, [
          style,
          zone,
        ]);
        const { rows } = await client.query<{ input: string }>(
          `SELECT input FROM unnest($1::text[], $2::text[]) AS t(input, expected)
            WHERE CASE WHEN pg_input_is_valid(input, '${type}') THEN input::${type} <> expected::${type} ELSE true END`,
          [sure.map((s) => s.input), sure.map((s) => encodeText(type, s.scalar))],
        );
        expect(rows).toEqual([]);
      }
      expect(inputs.map((s) => decodeText(type, Buffer.from(`'${s}'`), 1, 1 + Buffer.byteLength(s)))).toEqual(ours);
    });
  }

  it.each<[KeyType, string, string]>([
    ['int4', ' +12\n', '12'],
    ['int8', '-9223372036854775808', '-9223372036854775808'],
    ['uuid', '{A0EEBC99-9C0B4EF8BB6D-6BB9BD380A11}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['date', '2024-02-29', '2024-02-29'],
    ['date', 'Infinity', 'infinity'],
    ['timestamp', '2024-02-29T12:34:56.789Z', '2024-02-29 12:34:56.789'],
    ['timestamptz', '2024-02-29T12:34:56.789+05:30', '2024-02-29 07:04:56.789+00'],
    ['text', 'naïve ', 'naïve '],
  ])('%s %j is read as %s', (type, input, text) => {
    const scalar = decodeText(type, input);
    expect(scalar === null ? null : encodeText(type, scalar)).toBe(text);
  });

  it.each<[KeyType, string]>([
    ['int2', '32768'],
    ['int4', '0x1F'],
    ['int4', '\u0131'],
    ['uuid', '\u0131'.repeat(32)],
    ['int4', '1_000'],
    ['int4', ''],
    ['int4', '1.0'],
    ['uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1'],
    ['uuid', 'a0e-ebc999c0b4ef8bb6d6bb9bd380a11'],
    ['date', '01/02/2024'],
    ['date', '2023-02-29'],
    ['date', 'today'],
    ['timestamptz', '2024-02-29 12:00:00'],
    ['timestamptz', '2024-02-29'],
    ['text', 'a\0b'],
    ['text', '\ud800'],
    ['varchar', 'blank at the end '],
  ])('%s %j is left undecided', (type, input) => {
    expect(decodeText(type, input)).toBeNull();
  });

  it('refuses bytes that are not UTF-8', () => {
    expect(decodeText('text', Buffer.from([0x61, 0xff]))).toBeNull();
    expect(decodeText('text', Buffer.from([0xed, 0xa0, 0x80]))).toBeNull();
  });
});

describe('decodeBinary', () => {
  const send: Readonly<Record<KeyType, string>> = {
    int2: 'int2send',
    int4: 'int4send',
    int8: 'int8send',
    uuid: 'uuid_send',
    text: 'textsend',
    varchar: 'varcharsend',
    date: 'date_send',
    timestamp: 'timestamp_send',
    timestamptz: 'timestamptz_send',
  };

  for (const type of KEY_TYPES) {
    it(`${type}: reads what PostgreSQL sends`, async () => {
      const random = new Random(5);
      const values = [...EDGES[type], ...Array.from({ length: 5000 }, () => randomScalar(type, random))];
      const { rows } = await client.query<{ b: Buffer }>(
        `SELECT ${send[type]}(v) AS b FROM unnest($1::${type}[]) WITH ORDINALITY AS t(v, n) ORDER BY n`,
        [values.map((value) => encodeText(type, value))],
      );
      expect(rows.map((row) => decodeBinary(type, row.b, KEY_TYPE_OID[type]))).toEqual(values);
    });
  }

  it('widens and narrows integers, within the range of the key', () => {
    const eight = Buffer.alloc(8);
    eight.writeBigInt64BE(70000n);
    expect(decodeBinary('int4', eight, 20)).toBe(70000n);
    expect(decodeBinary('int2', eight, 20)).toBeNull();
    expect(decodeBinary('int8', Buffer.from([0xff, 0xfe]), 21)).toBe(-2n);
  });

  it('is not sure of another type, a wrong length, or impossible values', () => {
    expect(decodeBinary('date', Buffer.alloc(8), 1114)).toBeNull();
    expect(decodeBinary('int4', Buffer.alloc(3))).toBeNull();
    expect(decodeBinary('date', Buffer.from([0x7f, 0xff, 0xff, 0xfe]))).toBeNull();
    expect(decodeBinary('timestamp', Buffer.from('7ffffffffffffffe', 'hex'))).toBeNull();
    expect(decodeBinary('varchar', Buffer.from('a '), 25)).toBeNull();
  });
});

describe('the order of keys', () => {
  for (const type of KEY_TYPES) {
    it(`${type}: is PostgreSQL's`, async () => {
      const random = new Random(17);
      const values = [...EDGES[type], ...Array.from({ length: 5000 }, () => randomScalar(type, random))];
      const collate = type === 'text' || type === 'varchar' ? 'COLLATE "C"' : '';
      const { rows } = await client.query<{ n: string }>(
        `SELECT n FROM unnest($1::${type}[]) WITH ORDINALITY AS t(v, n) ORDER BY v ${collate}, n`,
        [values.map((value) => encodeText(type, value))],
      );
      const sorted = values
        .map((value, i) => ({ value, n: i + 1 }))
        .sort((a, b) => comparePositions([a.value], [b.value]) || a.n - b.n);
      expect(rows.map((row) => Number(row.n))).toEqual(sorted.map((s) => s.n));
    });
  }
});

describe('types', () => {
  it('have the OIDs of the server', async () => {
    const { rows } = await client.query<{ typname: string; oid: number }>(
      `SELECT typname, oid::int FROM pg_type WHERE typname = ANY ($1) AND typnamespace = 'pg_catalog'::regnamespace`,
      [KEY_TYPES],
    );
    expect(Object.fromEntries(rows.map((row) => [row.typname, row.oid]))).toEqual(KEY_TYPE_OID);
    for (const type of KEY_TYPES) expect(keyTypeFromOid(KEY_TYPE_OID[type])).toBe(type);
  });

  it('other than key types are none', () => {
    expect(keyTypeFromPg('numeric')).toBeNull();
    expect(keyTypeFromPg('constructor')).toBeNull();
    expect(keyTypeFromOid(1700)).toBeNull();
  });

  it('compare as keys only within a family', () => {
    expect(sameFamily('int2', 'int8')).toBe(true);
    expect(sameFamily('varchar', 'text')).toBe(true);
    expect(sameFamily('timestamp', 'timestamptz')).toBe(false);
    expect(acceptsOid('date', 1114)).toBe(false);
    expect(acceptsOid('date', 0)).toBe(true);
    expect(acceptsOid('text', 1042)).toBe(false);
  });
});

describe('positions in the catalog', () => {
  it('come back as they went', () => {
    const random = new Random(3);
    for (let i = 0; i < 500; i++) {
      const keyTypes = Array.from({ length: 1 + random.below(3) }, () => random.pick(KEY_TYPES));
      const range = { method: 'range', keyTypes } as const;
      const position = keyTypes.map((type) => randomScalar(type, random)).slice(0, 1 + random.below(keyTypes.length));
      expect(positionFromJson(range, JSON.parse(JSON.stringify(positionToJson(range, position))))).toEqual(position);
      const hash = { method: 'hash', keyTypes } as const;
      const at = [random.int64()];
      expect(positionFromJson(hash, positionToJson(hash, at))).toEqual(at);
    }
    expect(positionFromJson({ method: 'range', keyTypes: ['int4'] }, null)).toBeNull();
  });

  it.each([[['x']], [[1]], [[]], [['1', '2']], ['1'], [{}]])('%j is refused for an int4 key', (json) => {
    expect(() => positionFromJson({ method: 'range', keyTypes: ['int4'] }, json)).toThrow(/not a position/);
  });
});
