import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { expect } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { audit } from '../../migrator/audit/audit.js';
import { createMigration } from '../../migrator/migration-requests.js';
import type { HalveSpec, MoveSpec, UniteSpec } from '../../topology/migration.js';
import { type Keyspace, type KeyspaceName, rangeOf, type ShardName, type Topology } from '../../topology/topology.js';
import type { Moves } from '../migrator/moves.js';
import { leftovers, resetShop } from '../migrator/setting.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// A table whose columns are split while a proxy's clients write it, on three shards.

const TENANTS = 12;
/** Those below belong to the first shard, to begin with, the others to the second one. */
const CUT = 7;
/** Of each tenant: each shard's are filled into the hot table in two batches. */
const DOCUMENTS = 100;
/** Of each tenant, written by all writers. */
const SHARED = 0;
/** Between two operations of a writer, ms: what migrators do is to be seen, not what writers can. */
const PACE_MS = 10;
/** Rows that a writer has at a time. */
const OWN = 20;

const DOCS = 'docs' as KeyspaceName;
const VIEWS = 'views' as KeyspaceName;
const TABLE = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };

export const HALVE: HalveSpec = {
  kind: 'halve',
  keyspace: DOCS,
  table: TABLE,
  columns: ['views', 'seen'],
  primaryKey: ['tenant_id', 'id'],
  hot: HOT,
  as: VIEWS,
};
export const UNITE: UniteSpec = { kind: 'unite', keyspace: VIEWS, table: TABLE };

/** All tenants of one side of the cut: of the table, or of its hot columns. */
export function moveOf(half: 'table' | 'hot', tenants: 'low' | 'high', from: string, to: string): MoveSpec {
  const cut = [BigInt(CUT)];
  return {
    kind: 'move',
    keyspace: half === 'table' ? DOCS : VIEWS,
    ...(tenants === 'low' ? { lo: null, hi: cut } : { lo: cut, hi: null }),
    from: from as ShardName,
    to: to as ShardName,
  };
}

const SCHEMA = `
CREATE TABLE documents (tenant_id int, id int, title text NOT NULL, edits int NOT NULL DEFAULT 0, body text, views int NOT NULL DEFAULT 0 CHECK (views >= 0),
  seen text, PRIMARY KEY (tenant_id, id));
GRANT ALL ON documents TO app`;

interface Document {
  readonly tenant: number;
  readonly id: number;
  readonly title: string;
  readonly edits: number;
  readonly views: number;
  readonly seen: string | null;
}

const keyOf = ({ tenant, id }: Pick<Document, 'tenant' | 'id'>) => `${tenant}/${id}`;
/** Columns of the table, as `Document` has them. */
const BASE = 'tenant_id AS tenant, id, title, edits';
const ALL = `${BASE}, views, seen`;

/** Three shards, a catalog, a proxy, and what its clients have been told. */
export class Documents {
  readonly #moves: Moves;
  #third: EmbeddedCluster | null = null;
  #writers: Writer[] = [];
  #url = '';

  constructor(moves: Moves) {
    this.#moves = moves;
  }

  /** All is as at first: nothing is split, and the third shard has nothing. Writers begin. */
  async begin(): Promise<void> {
    const { s } = this.#moves;
    if ((await this.#moves.beginAnew()) || this.#third === null) {
      await this.#third?.stop();
      this.#third = await startTestCluster();
      await withClient(this.#third.url('postgres'), (c) => c.query('CREATE DATABASE app'));
      await this.#makeRole();
    }
    const third = this.#third;
    await resetShop(s, 1, 1);
    await withClient(third.url('postgres'), (c) => c.query('DROP DATABASE app WITH (FORCE)'));
    await withClient(third.url('postgres'), (c) => c.query('CREATE DATABASE app'));
    for (const [url, first, last] of [
      [s.urlOne, 1, CUT - 1],
      [s.urlTwo, CUT, TENANTS],
    ] as const)
      await withClient(url, (c) =>
        c.query(`${SCHEMA}; INSERT INTO documents (tenant_id, id, title, views)
          SELECT t, i, 'old', i FROM generate_series(${first}, ${last}) t, generate_series(${SHARED}, ${DOCUMENTS}) i`),
      );
    const { pool } = s.catalog;
    await pool.query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('three', $1, false)`, [third.url('app')]);
    // Instead of the shop.
    await pool.query(`TRUNCATE foreshard.keyspace, foreshard.reference_table CASCADE;
      INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('docs', 'range', '{int4}');
      INSERT INTO foreshard.sharded_table VALUES ('public', 'documents', 'docs', '{tenant_id}');
      INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ('docs', NULL, '["${CUT}"]', 'one'), ('docs', '["${CUT}"]', NULL, 'two');
      INSERT INTO foreshard.segment (keyspace, lo, hi) VALUES ('docs', NULL, NULL);
      UPDATE foreshard.meta SET epoch = epoch + 1`);
    const proxy = await startProxy(s.catalog, { splitAt: null, holdTimeoutMs: 120_000 });
    this.#moves.atStop(() => proxy.close());
    this.#url = `postgres://app:secret@127.0.0.1:${proxy.port}/app`;
    this.#writers = [0, 1].map((no) => new Writer(no, this.#url));
    for (const writer of this.#writers) this.#moves.atStop(() => writer.stop());
  }

  async approve(spec: HalveSpec | UniteSpec | MoveSpec): Promise<bigint> {
    const { pool } = this.#moves.s.catalog;
    const { keyspaces } = await this.#moves.s.catalog.loadTopology();
    return createMigration(pool, keyspaces.get(spec.keyspace) as Keyspace, spec, { actor: 'test' });
  }

  /** Writers get on, and what they read is what they wrote; halves that are together are the same, and each row has both. */
  async expectAllWell(): Promise<void> {
    for (const writer of this.#writers) {
      const { operations } = writer;
      await waitFor(() => writer.errors.length > 0 || writer.operations > operations + 2 * KINDS, {
        what: 'writes',
      });
      expect(writer.errors).toEqual([]);
    }
    expect(await audit(this.#moves.s.catalog, false)).toEqual([]);
  }

  /** No write is lost or done twice; rows are where they belong, and nowhere else. Of the migrations nothing is left. */
  async end(): Promise<void> {
    for (const writer of this.#writers) await writer.stop();
    await this.#expectAllWritten();
    const { s } = this.#moves;
    expect([...(await leftovers(s)), ...(await this.#leftOnThird())]).toEqual([]);
    expect((await s.catalog.pool.query('SELECT FROM foreshard.column_split')).rowCount).toBe(0);
    for (const url of [s.urlOne, s.urlTwo, this.#urlThree])
      expect((await tablesOf(url)).filter((name) => name !== 'documents')).toEqual(url === s.urlOne ? SHOP : []);
  }

  /** What a migration has made on the third shard, which had nothing, has gone with it. */
  async expectNothingOnThird(): Promise<void> {
    expect([...(await this.#leftOnThird()), ...(await tablesOf(this.#urlThree))]).toEqual([]);
  }

  get #urlThree(): string {
    return (this.#third as EmbeddedCluster).url('app');
  }

  /** Of all that has a name of ours. */
  #leftOnThird(): Promise<string[]> {
    return leftovers({ ...this.#moves.s, urlOne: this.#urlThree, urlTwo: this.#urlThree });
  }

  async #expectAllWritten(): Promise<void> {
    const meant = this.#meant();
    const through = new Map<string, Document>();
    await withClient(this.#url, async (c) => {
      for (let tenant = 1; tenant <= TENANTS; tenant++)
        for (const row of (await c.query<Document>(`SELECT ${ALL} FROM documents WHERE tenant_id = ${tenant}`)).rows)
          through.set(keyOf(row), row);
    });
    expect(differences(meant, through)).toEqual([]);
    expect(differences(meant, await this.#onShards(await this.#moves.s.catalog.loadTopology()))).toEqual([]);
  }

  /** What clients have been told, by key. */
  #meant(): Map<string, Document> {
    const all = new Map<string, Document>();
    const add = (document: Document) => all.set(keyOf(document), document);
    for (let tenant = 1; tenant <= TENANTS; tenant++)
      for (let id = SHARED; id <= DOCUMENTS; id++) add({ tenant, id, title: 'old', edits: 0, views: id, seen: null });
    for (const writer of this.#writers) {
      for (const document of writer.own.values()) add(document);
      for (const [tenant, times] of writer.raised) {
        const shared = all.get(keyOf({ tenant, id: SHARED })) as Document;
        add({ ...shared, edits: shared.edits + times, views: shared.views + times });
      }
    }
    return all;
  }

  /** What the owners have, past the proxy. A row that anybody else has is there under a key of its own. */
  async #onShards(topology: Topology): Promise<Map<string, Document>> {
    const [docs, views] = [DOCS, VIEWS].map((name) => topology.keyspaces.get(name));
    const all = new Map<string, Document>();
    const hot = new Map<string, Partial<Document>>();
    const owns = (keyspace: Keyspace, shard: ShardName, { tenant }: Document) =>
      rangeOf(keyspace, [BigInt(tenant)]).shard === shard;
    for (const { name, url } of topology.shards.values())
      await withClient(url, async (c) => {
        const read = async (table: string, columns: string) =>
          (await c.query(`SELECT to_regclass('${table}') AS there`)).rows[0].there === null
            ? []
            : (await c.query<Document>(`SELECT ${columns} FROM ${table}`)).rows;
        for (const row of await read('documents', ALL))
          all.set(owns(docs as Keyspace, name, row) ? keyOf(row) : `${keyOf(row)} on ${name}`, row);
        if (views === undefined) return;
        for (const row of await read('documents_hot', 'tenant_id AS tenant, id, views, seen'))
          hot.set(owns(views, name, row) ? keyOf(row) : `${keyOf(row)} in the hot table on ${name}`, row);
      });
    for (const [key, row] of hot) all.set(key, { ...all.get(key), ...row } as Document);
    return all;
  }

  /** So that a password that a client has proven is good on every shard. */
  async #makeRole(): Promise<void> {
    const { one, two } = this.#moves.s;
    let password = 'secret';
    for (const cluster of [one, two, this.#third as EmbeddedCluster])
      await withClient(cluster.url('postgres'), async (c) => {
        await c.query(`CREATE ROLE app LOGIN PASSWORD '${password}'`);
        const { rows } = await c.query<{ v: string }>(`SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'app'`);
        password = (rows[0] as { v: string }).v;
      });
  }
}

/** Tables of the first shard that are no business of ours. */
const SHOP = ['Odd Items', 'countries', 'orders', 'tenants'];

const tablesOf = (url: string): Promise<string[]> =>
  withClient(url, async (c) => {
    const { rows } = await c.query<{ name: string }>(
      `SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname COLLATE "C"`,
    );
    return rows.map(({ name }) => name);
  });

/** @returns the first ones, told */
function differences(meant: ReadonlyMap<string, Document>, found: ReadonlyMap<string, Document>): string[] {
  const text = (row: Document | undefined) =>
    row === undefined ? 'nothing' : `${row.title}, ${row.edits} edits, ${row.views} views, seen ${row.seen}`;
  return [...new Set([...meant.keys(), ...found.keys()])]
    .filter((key) => text(meant.get(key)) !== text(found.get(key)))
    .slice(0, 20)
    .map((key) => `${key}: ${text(found.get(key))}; told was ${text(meant.get(key))}`);
}

/** What a writer does, one behind the other. */
const KINDS = 9;

/** A client of the proxy who writes both halves of rows in every way, alone and together, reads them, and remembers what he was told. */
class Writer {
  /** Rows that nobody else writes, as they are. */
  readonly own = new Map<string, Document>();
  /** How often it has raised both counts of a tenant's row that all write. */
  readonly raised = new Map<number, number>();
  readonly errors: unknown[] = [];
  operations = 0;
  readonly #no: number;
  readonly #client: pg.Client;
  readonly #running: Promise<void>;
  #going = true;

  constructor(no: number, url: string) {
    this.#no = no;
    this.#client = new pg.Client({ connectionString: url });
    this.#client.on('error', (error) => this.errors.push(error));
    this.#running = this.#run().catch((error: unknown) => void this.errors.push(error));
  }

  async stop(): Promise<void> {
    this.#going = false;
    await this.#running;
    expect(this.errors).toEqual([]);
  }

  async #run(): Promise<void> {
    await this.#client.connect();
    try {
      for (let n = 0; this.#going; n++) {
        await this.#act(n);
        this.operations += 1;
        await delay(PACE_MS);
      }
    } finally {
      await this.#client.end();
    }
  }

  async #act(n: number): Promise<void> {
    const kind = n % KINDS;
    const rows = [...this.own.values()];
    const row = rows[(n * 7) % Math.max(1, rows.length)];
    if (kind === 0 || row === undefined) return this.#insert(n);
    const is = (change: Partial<Document>) => this.own.set(keyOf(row), { ...row, ...change });
    const { edits, views } = row;
    const [seen, title] = [`seen ${n}`, `title ${n}`];
    switch (kind) {
      case 1:
        await this.#write(row, 'views = views + 1, seen = $3', seen);
        is({ views: views + 1, seen });
        return;
      case 2:
        await this.#write(row, 'edits = edits + 1, title = $3', title);
        is({ edits: edits + 1, title });
        return;
      case 3:
        await this.#write(row, 'edits = edits + 1, views = views + 1, title = title || views || $3', title);
        is({ edits: edits + 1, views: views + 1, title: `${row.title}${views}${title}` });
        return;
      case 4:
        await this.#again(async () => {
          await this.#client.query('BEGIN');
          await this.#writeOnce(row, 'views = views + 1, seen = $3', seen);
          await this.#writeOnce(row, 'edits = edits + 1, title = $3', title);
          await this.#client.query('COMMIT');
        });
        is({ edits: edits + 1, views: views + 1, title, seen });
        return;
      case 5: {
        const id = row.id + 1_000_000;
        await this.#again(async () => {
          await this.#client.query('BEGIN');
          await this.#one('DELETE FROM documents WHERE tenant_id = $1 AND id = $2', row);
          await this.#one(
            'INSERT INTO documents (tenant_id, id, title, edits, views, seen) VALUES ($1, $2, $3, $4, $5, $6)',
            { ...row, id },
            row.title,
            edits,
            views,
            row.seen,
          );
          await this.#client.query('COMMIT');
        });
        this.own.delete(keyOf(row));
        this.own.set(keyOf({ ...row, id }), { ...row, id });
        return;
      }
      case 6:
        if (rows.length < OWN) return this.#read(row);
        await this.#again(() => this.#one('DELETE FROM documents WHERE tenant_id = $1 AND id = $2', row));
        this.own.delete(keyOf(row));
        return;
      case 7:
        return this.#raise(1 + (n % TENANTS));
      default:
        return this.#read(row);
    }
  }

  async #insert(n: number): Promise<void> {
    const row = {
      tenant: 1 + ((n * 5) % TENANTS),
      id: 10_000 * (this.#no + 1) + n,
      title: 'new',
      edits: 0,
      views: n,
      seen: null,
    };
    await this.#again(() =>
      this.#one('INSERT INTO documents (tenant_id, id, title, views) VALUES ($1, $2, $3, $4)', row, row.title, n),
    );
    this.own.set(keyOf(row), row);
  }

  async #raise(tenant: number): Promise<void> {
    await this.#write({ tenant, id: SHARED }, 'edits = edits + 1, views = views + 1');
    this.raised.set(tenant, (this.raised.get(tenant) ?? 0) + 1);
  }

  /** In one way of three. */
  async #read(row: Document): Promise<void> {
    const columns = [ALL, BASE, 'views, seen'][this.operations % 3] as string;
    await this.#again(async () => {
      const { rows } = await this.#client.query(`SELECT ${columns} FROM documents WHERE tenant_id = $1 AND id = $2`, [
        row.tenant,
        row.id,
      ]);
      expect(rows).toEqual([expect.objectContaining(rows[0] ?? row)]);
      expect(row).toMatchObject(rows[0]);
    });
  }

  #write(row: Pick<Document, 'tenant' | 'id'>, set: string, ...values: unknown[]): Promise<void> {
    return this.#again(() => this.#writeOnce(row, set, ...values));
  }

  #writeOnce(row: Pick<Document, 'tenant' | 'id'>, set: string, ...values: unknown[]): Promise<void> {
    return this.#one(`UPDATE documents SET ${set} WHERE tenant_id = $1 AND id = $2`, row, ...values);
  }

  async #one(sql: string, { tenant, id }: Pick<Document, 'tenant' | 'id'>, ...values: unknown[]): Promise<void> {
    const { rowCount } = await this.#client.query(sql, [tenant, id, ...values]);
    expect([sql, tenant, id, rowCount]).toEqual([sql, tenant, id, 1]);
  }

  /** Whoever is told 40001 has done nothing, and does it again. */
  async #again(work: () => Promise<unknown>): Promise<void> {
    for (;;) {
      try {
        await work();
        return;
      } catch (error) {
        if ((error as { code?: string }).code !== '40001') throw error;
        await this.#client.query('ROLLBACK');
      }
    }
  }
}
