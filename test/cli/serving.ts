import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { alive, descendants } from './process-tree.js';
import { buildCli, type RunningCli, startCli } from './run-cli.js';

/** A log line of a process. */
export interface LogLine {
  readonly msg: string;
  readonly pid: number;
  readonly [key: string]: unknown;
}

/** One shard that is also the catalog's server, with a configuration file for `foreshard serve`. */
export class Serving {
  readonly cluster: EmbeddedCluster;
  readonly #dir: string;
  readonly #started = new Set<ServeProcesses>();

  private constructor(cluster: EmbeddedCluster, dir: string) {
    this.cluster = cluster;
    this.#dir = dir;
  }

  /** @param dir for the configuration file */
  static async start(dir: string): Promise<Serving> {
    const [cluster] = await Promise.all([startTestCluster(), buildCli()]);
    for (const database of ['shop', 'foreshard'])
      await withClient(cluster.url(), (client) => client.query(`CREATE DATABASE ${database}`));
    await withClient(cluster.url('shop'), (client) =>
      client.query(`
        CREATE ROLE app LOGIN PASSWORD 'app-secret';
        CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, PRIMARY KEY (tenant_id, id));
        GRANT SELECT, INSERT ON orders TO app;
      `),
    );
    const serving = new Serving(cluster, dir);
    serving.configure({});
    const pool = Catalog.pool(cluster.url('foreshard'));
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(cluster.url('foreshard'));
    const registry = new Registry(catalog, 'test');
    await registry.addShard({ name: 's1', url: cluster.url('shop') });
    await registry.createKeyspace({ name: 'shop', method: 'range', keyTypes: ['int8'] });
    await registry.addTable({
      table: { schema: 'public', table: 'orders' },
      keyspace: 'shop',
      keyColumns: ['tenant_id'],
    });
    await catalog.close();
    return serving;
  }

  /** Writes the configuration file: these keys of the proxy, on any free port. JSON is YAML. */
  configure(proxy: Readonly<Record<string, unknown>>): void {
    this.write(
      JSON.stringify({
        catalog: { url: this.cluster.url('foreshard') },
        database: 'shop',
        proxy: { name: 'test', listen: { port: 0 }, ...proxy },
      }),
    );
  }

  write(text: string): void {
    writeFileSync(join(this.#dir, 'foreshard.yaml'), text);
  }

  /** `foreshard serve`, ready. */
  async serve(...args: string[]): Promise<ServeProcesses> {
    const running = startCli(['serve', ...args], { cwd: this.#dir });
    const processes = new ServeProcesses(running);
    this.#started.add(processes);
    await processes.logged('ready');
    return processes;
  }

  /** Asks the server directly. */
  async direct<T extends pg.QueryResultRow>(database: string, sql: string): Promise<T[]> {
    return withClient(this.cluster.url(database), async (client) => (await client.query<T>(sql)).rows);
  }

  /** Ends what a test has left, each by its id. */
  async stop(): Promise<void> {
    for (const processes of this.#started) await processes.stop();
  }
}

/** A running `foreshard serve`. */
export class ServeProcesses {
  readonly #running: RunningCli;

  constructor(running: RunningCli) {
    this.#running = running;
  }

  get pid(): number {
    return this.#running.child.pid as number;
  }

  /** Those behind it. */
  get children(): number[] {
    return descendants(this.pid);
  }

  get stderr(): string {
    return this.#running.stderr();
  }

  get lines(): LogLine[] {
    return this.stderr
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as LogLine);
  }

  /** Waits for the `count`th log line with this message. */
  async logged(message: string, count = 1): Promise<LogLine> {
    const found = await waitFor(
      () => {
        const lines = this.lines.filter(({ msg }) => msg.includes(message));
        return lines[count - 1] ?? (this.#running.child.exitCode === null ? null : 'ended');
      },
      { what: `"${message}" in the log` },
    );
    if (found === 'ended') throw new Error(`foreshard serve has ended:\n${this.stderr}`);
    return found;
  }

  get port(): number {
    const ready = this.lines.find(({ msg }) => msg === 'ready');
    return Number(/:(\d+)(?=,|$)/.exec(String(ready?.listen))?.[1]);
  }

  get url(): string {
    return `postgresql://app:app-secret@127.0.0.1:${this.port}/shop`;
  }

  /** A client that says how its connection ended. To be ended by the test. */
  async connect(url = this.url): Promise<{ readonly client: pg.Client; readonly lost: () => Error | null }> {
    const client = new pg.Client({ connectionString: url });
    let lost: Error | null = null;
    client.on('error', (error) => {
      lost ??= error;
    });
    await client.connect();
    return { client, lost: () => lost };
  }

  signal(signal: NodeJS.Signals): void {
    this.#running.child.kill(signal);
  }

  async ended(): Promise<number | null> {
    return (await this.#running.ended).code;
  }

  /** @returns its exit code, and processes that it has left behind */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<{ code: number | null; left: number[] }> {
    const before = this.children;
    if (this.#running.child.exitCode === null) this.signal(signal);
    return { code: await this.ended(), left: alive(before) };
  }
}

/** Which process has a client: the high bits of the id that it was given. */
export function slotOfClient(client: pg.Client): number {
  return (client as unknown as { processID: number }).processID >>> 24;
}
