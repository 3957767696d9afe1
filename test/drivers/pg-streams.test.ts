import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import Cursor from 'pg-cursor';
import QueryStream from 'pg-query-stream';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { DriverSetting, PLACES, type Place } from '../support/driver-setting.js';
import { caught, rowsPerServer } from './scenarios.js';
import { SHOP_SCHEMA, sqlstate } from './shop.js';

const KEY = 107;
const ROWS = 5000;
/** Enough to fill every buffer on the way several times. */
const COPY_ROWS = 40_000;
const COPY_NOTE = 'x'.repeat(500);

/** pg-cursor, pg-query-stream and pg-copy-streams: many rows, a few at a time, with readers and writers that are slow. */
let setting: DriverSetting;
beforeAll(async () => {
  setting = await DriverSetting.start();
});
afterAll(() => setting?.stop());

describe.each(PLACES)('%s', (name) => {
  let place: Place;
  let client: pg.Client;

  beforeAll(async () => {
    place = setting.place(name);
    await setting.migrate(name, (url) =>
      withClient(url, async (c) => {
        await c.query(`${SHOP_SCHEMA} CREATE TABLE log (id bigint, line text)`);
      }),
    );
    await withClient(place.url, async (c) => {
      await c.query(`INSERT INTO tenants (tenant_id, name) VALUES (${KEY}, 'streamed')`);
      await c.query(`INSERT INTO orders (tenant_id, id, note)
                     SELECT ${KEY}, i, 'note ' || i FROM generate_series(1, ${ROWS}) i`);
    });
  });
  beforeEach(async () => {
    client = new pg.Client({ connectionString: place.url });
    await client.connect();
  });
  // Whatever was left half read or half written, the connection is as good as new.
  afterEach(async () => {
    expect((await client.query('SELECT count(*)::int AS n FROM orders WHERE tenant_id = $1', [KEY])).rows).toEqual([
      { n: ROWS },
    ]);
    await client.end();
  });

  const SELECT = 'SELECT id::int FROM orders WHERE tenant_id = $1 ORDER BY id';

  describe('pg-cursor', () => {
    it('reads to the end, with a limit of rows each time', async () => {
      const cursor = client.query(new Cursor<{ id: number }>(SELECT, [KEY]));
      const sizes: number[] = [];
      let last = 0;
      for (;;) {
        const rows = await cursor.read(1500);
        sizes.push(rows.length);
        for (const { id } of rows) expect(id).toBe(++last);
        if (rows.length === 0) break;
      }
      expect(sizes).toEqual([1500, 1500, 1500, 500, 0]);
    });

    it('is closed early', async () => {
      const cursor = client.query(new Cursor<{ id: number }>(SELECT, [KEY]));
      expect(await cursor.read(2)).toEqual([{ id: 1 }, { id: 2 }]);
      await cursor.close();
    });

    it('tells of an error that comes after rows', async () => {
      const cursor = client.query(
        new Cursor<{ n: number }>(
          'SELECT 100 / (50 - id::int) AS n FROM (SELECT id FROM orders WHERE tenant_id = $1 ORDER BY id OFFSET 0) o',
          [KEY],
        ),
      );
      expect(await cursor.read(20)).toHaveLength(20);
      expect(sqlstate(await caught(cursor.read(100)))).toBe('22012');
      await cursor.close();
    });

    it('reads on in a transaction that has other statements in between', async () => {
      await client.query('BEGIN');
      await client.query(`DECLARE c CURSOR FOR SELECT id::int FROM orders WHERE tenant_id = ${KEY} ORDER BY id`);
      for (let i = 0; i < 5; i++) {
        const { rows } = await client.query('FETCH 2 FROM c');
        expect(rows).toEqual([{ id: 2 * i + 1 }, { id: 2 * i + 2 }]);
        await client.query('UPDATE tenants SET plan = $2 WHERE tenant_id = $1', [KEY, `${i}`]);
      }
      await client.query('ROLLBACK');
    });
  });

  describe('pg-query-stream', () => {
    it('streams every row to a slow reader', async () => {
      const stream = client.query(new QueryStream(SELECT, [KEY], { batchSize: 100, highWaterMark: 50 }));
      let last = 0;
      await pipeline(stream, async (rows: AsyncIterable<{ id: number }>) => {
        for await (const { id } of rows) {
          expect(id).toBe(++last);
          if (last % 100 === 0) await new Promise(setImmediate);
        }
      });
      expect(last).toBe(ROWS);
    });

    it('is destroyed early', async () => {
      const stream = client.query(new QueryStream(SELECT, [KEY], { batchSize: 10 }));
      for await (const { id } of stream as AsyncIterable<{ id: number }>) if (id === 25) break;
      expect(stream.destroyed).toBe(true);
    });
  });

  describe('pg-copy-streams', () => {
    /** On three shards COPY of a sharded table is refused: a table of no keyspace there. */
    const target = () =>
      place.several
        ? { table: 'log', columns: 'id, line', row: (i: number) => `${i}\t${COPY_NOTE}\n` }
        : { table: 'orders', columns: 'tenant_id, id, note', row: (i: number) => `${KEY + 1}\t${i}\t${COPY_NOTE}\n` };

    async function* lines(row: (i: number) => string): AsyncGenerator<string> {
      for (let i = 0; i < COPY_ROWS; i++) yield row(i);
    }

    it('copies many rows in and out again, unchanged', async () => {
      const { table, columns, row } = target();
      await client.query('BEGIN');
      await client.query(
        place.several ? 'SELECT 1' : `INSERT INTO tenants (tenant_id, name) VALUES (${KEY + 1}, 'copied')`,
      );
      const sent = createHash('sha256');
      const into = client.query(copyFrom(`COPY ${table} (${columns}) FROM STDIN`));
      await pipeline(
        Readable.from(lines(row)),
        async function* (chunks: AsyncIterable<string>) {
          for await (const chunk of chunks) {
            sent.update(chunk);
            yield chunk;
          }
        },
        into,
      );
      expect(into.rowCount).toBe(COPY_ROWS);
      const received = createHash('sha256');
      const where = place.several ? '' : `WHERE tenant_id = ${KEY + 1}`;
      const out = client.query(copyTo(`COPY (SELECT ${columns} FROM ${table} ${where} ORDER BY id) TO STDOUT`));
      let chunks = 0;
      for await (const chunk of out) {
        received.update(chunk);
        if (++chunks % 50 === 0) await new Promise(setImmediate);
      }
      expect(received.digest('hex')).toBe(sent.digest('hex'));
      await client.query('ROLLBACK');
    });

    it('copies the rows of one key out', async () => {
      const out = client.query(
        copyTo(`COPY (SELECT id, note FROM orders WHERE tenant_id = ${KEY} ORDER BY id) TO STDOUT`),
      );
      let text = '';
      for await (const chunk of out) text += chunk;
      expect(text).toBe(Array.from({ length: ROWS }, (_, i) => `${i + 1}\tnote ${i + 1}\n`).join(''));
    });

    it('fails in the middle of a COPY, and keeps nothing of it', async () => {
      const { table, columns, row } = target();
      const into = client.query(copyFrom(`COPY ${table} (${columns}) FROM STDIN`));
      async function* broken(): AsyncGenerator<string> {
        for (let i = 0; i < 2000; i++) yield row(i);
        yield 'not a row\n';
        for (let i = 0; i < 2000; i++) yield row(i);
      }
      expect(sqlstate(await caught(pipeline(Readable.from(broken()), into)))).toBe('22P02');
    });

    it('gives up a COPY that the application destroys', async () => {
      const { table, columns, row } = target();
      const into = client.query(copyFrom(`COPY ${table} (${columns}) FROM STDIN`));
      async function* interrupted(): AsyncGenerator<string> {
        yield row(1);
        throw new Error('the source broke');
      }
      await expect(pipeline(Readable.from(interrupted()), into)).rejects.toThrow('the source broke');
      const { rows } = await client.query(`SELECT count(*)::int AS n FROM ${place.several ? 'log' : 'tenants'}`);
      expect(rows).toEqual([{ n: place.several ? 0 : 1 }]);
    });

    it('refuses COPY of sharded tables on three shards, before anything is sent', async () => {
      if (!place.several) return;
      const into = client.query(copyFrom('COPY orders (tenant_id, id) FROM STDIN'));
      expect(sqlstate(await caught(pipeline(Readable.from(['107\t9999\n']), into)))).toBe('0A000');
      expect(await rowsPerServer(place, 'orders')).toEqual([0, ROWS, 0]);
    });
  });
});
