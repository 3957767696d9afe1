import { loadModule } from 'libpg-query';
import pg from 'pg';
import { loadMetadata } from '../../../proxy/router/metadata.js';
import { Router } from '../../../proxy/router/router.js';
import { startTestCluster } from '../../support/cluster.js';
import { spreadTopology } from './setting.js';

/** A router that knows a server's schema, made by these statements, while data is on several shards. The pool is the caller's to end. */
export async function routerOf(ddl: string): Promise<{ readonly pool: pg.Pool; readonly router: Router }> {
  await loadModule();
  const cluster = await startTestCluster();
  const pool = new pg.Pool({ connectionString: cluster.url() });
  pool.on('error', () => undefined);
  await pool.query(ddl);
  const metadata = await loadMetadata(pool);
  const topology = spreadTopology();
  return { pool, router: new Router({ topology: () => topology, metadata: () => metadata }) };
}
