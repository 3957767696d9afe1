import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { stopParts } from './parts.js';
import { stopRunning } from './programs.js';

const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/**
 * From now on a signal ends the run and all that it has started: servers, poolers, the load, directories. What is killed outright leaves
 * nothing either: servers and poolers belong to the supervisor of the embedded cluster, the load to a channel that closes.
 * @returns `end`, which does the same without a signal
 */
export function endWithSignals(): { end: () => Promise<void> } {
  const end = async () => {
    stopRunning();
    stopParts();
    await EmbeddedCluster.endAll();
  };
  for (const [signal, code] of Object.entries(SIGNALS))
    process.once(signal, () => {
      process.stderr.write(`bench: ${signal}, cleaning up\n`);
      void end().finally(() => process.exit(code));
    });
  return { end };
}
