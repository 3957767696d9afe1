import pg from 'pg';
import { expect } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import type { ColumnSplit } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { moveHot, splitColumns } from '../support/halves.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const DOCUMENTS = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };
const TABLE = `
CREATE TABLE documents (tenant_id bigint, id bigint, title text NOT NULL, body text, views bigint NOT NULL DEFAULT 0 CHECK (views >= 0),
  last_seen timestamptz, PRIMARY KEY (tenant_id, id), CHECK (views <> 4711 OR last_seen IS NULL));
GRANT ALL ON documents TO app`;
const ROWS = `SELECT t, i, 'title ' || i, repeat('b', i::int), 10 * i, timestamptz '2026-01-01 00:00+00' + i * interval '1 day'
  FROM generate_series(1, 2) t, generate_series(1, 5) i`;

const BASE = 'SELECT tenant_id, id, title, body FROM documents ORDER BY 1, 2';
const HOT_OF = (table: string) => `SELECT tenant_id, id, views, last_seen FROM ${table} ORDER BY 1, 2`;

/** Rows of a query, each an array of its values. */
export const state = async (client: pg.Client, sql: string) =>
  (await client.query({ text: sql, rowMode: 'array' })).rows;

/** Documents with hot columns, `views` and `last_seen`, on two shards; and a database `plain` on the first server that has them as one table. */
export class Documents {
  readonly sharded: Sharded;
  /** Superusers: of the two shards, and of `plain`. */
  readonly shards: readonly pg.Client[];
  readonly plain: pg.Client;
  readonly #split: ColumnSplit;
  /** The hot halves are on the second shard. */
  #apart = false;

  private constructor(sharded: Sharded, split: ColumnSplit, shards: readonly pg.Client[], plain: pg.Client) {
    this.sharded = sharded;
    this.shards = shards;
    this.plain = plain;
    this.#split = split;
  }

  /** Both halves are on the first shard, and empty. */
  static async start(): Promise<Documents> {
    const sharded = await Sharded.start({ splitAt: null });
    const [a, b] = sharded.clusters;
    for (const cluster of [a, b]) await withClient(cluster.url('shop'), (c) => c.query(TABLE));
    await withClient(a.url('postgres'), (c) => c.query('CREATE DATABASE plain'));
    await withClient(a.url('plain'), (c) => c.query(TABLE));
    await new Registry(sharded.catalog, 'test').addTable({
      table: DOCUMENTS,
      keyspace: 'main',
      keyColumns: ['tenant_id'],
    });
    const columns = ['views', 'last_seen'];
    const split = await splitColumns(sharded.catalog, { table: DOCUMENTS, columns, hot: HOT, as: 'hot' });
    await sharded.reloaded();
    const shards = [a.url('shop'), b.url('shop')].map((url) => new pg.Client(url));
    const plain = new pg.Client(a.url('plain'));
    await Promise.all([...shards, plain].map((client) => client.connect()));
    for (const client of shards) await client.query('SET session_replication_role = replica');
    return new Documents(sharded, split, shards, plain);
  }

  async stop(): Promise<void> {
    await Promise.all([...this.shards, this.plain].map((client) => client.end()));
    await this.sharded.stop();
  }

  /** Has the hot halves on the second shard. */
  async part(): Promise<void> {
    await this.reset();
    await moveHot(this.sharded.catalog, DOCUMENTS, this.#split, 's2', 'views = 4711, last_seen = NULL');
    this.#apart = true;
    await this.sharded.reloaded();
  }

  /** The shard with the base halves. */
  get base(): pg.Client {
    return this.shards[0] as pg.Client;
  }

  /** The shard with the hot halves. */
  get hot(): pg.Client {
    return this.shards[this.#apart ? 1 : 0] as pg.Client;
  }

  /** The rows that every test begins with. */
  async reset(): Promise<void> {
    await this.plain.query(`TRUNCATE documents; INSERT INTO documents ${ROWS}`);
    for (const client of this.shards) await client.query('TRUNCATE documents, documents_hot');
    await this.base.query(`INSERT INTO documents ${ROWS}`);
    await this.hot.query(
      `INSERT INTO documents_hot SELECT r.column1, r.column2, r.column5, r.column6 FROM (${ROWS}) r (column1, column2, column3, column4, column5, column6)`,
    );
    if (this.#apart) await this.base.query(`UPDATE documents SET views = 4711, last_seen = NULL`);
  }

  /** What is there, on one server with all of it and on the shards. */
  async agree(): Promise<void> {
    expect(await state(this.base, BASE)).toEqual(await state(this.plain, BASE));
    expect(await state(this.hot, HOT_OF('documents_hot'))).toEqual(await state(this.plain, HOT_OF('documents')));
    if (!this.#apart)
      expect(await state(this.base, HOT_OF('documents'))).toEqual(await state(this.plain, HOT_OF('documents')));
    await this.nothingLeft();
  }

  async nothingLeft(): Promise<void> {
    for (const client of this.shards) expect(await state(client, 'SELECT gid FROM pg_prepared_xacts')).toEqual([]);
    const [outbox] = await state(
      this.base,
      `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename LIKE 'outbox%'`,
    );
    expect(await state(this.base, `SELECT count(*)::int FROM ${(outbox as string[])[0]}`)).toEqual([[0]]);
  }

  /** Resolves when nothing of a client runs any more. */
  quiet(): Promise<unknown> {
    return waitFor(
      async () => {
        const busy = `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`;
        const found = await Promise.all([...this.shards, this.plain].map((client) => client.query(busy)));
        return found.every(({ rowCount }) => rowCount === 0);
      },
      { what: 'the end of what runs' },
    );
  }
}
