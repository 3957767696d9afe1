import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import pg from 'pg';
import type { Logger } from 'pino';
import { stringify } from 'yaml';
import { type ClusterOptions, EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { Catalog } from '../topology/catalog/catalog.js';
import { Registry } from '../topology/catalog/registry.js';
import { initCatalog } from '../topology/catalog/schema.js';
import { UsageError } from '../topology/errors.js';
import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import { copyRoles } from '../topology/roles.js';
import { loadConfig } from './config.js';
import { type Services, startServices } from './serve.js';
import { changeShardUrls } from './shard-url.js';

const CATALOG_DATABASE = 'foreshard';
const APP_DATABASE = 'app';
const APP_USER = 'app';
const DEFAULT_SHARDS = 2;
const MAX_SHARDS = 64;
const HOST = '127.0.0.1';
const ACTOR = 'foreshard up';
const PASSWORD_FILE = 'app-password';
const CONFIG_FILE = 'foreshard.yaml';
const PORTS_FILE = 'ports.json';

export interface DevelopmentOptions {
  readonly dir: string;
  /** Default: as many as the directory has, or 2. */
  readonly shards?: number | undefined;
  /** Port of the proxy on 127.0.0.1; 0 for any free one. */
  readonly port: number;
  readonly logger: Logger;
  /** What a person should know. */
  readonly log: (message: string) => void;
}

/** A running set-up for development; the URLs have their passwords. */
export interface Development {
  /** Through the proxy, as the application's user. */
  readonly url: string;
  readonly catalog: string;
  readonly shards: readonly { readonly name: string; readonly url: string }[];
  /** Configuration file with which the other commands find the catalog. */
  readonly configFile: string;
  /** Rejects when a part has failed. */
  readonly failed: Promise<never>;
  stop(): Promise<void>;
}

/**
 * Starts PostgreSQL clusters, catalog, proxy, planner and migrator in one directory, or starts them again with all their
 * data. When anything fails, all that was started is stopped.
 * @throws UsageError when the directory or the port is in use
 */
export async function startDevelopment(options: DevelopmentOptions): Promise<Development> {
  const dir = resolve(options.dir);
  await refuseTakenPort(options.port);
  const names = shardNames(dir, options.shards);
  // Stopped in reverse order: the last of all is what the clusters run on.
  const stops: (() => Promise<void>)[] = [() => EmbeddedCluster.endAll()];
  const stop = async (): Promise<void> => {
    const problems: unknown[] = [];
    for (let one = stops.pop(); one !== undefined; one = stops.pop())
      await one().catch((error: unknown) => {
        problems.push(error);
      });
    if (problems.length > 0) throw problems[0];
  };
  const ports = readPorts(dir);
  const start = async (name: string): Promise<EmbeddedCluster> => {
    const cluster = await startOnUsualPort({ dir: join(dir, name), log: options.log }, ports[name]);
    let stopping = false;
    stops.push(() => {
      stopping = true;
      return cluster.stop();
    });
    cluster.ended().then(
      () => {
        if (!stopping)
          options.log(
            `server ${name} has ended; see ${join(dir, name, 'server.log')}. Stop and start "foreshard up" again`,
          );
      },
      // The supervisor has died, and all servers with it: what runs on them says so.
      () => undefined,
    );
    return cluster;
  };

  try {
    // The first server is also the lock: PostgreSQL itself lets only one run on its data.
    const first = await start(names[0] as string).catch((error: unknown) => {
      throw /is in use by another server/.test(String(error))
        ? new UsageError(
            `"${dir}" is in use by another "foreshard up"`,
            'Stop that one first, or use another directory with --dir.',
          )
        : error;
    });
    const started = await Promise.allSettled(names.slice(1).map(start));
    const failure = started.find((result) => result.status === 'rejected');
    if (failure !== undefined) throw failure.reason;
    const others = started.map((result) => (result as PromiseFulfilledResult<EmbeddedCluster>).value);
    const clusters = [first, ...others];

    writeFileSync(
      join(dir, PORTS_FILE),
      `${JSON.stringify(Object.fromEntries(names.map((name, i) => [name, clusters[i]?.port])))}\n`,
    );

    const password = appPassword(dir);
    await prepareHome(first, password);
    for (const cluster of others) await prepareShard(first, cluster);

    const catalogUrl = first.url(CATALOG_DATABASE);
    const shards = names.map((name, i) => ({ name, url: (clusters[i] as EmbeddedCluster).url(APP_DATABASE) }));
    await register(catalogUrl, shards);
    // The shards share this machine's processors.
    const planner = { capacityMsPerSecond: Math.ceil((availableParallelism() * 1000) / names.length) };
    const configFile = writeConfig(dir, { catalog: { url: catalogUrl }, database: APP_DATABASE, planner });

    const { config } = loadConfig(configFile);
    const services: Services = await startServices(
      { ...config, proxy: { ...config.proxy, listen: { host: HOST, port: options.port } } },
      { logger: options.logger },
    );
    stops.push(() => services.stop());
    const port = services.proxy?.port ?? options.port;
    const url = `postgresql://${APP_USER}:${encodeURIComponent(password)}@${HOST}:${port}/${APP_DATABASE}`;
    return { url, catalog: catalogUrl, shards, configFile, failed: services.failed, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** The ports that the servers had last time. */
function readPorts(dir: string): Record<string, number> {
  const file = join(dir, PORTS_FILE);
  return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Record<string, number>) : {};
}

/**
 * Starts a server on the port it had, so that what others have noted of it (subscriptions of a migration that was interrupted)
 * still leads to it; on another when somebody has taken that.
 */
async function startOnUsualPort(options: ClusterOptions, port: number | undefined): Promise<EmbeddedCluster> {
  if (port === undefined) return EmbeddedCluster.start(options);
  try {
    return await EmbeddedCluster.start({ ...options, port });
  } catch (error) {
    if (!/^port \d+ .* is in use$/.test((error as Error).message)) throw error;
    return EmbeddedCluster.start(options);
  }
}

/** s1, s2, …: as many as asked for, and never fewer than the directory has already. */
function shardNames(dir: string, wanted: number | undefined): string[] {
  const present = existsSync(dir) ? readdirSync(dir).filter((name) => /^s[1-9]\d*$/.test(name)) : [];
  const highest = Math.max(0, ...present.map((name) => Number(name.slice(1))));
  const count = wanted ?? (highest > 0 ? highest : DEFAULT_SHARDS);
  if (!Number.isInteger(count) || count < 1 || count > MAX_SHARDS)
    throw new UsageError(`--shards must be a whole number from 1 to ${MAX_SHARDS}`);
  if (count < highest)
    throw new UsageError(
      `"${dir}" has ${highest} shards, and --shards says ${count}`,
      `Leave --shards out, or use another directory with --dir.`,
    );
  return Array.from({ length: count }, (_, i) => `s${i + 1}`);
}

/** Told before anything is started: the proxy itself would only find out when the servers are up. */
async function refuseTakenPort(port: number): Promise<void> {
  if (!Number.isInteger(port) || port < 0 || port > 65_535)
    throw new UsageError('--port must be a whole number from 0 to 65535');
  if (port === 0) return;
  const server = createServer();
  server.listen({ port, host: HOST, exclusive: true });
  try {
    await once(server, 'listening');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EADDRINUSE')
      throw new UsageError(`port ${port} of ${HOST} is in use`, 'Choose another with --port, or 0 for any free one.');
    if (code === 'EACCES')
      throw new UsageError(`port ${port} may not be used by this user`, 'Choose one above 1023 with --port.');
    throw error;
  }
  server.close();
  await once(server, 'close');
}

/** The application's password, made once. Written before the role that has it is created. */
function appPassword(dir: string): string {
  const file = join(dir, PASSWORD_FILE);
  if (existsSync(file)) return readFileSync(file, 'utf8').trim();
  const password = randomBytes(18).toString('base64url');
  writeSecret(file, `${password}\n`);
  return password;
}

function writeSecret(file: string, text: string): void {
  mkdirSync(resolve(file, '..'), { recursive: true });
  writeFileSync(file, text, { mode: 0o600 });
  // `mode` counts only when the file is new.
  chmodSync(file, 0o600);
}

/** For the other commands: `foreshard --config .foreshard/foreshard.yaml topology show`. */
function writeConfig(dir: string, config: unknown): string {
  const file = join(dir, CONFIG_FILE);
  const note = '# Written by "foreshard up" at every start; for the other commands: --config with this file.\n';
  writeSecret(file, note + stringify(config));
  return file;
}

/** Role and databases of the first server. Every step may find its work done by an earlier start. */
async function prepareHome(cluster: EmbeddedCluster, password: string): Promise<void> {
  await withServer(cluster, async (client) => {
    const role = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [APP_USER]);
    // The file is what counts: it is what the user is given. A verifier that fits is kept, it is the shards' too.
    if (role.rowCount === 0)
      await client.query(`CREATE ROLE ${quoteIdent(APP_USER)} LOGIN PASSWORD ${quoteLiteral(password)}`);
    else if (!(await canLogIn(cluster, password)))
      await client.query(`ALTER ROLE ${quoteIdent(APP_USER)} LOGIN PASSWORD ${quoteLiteral(password)}`);
    await ensureDatabase(client, CATALOG_DATABASE, null);
    await ensureDatabase(client, APP_DATABASE, APP_USER);
  });
}

async function prepareShard(home: EmbeddedCluster, cluster: EmbeddedCluster): Promise<void> {
  await copyRoles(home.url(), cluster.url());
  await withServer(cluster, (client) => ensureDatabase(client, APP_DATABASE, APP_USER));
}

async function canLogIn(cluster: EmbeddedCluster, password: string): Promise<boolean> {
  const client = new pg.Client({ host: HOST, port: cluster.port, user: APP_USER, password, database: 'postgres' });
  try {
    await client.connect();
    return true;
  } catch (error) {
    if ((error as { code?: string }).code?.startsWith('28') === true) return false;
    throw error;
  } finally {
    await client.end();
  }
}

async function ensureDatabase(client: pg.Client, name: string, owner: string | null): Promise<void> {
  const found = await client.query('SELECT FROM pg_database WHERE datname = $1', [name]);
  if (found.rowCount !== 0) return;
  await client.query(`CREATE DATABASE ${quoteIdent(name)}${owner === null ? '' : ` OWNER ${quoteIdent(owner)}`}`);
}

async function withServer<T>(cluster: EmbeddedCluster, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: cluster.url() });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Enters the shards that are new, and the new ports of those that are not. */
async function register(
  catalogUrl: string,
  shards: readonly { readonly name: string; readonly url: string }[],
): Promise<void> {
  const pool = Catalog.pool(catalogUrl);
  try {
    await initCatalog(pool, APP_DATABASE);
  } finally {
    await pool.end();
  }
  const catalog = await Catalog.connect(catalogUrl);
  try {
    const topology = await catalog.loadTopology();
    await changeShardUrls(catalog, topology, new Map(shards.map((s) => [s.name, s.url])), ACTOR);
    const registry = new Registry(catalog, ACTOR);
    const known = new Set<string>(topology.shards.keys());
    for (const shard of shards) if (!known.has(shard.name)) await registry.addShard(shard);
  } finally {
    await catalog.close();
  }
}
