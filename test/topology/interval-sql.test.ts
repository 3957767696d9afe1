import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { positionOf } from '../../topology/hash.js';
import { intervalPredicate, positionOrder } from '../../topology/interval-sql.js';
import { comparePositions, contains, type Interval, type KeyTuple, type Position } from '../../topology/key.js';
import { encodeText, type KeyScheme } from '../../topology/key-codec.js';
import { startTestCluster } from '../support/cluster.js';
import { EDGES, Random, randomScalar } from './random-keys.js';

const ROWS = 400;
const INTERVALS = 30;

const KEYS: readonly KeyScheme['keyTypes'][] = [
  ['int2'],
  ['int4'],
  ['int8'],
  ['uuid'],
  ['text'],
  ['varchar'],
  ['date'],
  ['timestamp'],
  ['timestamptz'],
  ['text', 'int8'],
  ['int4', 'varchar', 'uuid'],
  ['date', 'timestamptz'],
  ['timestamp', 'text', 'int2', 'date'],
];
const SCHEMES: readonly KeyScheme[] = KEYS.flatMap((keyTypes) => [
  { method: 'range', keyTypes },
  { method: 'hash', keyTypes },
]);

let client: pg.Client;

beforeAll(async () => {
  const cluster = await startTestCluster();
  client = new pg.Client({ connectionString: cluster.url() });
  await client.connect();
  // A predicate means the same under any session settings, also when it is stored.
  await client.query(`SET TimeZone = 'America/St_Johns'; SET DateStyle = 'SQL, DMY'`);
});

afterAll(async () => {
  await client?.end();
});

/** Column names that need quoting. */
const columnName = (i: number): string => (i === 0 ? 'Key "0"' : `k${i}`);
const columnSql = (i: number): string => `"${columnName(i).replaceAll('"', '""')}"`;

async function createTable(scheme: KeyScheme, name: string): Promise<void> {
  const columns = scheme.keyTypes.map((type, i) => `${columnSql(i)} ${type} NOT NULL`).join(', ');
  const key = scheme.keyTypes.map((_, i) => columnSql(i)).join(', ');
  await client.query(
    `DROP TABLE IF EXISTS ${name}; CREATE TABLE ${name} (id int NOT NULL, ${columns}, PRIMARY KEY (id, ${key}))`,
  );
}

async function insertKeys(scheme: KeyScheme, name: string, keys: readonly KeyTuple[]): Promise<void> {
  const arrays = scheme.keyTypes.map((type, i) => keys.map((key) => encodeText(type, key[i] as KeyTuple[number])));
  await client.query(
    `INSERT INTO ${name} SELECT n, ${scheme.keyTypes.map((_, i) => `c${i}`).join(', ')}
       FROM ROWS FROM (${scheme.keyTypes.map((type, i) => `unnest($${i + 1}::${type}[])`).join(', ')}) WITH ORDINALITY
         AS t(${scheme.keyTypes.map((_, i) => `c${i}`).join(', ')}, n)`,
    arrays,
  );
}

/** Few distinct values in the leading columns, so that the later ones decide. */
function randomKeys(scheme: KeyScheme, random: Random): KeyTuple[] {
  const pools = scheme.keyTypes.map((type, i) => [
    ...EDGES[type].filter((value) => String(value).length < 1100),
    ...Array.from({ length: i === scheme.keyTypes.length - 1 ? ROWS : 6 }, () => randomScalar(type, random)),
  ]);
  return Array.from({ length: ROWS }, () => pools.map((pool) => random.pick(pool)));
}

/** Bounds at, between and beside keys, and shorter than a key. */
function randomBound(scheme: KeyScheme, keys: readonly KeyTuple[], random: Random): Position | null {
  if (random.below(6) === 0) return null;
  if (scheme.method === 'hash') {
    const at = positionOf(scheme, random.pick(keys))[0] as bigint;
    return random.below(2) === 0 ? [at] : [random.int64()];
  }
  const key = scheme.keyTypes.map((type, i) =>
    random.below(3) ? (random.pick(keys)[i] as bigint) : randomScalar(type, random),
  );
  return key.slice(0, 1 + random.below(key.length));
}

function randomInterval(scheme: KeyScheme, keys: readonly KeyTuple[], random: Random): Interval {
  const [a, b] = [randomBound(scheme, keys, random), randomBound(scheme, keys, random)];
  if (a !== null && b !== null && comparePositions(a, b) > 0) return { lo: b, hi: a };
  return { lo: a, hi: b };
}

function expectedIds(scheme: KeyScheme, keys: readonly KeyTuple[], interval: Interval): number[] {
  return keys.flatMap((key, i) => (contains(interval, positionOf(scheme, key)) ? [i + 1] : []));
}

const title = (scheme: KeyScheme): string => `${scheme.method} on (${scheme.keyTypes.join(', ')})`;

describe('intervalPredicate', () => {
  for (const scheme of SCHEMES) {
    it(`${title(scheme)}: selects the rows whose position lies in the interval`, async () => {
      const random = new Random(11);
      const keys = randomKeys(scheme, random);
      const columns = scheme.keyTypes.map((_, i) => columnName(i));
      await createTable(scheme, 'pick');
      await insertKeys(scheme, 'pick', keys);
      for (let round = 0; round < INTERVALS; round++) {
        const interval = randomInterval(scheme, keys, random);
        const predicate = intervalPredicate(scheme, columns, interval, 'Some "row"');
        const { rows } = await client.query<{ id: number }>(
          `SELECT id FROM pick AS "Some ""row""" WHERE ${predicate} ORDER BY id`,
        );
        expect(rows.map((row) => row.id)).toEqual(expectedIds(scheme, keys, interval));
      }
      const order = await client.query<{ id: number }>(
        `SELECT id FROM pick ORDER BY ${positionOrder(scheme, columns)}, id`,
      );
      const sorted = keys
        .map((key, i) => ({ id: i + 1, at: positionOf(scheme, key) }))
        .sort((a, b) => comparePositions(a.at, b.at) || a.id - b.id);
      expect(order.rows.map((row) => row.id)).toEqual(sorted.map((row) => row.id));
    });

    it(`${title(scheme)}: works as a publication's row filter and a trigger's condition`, async () => {
      const random = new Random(12);
      const keys = randomKeys(scheme, random);
      const columns = scheme.keyTypes.map((_, i) => columnName(i));
      for (let round = 0; round < 3; round++) {
        const interval = randomInterval(scheme, keys, random);
        await createTable(scheme, 'filtered');
        await client.query(
          `CREATE PUBLICATION part FOR TABLE filtered WHERE (${intervalPredicate(scheme, columns, interval)})`,
        );
        await client.query(`CREATE TABLE fired (id int)`);
        await client.query(`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO fired VALUES (NEW.id); RETURN NULL; END $$`);
        await client.query(`CREATE TRIGGER note AFTER INSERT ON filtered FOR EACH ROW
          WHEN (${intervalPredicate(scheme, columns, interval, 'NEW')}) EXECUTE FUNCTION note()`);
        await client.query(`SELECT pg_create_logical_replication_slot('part', 'pgoutput')`);
        await insertKeys(scheme, 'filtered', keys);
        const published = await client.query<{ data: Buffer }>(
          `SELECT data FROM pg_logical_slot_get_binary_changes('part', NULL, NULL, 'proto_version', '1', 'publication_names', 'part')`,
        );
        const fired = await client.query<{ id: number }>('SELECT id FROM fired ORDER BY id');
        await client.query(`SELECT pg_drop_replication_slot('part')`);
        await client.query(`DROP PUBLICATION part; DROP TABLE filtered, fired; DROP FUNCTION note`);
        const expected = expectedIds(scheme, keys, interval);
        expect(published.rows.flatMap((row) => insertedId(row.data))).toEqual(expected);
        expect(fired.rows.map((row) => row.id)).toEqual(expected);
      }
    });
  }

  for (const scheme of SCHEMES.filter((s) => s.method === 'range')) {
    it(`${title(scheme)}: uses an index`, async () => {
      const random = new Random(13);
      const keys = randomKeys(scheme, random);
      const columns = scheme.keyTypes.map((_, i) => columnName(i));
      await createTable(scheme, 'indexed');
      await client.query(`CREATE INDEX by_position ON indexed (${positionOrder(scheme, columns)})`);
      await insertKeys(scheme, 'indexed', keys);
      const [lo, hi] = [keys[0] as KeyTuple, keys[1] as KeyTuple].sort(comparePositions);
      const predicate = intervalPredicate(scheme, columns, { lo: lo as Position, hi: hi as Position });
      await client.query('SET enable_seqscan = off');
      const { rows } = await client.query<{ 'QUERY PLAN': string }>(`EXPLAIN SELECT * FROM indexed WHERE ${predicate}`);
      await client.query('RESET enable_seqscan');
      const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
      expect(plan).toMatch(/by_position/);
      expect(plan).toMatch(/Index Cond: .*>=.*</);
    });
  }
});

/** The first column of an Insert message of pgoutput: 'I', relation, 'N', column count, then 't', length, text. */
function insertedId(message: Buffer): number[] {
  if (message[0] !== 'I'.charCodeAt(0)) return [];
  const length = message.readInt32BE(9);
  return [Number(message.toString('utf8', 13, 13 + length))];
}
