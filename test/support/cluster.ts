import { afterAll } from 'vitest';
import { type ClusterOptions, EmbeddedCluster } from '../../deploy/embedded/cluster.js';

/** Nothing of a test's data has to survive the machine; crashes of the server itself lose nothing without these. */
const UNSAFE_BUT_FAST = { fsync: 'off', full_page_writes: 'off' };

const started = new Set<EmbeddedCluster>();

afterAll(async () => {
  const clusters = [...started];
  started.clear();
  await Promise.all(clusters.map((cluster) => cluster.stop()));
});

/** A PostgreSQL server for the tests of one file; it stops, and its data goes, when they are over, however they ended. */
export async function startTestCluster(options: ClusterOptions = {}): Promise<EmbeddedCluster> {
  const cluster = await EmbeddedCluster.start({ ...options, settings: { ...UNSAFE_BUT_FAST, ...options.settings } });
  started.add(cluster);
  return cluster;
}
