import { afterAll } from 'vitest';
import { type ClusterOptions, EmbeddedCluster } from '../../deploy/embedded/cluster.js';

/** Nothing of a test's data has to survive the machine; crashes of the server itself lose nothing without these. */
const UNSAFE_BUT_FAST = { fsync: 'off', full_page_writes: 'off' };

/** The servers' programs, to run the tests on another version than the one from npm. */
const BIN_DIR = process.env.FORESHARD_TEST_PG_BIN;

const started = new Set<EmbeddedCluster>();

afterAll(async () => {
  const clusters = [...started];
  started.clear();
  await Promise.all(clusters.map((cluster) => cluster.stop()));
});

/** A PostgreSQL server for the tests of one file; it stops, and its data goes, when they are over, however they ended. */
export async function startTestCluster(options: ClusterOptions = {}): Promise<EmbeddedCluster> {
  const cluster = await EmbeddedCluster.start({
    ...(BIN_DIR === undefined ? {} : { binDir: BIN_DIR }),
    ...options,
    settings: { ...UNSAFE_BUT_FAST, ...options.settings },
  });
  started.add(cluster);
  return cluster;
}
