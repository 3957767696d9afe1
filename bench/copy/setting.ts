import pg from 'pg';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';

/** Tenants; the upper half of them moves. */
export const TENANTS = 1000;
export const MOVES_FROM = TENANTS / 2 + 1;

const TABLES = `
CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, n int NOT NULL, note text, at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id));
CREATE TABLE history (tenant_id bigint NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(), order_id bigint NOT NULL, delta int NOT NULL,
  PRIMARY KEY (tenant_id, id))`;
const INDEXES = `
CREATE INDEX orders_at ON orders (at);
CREATE INDEX orders_n ON orders (n, id);
CREATE INDEX history_order ON history (tenant_id, order_id)`;

/** Two servers, fresh databases on them for each measurement, filled alike. */
export class CopySetting {
  readonly source: EmbeddedCluster;
  readonly destination: EmbeddedCluster;
  readonly #filled = new Set<string>();
  #made = 0;

  constructor(source: EmbeddedCluster, destination: EmbeddedCluster) {
    this.source = source;
    this.destination = destination;
  }

  /** @param rows of orders; as many rows of history again for every tenth */
  async fresh(rows: number): Promise<Databases> {
    const template = await this.#template(rows);
    this.#made += 1;
    const name = `shop_${this.#made}`;
    await admin(this.source, `CREATE DATABASE ${name} TEMPLATE ${template} STRATEGY file_copy`);
    await admin(this.destination, `CREATE DATABASE ${name}`);
    for (const cluster of [this.source, this.destination]) await admin(cluster, 'CHECKPOINT');
    return new Databases(this, name, rows);
  }

  async #template(rows: number): Promise<string> {
    const name = `template_${rows}`;
    if (this.#filled.has(name)) return name;
    await admin(this.source, `CREATE DATABASE ${name}`);
    const perTenant = Math.round(rows / TENANTS);
    const client = await connect(this.source.url(name));
    await client.query(`${TABLES}; ${INDEXES}`);
    // In the order in which orders come: those of a tenant lie all over the table.
    await client.query(
      `INSERT INTO orders SELECT t, i, i % 100, repeat('x', 60) || i FROM generate_series(1, ${perTenant}) i, generate_series(1, ${TENANTS}) t`,
    );
    await client.query('INSERT INTO history SELECT tenant_id, gen_random_uuid(), id, 1 FROM orders WHERE id % 10 = 0');
    await client.query('VACUUM ANALYZE');
    await client.end();
    this.#filled.add(name);
    return name;
  }
}

export class Databases {
  readonly #setting: CopySetting;
  readonly #name: string;
  #catalog: Catalog | null = null;

  constructor(
    setting: CopySetting,
    name: string,
    readonly rows: number,
  ) {
    this.#setting = setting;
    this.#name = name;
  }

  get sourceUrl(): string {
    return this.#setting.source.url(this.#name);
  }

  get destinationUrl(): string {
    return this.#setting.destination.url(this.#name);
  }

  get name(): string {
    return this.#name;
  }

  /** A catalog in which the tables are declared, all on the source. */
  async catalog(): Promise<Catalog> {
    const { source } = this.#setting;
    await admin(source, `CREATE DATABASE foreshard_${this.#name}`);
    const url = source.url(`foreshard_${this.#name}`);
    const pool = Catalog.pool(url);
    await initCatalog(pool, this.#name);
    await pool.end();
    const catalog = await Catalog.connect(url);
    this.#catalog = catalog;
    const registry = new Registry(catalog, 'bench');
    await registry.addShard({ name: 'source', url: this.sourceUrl });
    await registry.addShard({ name: 'destination', url: this.destinationUrl });
    await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
    for (const table of ['orders', 'history'])
      await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
    return catalog;
  }

  /**
   * What a person would type: a publication of the rows that move, a subscription, and nothing else; primary keys are there, other indexes are not.
   * @returns ms until all rows are there
   */
  async subscribe(): Promise<number> {
    const [source, destination] = await Promise.all([connect(this.sourceUrl), connect(this.destinationUrl)]);
    try {
      await destination.query(TABLES);
      const where = `WHERE (tenant_id >= ${MOVES_FROM})`;
      await source.query(`CREATE PUBLICATION bare FOR TABLE orders ${where}, history ${where}`);
      await source.query(`SELECT pg_create_logical_replication_slot('${this.#name}', 'pgoutput')`);
      const began = performance.now();
      await destination.query(
        `CREATE SUBSCRIPTION ${this.#name} CONNECTION '${this.sourceUrl}' PUBLICATION bare WITH (create_slot = false, slot_name = '${this.#name}')`,
      );
      for (;;) {
        const { rows } = await destination.query<{ left: boolean }>(
          "SELECT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r') AS left",
        );
        if (rows[0]?.left === false) break;
        await destination.query('SELECT pg_sleep(0.02)');
      }
      return performance.now() - began;
    } finally {
      await Promise.all([source.end(), destination.end()]);
    }
  }

  async unsubscribe(): Promise<void> {
    const destination = await connect(this.destinationUrl);
    await destination.query(`DROP SUBSCRIPTION IF EXISTS ${this.#name}`);
    await destination.end();
  }

  async drop(): Promise<void> {
    const { source, destination } = this.#setting;
    await this.#catalog?.close();
    const client = await connect(source.url('postgres'));
    const { rows } = await client.query<{ name: string }>(
      'SELECT datname AS name FROM pg_database WHERE datname IN ($1, $2)',
      [this.#name, `foreshard_${this.#name}`],
    );
    await client.end();
    for (const { name } of rows) await admin(source, `DROP DATABASE ${name} WITH (FORCE)`);
    await admin(destination, `DROP DATABASE ${this.#name} WITH (FORCE)`);
  }
}

export async function connect(connectionString: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString });
  await client.connect();
  return client;
}

async function admin(cluster: EmbeddedCluster, sql: string): Promise<void> {
  const client = await connect(cluster.url('postgres'));
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
}
