import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ClusterOptions, EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { findFreePort } from '../../deploy/embedded/ports.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { Program } from './program.js';
import { Relay } from './relay.js';
import { Tmpfs } from './tmpfs.js';

/** Tenants are 1 to TENANTS. */
export const TENANTS = 48;
/** Accounts of each tenant. Money of the first two stays with the tenant, that of the others goes around. */
export const ACCOUNTS = 4;
export const OPENING_BALANCE = 1000;
export const COUNTRIES = 7;
export const KEYSPACE = 'shop' as KeyspaceName;
/** Of the tables in SEPARATE_TABLES, at times. */
export const SEPARATE = 'remarks' as KeyspaceName;
/** No statement and no transaction uses them together with others. */
export const SEPARATE_TABLES = [{ schema: 'public', table: 'notes' }] as const;
/** Columns of notes that have a table and a keyspace of their own, at times, while SEPARATE is there. Whoever writes the version gives `mark` the same. */
export const HOT = {
  keyspace: SEPARATE,
  table: SEPARATE_TABLES[0],
  columns: ['mark', 'views'],
  primaryKey: ['tenant', 'id'],
  hot: { schema: 'public', table: 'notes_hot' },
  as: 'marks' as KeyspaceName,
} as const;
/** Of the tables in HOUSE_TABLES, at times, which then have no key; else they belong to no keyspace. */
export const HOUSE_KEYSPACE = 'house' as KeyspaceName;
export const HOUSE_TABLES = [
  { schema: 'public', table: 'stock' },
  { schema: 'public', table: 'receipts' },
] as const;
/** The oldest state that any replica shows, ms. */
export const STALENESS_MS = 2000;

/** As in the short form of the tables below. */
const SCHEMA = `
CREATE TABLE accounts (tenant bigint NOT NULL, id bigint NOT NULL, version bigint NOT NULL DEFAULT 0, balance bigint NOT NULL,
  op text NOT NULL DEFAULT '', PRIMARY KEY (tenant, id));
CREATE TABLE ledger (tenant bigint NOT NULL, id text NOT NULL, account bigint, version bigint, body text, PRIMARY KEY (tenant, id));
CREATE TABLE notes (tenant bigint NOT NULL, id text NOT NULL, version bigint NOT NULL, body text, mark bigint NOT NULL,
  views bigint NOT NULL DEFAULT 0, PRIMARY KEY (tenant, id));
CREATE INDEX notes_version ON notes (version);
CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app;`;
/** Only the home shard has these, to begin with. */
const HOUSE_SCHEMA = `
CREATE TABLE stock (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0, balance bigint NOT NULL, op text NOT NULL DEFAULT '');
CREATE TABLE receipts (id text PRIMARY KEY, account bigint, version bigint, body text);
CREATE INDEX receipts_account ON receipts (account);
GRANT SELECT, INSERT, UPDATE, DELETE ON stock, receipts TO app;`;
const SHARDED = ['accounts', 'ledger', 'notes'] as const;

/** Nothing of it has to survive the machine; a kill of the server itself loses nothing without these. */
const SETTINGS = { fsync: 'off', full_page_writes: 'off', max_wal_size: '256MB', log_min_messages: 'warning' };

/** Short, so that a stop of a few seconds is longer than a lease, and every deadline is met with now and then. */
export const LEASE_MS = 3000;
const MIGRATOR = {
  pollMs: 300,
  leaseMs: 2000,
  ackMs: 5000,
  fenceMs: 1000,
  drainMs: 1000,
  maxFenceTries: 30,
  fenceBackoffMs: 200,
};

export interface WorldOptions {
  readonly proxies: number;
  /** For each migrator, how long its migrations can be taken back, ms. */
  readonly wayBacksMs: readonly number[];
  /** Whether the third shard's disk is one that can be filled. */
  readonly smallDisk: boolean;
  /** The servers' programs, of another version than the one from npm. */
  readonly binDir: string | undefined;
  readonly log: (text: string) => void;
}

/** A shard and the network before it. */
export interface Server {
  readonly name: string;
  readonly cluster: EmbeddedCluster;
  /** What everybody but the audit goes through. */
  readonly relay: Relay;
  /** Its database, past the relay. */
  readonly url: string;
  /** Where its data is, when that can be filled. */
  readonly disk: Tmpfs | null;
}

/** A proxy and the networks around it. */
export interface Proxy {
  readonly program: Program;
  /** Between its clients and it. */
  readonly clients: Relay;
  /** Between it and the catalog. */
  readonly catalog: Relay;
}

/** A migrator, and the network between it and the catalog. */
export interface MigratorProgram {
  readonly program: Program;
  readonly catalog: Relay;
}

/**
 * Three shards, a catalog on a server of its own, proxies and migrators, each as `foreshard serve` in processes of its own, with a network between any
 * two of them that can be disturbed. Everything is in one directory, and gone after `stop`.
 */
export class World {
  readonly dir: string;
  readonly shards: Server[] = [];
  readonly proxies: Proxy[] = [];
  readonly migrators: MigratorProgram[] = [];
  catalogServer!: EmbeddedCluster;
  /** Past all relays. */
  catalog!: Catalog;
  /** Of the superuser on all shards. */
  readonly #toEnd: (() => Promise<void>)[] = [];

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async start(options: WorldOptions): Promise<World> {
    const world = new World(mkdtempSync(join(tmpdir(), 'foreshard-chaos-')));
    try {
      await world.#startServers(options);
      await world.#fill();
      await Promise.all([
        ...Array.from({ length: options.proxies }, (_, i) => world.#startProxy(i + 1)),
        ...options.wayBacksMs.map((ms, i) => world.#startMigrator(i + 1, ms)),
      ]);
      return world;
    } catch (error) {
      await world.stop(false);
      throw error;
    }
  }

  /** Where clients connect, by proxy. */
  url(proxy: Proxy): string {
    return `postgres://app:secret@127.0.0.1:${proxy.clients.port}/shop`;
  }

  /** Its administrators' console. */
  consoleUrl(proxy: Proxy): string {
    return `postgres://app:secret@127.0.0.1:${proxy.clients.port}/foreshard_admin`;
  }

  get relays(): Relay[] {
    return [
      ...this.shards.map((shard) => shard.relay),
      ...this.proxies.flatMap((proxy) => [proxy.clients, proxy.catalog]),
      ...this.migrators.map((migrator) => migrator.catalog),
    ];
  }

  get programs(): Program[] {
    return [...this.proxies, ...this.migrators].map(({ program }) => program);
  }

  /** Ends everything, in whatever condition it is. @param keepLogs of the programs */
  async stop(keepLogs: boolean): Promise<void> {
    for (const program of this.programs) program.signal('SIGCONT');
    await Promise.allSettled(this.programs.map((program) => program.kill()));
    const problems: unknown[] = [];
    for (const end of this.#toEnd.toReversed()) await end().catch((error: unknown) => problems.push(error));
    if (!keepLogs) rmSync(this.dir, { recursive: true, force: true });
    if (problems.length > 0) throw new AggregateError(problems, 'not everything could be ended');
  }

  async #startServers({ smallDisk, binDir, log }: WorldOptions): Promise<void> {
    const start = async (options: ClusterOptions = {}): Promise<EmbeddedCluster> => {
      const cluster = await EmbeddedCluster.start({
        ...options,
        settings: SETTINGS,
        ...(binDir === undefined ? {} : { binDir }),
      });
      this.#toEnd.push(() => cluster.stop());
      return cluster;
    };
    const disk = smallDisk ? Tmpfs.mount(join(this.dir, 'small'), log) : null;
    if (disk !== null) {
      this.#toEnd.push(async () => disk.unmount());
    }
    const [catalog, ...shards] = await Promise.all([
      start(),
      start(),
      start(),
      start(disk === null ? {} : { dir: join(disk.dir, 'shard') }),
    ]);
    this.catalogServer = catalog as EmbeddedCluster;
    let n = 0;
    for (const cluster of shards) {
      n += 1;
      const relay = await this.#relay(cluster.port);
      this.shards.push({ name: `s${n}`, cluster, relay, url: cluster.url('shop'), disk: n === 3 ? disk : null });
    }
  }

  /** Everything is on the first shard, to begin with. */
  async #fill(): Promise<void> {
    let verifier = 'secret';
    for (const { cluster } of this.shards) {
      await withClient(cluster.url('postgres'), async (c) => {
        await c.query('CREATE DATABASE shop');
        // One verifier everywhere, so that proxies can log in with what the client has proven.
        await c.query(`CREATE ROLE app LOGIN PASSWORD '${verifier}'`);
        const { rows } = await c.query<{ v: string }>("SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'app'");
        verifier = (rows[0] as { v: string }).v;
      });
      await withClient(cluster.url('shop'), async (c) => {
        await c.query(SCHEMA);
        if (cluster !== this.shards[0]?.cluster) return;
        await c.query(HOUSE_SCHEMA);
        await c.query('INSERT INTO stock (id, balance) SELECT a, $1 FROM generate_series(1, $2) a', [
          OPENING_BALANCE,
          ACCOUNTS,
        ]);
        await c.query(
          `INSERT INTO accounts (tenant, id, balance) SELECT t, a, $1 FROM generate_series(1, $2) t, generate_series(1, $3) a`,
          [OPENING_BALANCE, TENANTS, ACCOUNTS],
        );
        await c.query(`INSERT INTO countries SELECT 'c' || i, 'country ' || i FROM generate_series(1, $1) i`, [
          COUNTRIES,
        ]);
      });
    }
    await withClient(this.catalogServer.url('postgres'), (c) => c.query('CREATE DATABASE foreshard'));
    const url = this.catalogServer.url('foreshard');
    const pool = Catalog.pool(url);
    await initCatalog(pool, 'shop');
    await pool.end();
    this.catalog = await Catalog.connect(url);
    this.#toEnd.push(() => this.catalog.close());
    // Its connections are lost now and then; whoever asks it sees that for himself.
    this.catalog.pool.on('error', () => undefined);
    const registry = new Registry(this.catalog, 'chaos');
    for (const { name, cluster, relay } of this.shards)
      await registry.addShard({ name, url: through(cluster.url('shop'), relay) });
    await registry.createKeyspace({ name: KEYSPACE, method: 'range', keyTypes: ['int8'] });
    for (const table of SHARDED)
      await registry.addTable({ table: { schema: 'public', table }, keyspace: KEYSPACE, keyColumns: ['tenant'] });
    await registry.addReferenceTable({ schema: 'public', table: 'countries' });
  }

  async #startProxy(n: number): Promise<void> {
    const port = await findFreePort();
    const catalog = await this.#relay(this.catalogServer.port);
    const config = this.#configure(`proxy-${n}`, catalog, {
      proxy: {
        name: `p${n}`,
        listen: { port },
        lease: { ttlMs: LEASE_MS },
        telemetry: { flushIntervalMs: 5000 },
        admin: { users: ['app'] },
      },
    });
    const program = new Program(`proxy ${n}`, join(this.dir, `proxy-${n}.log`), [
      'serve',
      '--config',
      config,
      '--only',
      'proxy',
    ]);
    this.proxies.push({ program, clients: await this.#relay(port), catalog });
    await program.start();
  }

  async #startMigrator(n: number, wayBackMs: number): Promise<void> {
    const catalog = await this.#relay(this.catalogServer.port);
    const config = this.#configure(`migrator-${n}`, catalog, { migrator: { ...MIGRATOR, wayBackMs } });
    const program = new Program(`migrator ${n}`, join(this.dir, `migrator-${n}.log`), [
      'serve',
      '--config',
      config,
      '--only',
      'migrator',
    ]);
    this.migrators.push({ program, catalog });
    await program.start();
  }

  async #relay(target: number): Promise<Relay> {
    const relay = await Relay.start(target);
    this.#toEnd.push(() => relay.close());
    return relay;
  }

  /** Writes a configuration file; JSON is YAML. */
  #configure(name: string, catalog: Relay, keys: Readonly<Record<string, unknown>>): string {
    const dir = join(this.dir, name);
    mkdirSync(dir);
    const file = join(dir, 'foreshard.yaml');
    const url = through(this.catalogServer.url('foreshard'), catalog);
    writeFileSync(file, JSON.stringify({ catalog: { url }, database: 'shop', ...keys }), { mode: 0o600 });
    return file;
  }
}

function through(url: string, relay: Relay): string {
  const through = new URL(url);
  through.port = `${relay.port}`;
  return through.href;
}
