import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import pg from 'pg';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { quoteIdent, quoteLiteral } from '../../topology/quote.js';
import { copyRoles } from '../../topology/roles.js';
import type { Scope } from './scope.js';

/** The database that clients connect to. */
export const SHOP_DATABASE = 'shop';
/** The user of the application. */
export const SHOP_USER = 'shop';
const CATALOG_DATABASE = 'foreshard';

export interface ShardServer {
  readonly name: string;
  /** URL of the shop's database with the superuser, that Foreshard itself uses. */
  readonly url: string;
}

export interface Servers {
  readonly shards: readonly [ShardServer, ShardServer, ShardServer];
  readonly catalogUrl: string;
  /** Password of the application's user. */
  readonly password: string;
}

/**
 * Starts three PostgreSQL servers with an empty database each, the application's user on all of them, and the catalog's database on
 * the first. `dir`: where their data stays; null for temporary directories.
 */
export async function startServers(scope: Scope, dir: string | null): Promise<Servers> {
  const [c1, c2, c3] = await scope.acquire(
    'servers',
    () => startThree((name) => EmbeddedCluster.start(dir === null ? {} : { dir: join(dir, name) })),
    stopAll,
  );
  const password = randomBytes(12).toString('hex');
  await asSuperuser(c1.url(), [
    `CREATE ROLE ${quoteIdent(SHOP_USER)} LOGIN PASSWORD ${quoteLiteral(password)}`,
    `CREATE DATABASE ${quoteIdent(CATALOG_DATABASE)}`,
  ]);
  // The same verifier everywhere: what opens the first shard opens the others.
  for (const other of [c2, c3]) await copyRoles(c1.url(), other.url());
  for (const cluster of [c1, c2, c3])
    await asSuperuser(cluster.url(), [`CREATE DATABASE ${quoteIdent(SHOP_DATABASE)} OWNER ${quoteIdent(SHOP_USER)}`]);
  const shard = (name: string, cluster: EmbeddedCluster): ShardServer => ({ name, url: cluster.url(SHOP_DATABASE) });
  return {
    shards: [shard('s1', c1), shard('s2', c2), shard('s3', c3)],
    catalogUrl: c1.url(CATALOG_DATABASE),
    password,
  };
}

type Three = readonly [EmbeddedCluster, EmbeddedCluster, EmbeddedCluster];

/** All three at once, or none. */
async function startThree(start: (name: string) => Promise<EmbeddedCluster>): Promise<Three> {
  const results = await Promise.allSettled([start('s1'), start('s2'), start('s3')]);
  const started = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed === undefined) return started as unknown as Three;
  await stopAll(started);
  throw failed.reason;
}

async function stopAll(clusters: readonly EmbeddedCluster[]): Promise<void> {
  await Promise.all(clusters.map((cluster) => cluster.stop()));
}

async function asSuperuser(url: string, statements: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined); // the statement under way is told
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
