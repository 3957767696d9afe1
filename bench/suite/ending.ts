import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { ForeshardError, UsageError } from '../../topology/errors.js';
import { stopParts } from './parts.js';
import { stopRunning } from './programs.js';

const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** How a run ends. */
export interface Ending {
  /** Shows progress, until a signal has come: what fails from then on fails because of it. */
  say(text: string): void;
  /** Takes down all that the run has started. */
  end(): Promise<void>;
  /** Tells why the run has failed, and what the process shall end with. */
  fail(error: unknown): void;
}

/**
 * From now on a signal ends the run and all that it has started: servers, poolers, the load, directories. What is killed outright leaves
 * nothing either: servers and poolers belong to the supervisor of the embedded cluster, the load to a channel that closes.
 */
export function endWithSignals(): Ending {
  let signaled = false;
  const say = (text: string) => {
    if (!signaled) process.stderr.write(`${text}\n`);
  };
  const end = async () => {
    stopRunning();
    stopParts();
    await EmbeddedCluster.endAll();
  };
  for (const [signal, code] of Object.entries(SIGNALS))
    process.once(signal, () => {
      say(`bench: ${signal}, cleaning up`);
      signaled = true;
      void end().finally(() => process.exit(code));
    });
  const fail = (error: unknown) => {
    if (signaled) return;
    const known = error instanceof ForeshardError ? error : null;
    say(`bench: ${known?.message ?? (error instanceof Error ? error.stack : error)}`);
    if (known?.hint !== undefined) say(`hint: ${known.hint}`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  };
  return { say, end, fail };
}
