import { afterAll, inject } from 'vitest';
import { type ClusterOptions, EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Supervisor } from '../../deploy/embedded/supervisor.js';
import { copyTemplate, settingsOf } from './data-template.js';

/** Nothing of a test's data has to survive the machine; crashes of the server itself lose nothing without these. */
const UNSAFE_BUT_FAST = { fsync: 'off', full_page_writes: 'off' };

/** The servers' programs, to run the tests on another version than the one from npm. */
const BIN_DIR = process.env.FORESHARD_TEST_PG_BIN;

const started = new Set<EmbeddedCluster>();

afterAll(async () => {
  const clusters = [...started];
  started.clear();
  await Promise.all(
    clusters.map(async (cluster) => {
      await cluster.stop();
      await Supervisor.shared().remove(cluster.dir);
    }),
  );
});

/** A PostgreSQL server for the tests of one file; it stops, and its data goes, when they are over, however they ended. */
export async function startTestCluster(options: Omit<ClusterOptions, 'dir'> = {}): Promise<EmbeddedCluster> {
  const binDir = options.binDir ?? BIN_DIR;
  const cluster = await EmbeddedCluster.start({
    ...options,
    ...(binDir === undefined ? {} : { binDir }),
    dir: await copyTemplate(inject('runDirectory'), binDir),
    settings: { ...UNSAFE_BUT_FAST, ...settingsOf(binDir), ...options.settings },
  });
  started.add(cluster);
  return cluster;
}
