import { chmod, mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Supervisor } from '../../deploy/embedded/supervisor.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { actor } from '../command.js';
import type { DemoOptions } from './demo.js';
import { CAPACITY_MS_PER_SECOND } from './history.js';
import { ProxyChild } from './proxy-child.js';
import type { Scope } from './scope.js';
import { type Servers, SHOP_DATABASE, SHOP_USER, startServers } from './servers.js';

export const KEYSPACE = 'tenant';

/** How often the proxy's counters reach the catalog: the demo wants to see its load soon. */
const FLUSH_INTERVAL_MS = 1000;

/** Everything the story happens on. */
export interface Stage {
  readonly servers: Servers;
  readonly catalog: Catalog;
  readonly registry: Registry;
  /** Where an application connects. */
  readonly url: string;
  readonly port: number;
  /** For the journal; with `--keep` also the servers' data. */
  readonly dir: string;
}

/** Starts the servers, makes the catalog with three shards in it, and starts the proxy. */
export async function setStage(options: DemoOptions, scope: Scope): Promise<Stage> {
  const dir = options.keep
    ? await keptDirectory()
    : await scope.acquire(
        'temporary directory',
        () => Supervisor.shared().makeTemporary(tmpdir(), 'foreshard-demo-', 0o700),
        (made) => Supervisor.shared().remove(made),
      );
  const servers = await startServers(scope, options.keep ? dir : null);
  const pool = Catalog.pool(servers.catalogUrl);
  try {
    await initCatalog(pool, SHOP_DATABASE);
  } finally {
    await pool.end();
  }
  const catalog = await scope.acquire(
    'connection to the catalog',
    () => Catalog.connect(servers.catalogUrl),
    (made) => made.close(),
  );
  const registry = new Registry(catalog, actor());
  for (const { name, url } of servers.shards) await registry.addShard({ name, url, capacity: CAPACITY_MS_PER_SECOND });
  const proxy = await scope.acquire(
    'proxy',
    () => ProxyChild.start({ catalogUrl: servers.catalogUrl, port: options.port, flushIntervalMs: FLUSH_INTERVAL_MS }),
    (started) => started.stop(),
  );
  const url = `postgresql://${SHOP_USER}:${servers.password}@127.0.0.1:${proxy.port}/${SHOP_DATABASE}`;
  return { servers, catalog, registry, url, port: proxy.port, dir };
}

async function keptDirectory(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'foreshard-demo-'));
  // As root we run the servers as another user, who must pass through to their data.
  await chmod(dir, 0o711);
  return dir;
}

/** Puts the shop's tables, which so far are ordinary tables of the first shard, under one keyspace. */
export async function declareShop(registry: Registry): Promise<void> {
  const table = (name: string) => ({ schema: 'public', table: name });
  await registry.createKeyspace({ name: KEYSPACE, method: 'range', keyTypes: ['int8'] });
  await registry.addReferenceTable(table('countries'));
  await registry.addTable({ table: table('tenants'), keyspace: KEYSPACE, keyColumns: ['id'] });
  await registry.addTable({ table: table('orders'), keyspace: KEYSPACE, keyColumns: ['tenant_id'] });
  await registry.addTable({ table: table('order_items'), keyspace: KEYSPACE, keyColumns: ['tenant_id'] });
}
