import type { Logger } from 'pino';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import type { ClientSession, SpreadRun } from '../session/client-session.js';
import { queueNotice } from '../session/queue-notice.js';

/** Of a batch of the extended protocol with one statement in it. */
export interface SentBatch {
  /** Of the parameters. */
  readonly oids: readonly number[];
  /** Whether the client's own batch has the Parse, so that it waits for ParseComplete. */
  readonly parsed: boolean;
  readonly describe: 'statement' | 'portal' | null;
  readonly closePortal: boolean;
}

/**
 * Connections to all these shards for one statement, with the client's settings: put into `backends` one by one, in the order of the shards' names, so that
 * two statements never wait for each other's.
 * @returns false when the topology, or what is held back, changed meanwhile, or a connection was lost: place the statement again
 */
export async function acquireAll(
  session: ClientSession,
  owner: BackendOwner & Pick<SpreadRun, 'footprint'>,
  shards: readonly ShardName[],
  topology: Topology,
  backends: Backend[],
  signal: AbortSignal,
): Promise<boolean> {
  const { activity, lease, services } = session;
  for (const shard of [...shards].sort()) {
    const acquired = services.pool(shard).acquire(signal, () => session.write(queueNotice(shard)));
    const backend = await activity.waitFor(acquired);
    activity.assignments += 1;
    backend.attach(owner);
    backends.push(backend);
    if (!(await lease.serverSettings.adopt(backend))) return false;
  }
  if (services.live.current !== topology || !services.live.admits(owner.footprint, null)) return false;
  // Lost while the others were waited for: nobody would be told of it any more, and its rows would be missing.
  if (backends.some((backend) => backend.lost !== null)) return false;
  signal.throwIfAborted(); // the client may have gone or canceled after the last connection was there
  return true;
}

/** Cancels what still runs; its replies are read and dropped, so that the connections stay usable. @returns resolved when the servers have been asked */
export function cancelAll(backends: readonly Backend[], logger: Logger): Promise<void>[] {
  return backends.flatMap((backend) => {
    if (backend.lost !== null) return [];
    backend.connection.resume();
    if (backend.quiet) return [];
    return [
      backend.cancel().catch((error: unknown) => {
        logger.debug({ err: error, shard: backend.shard }, 'could not cancel');
      }),
    ];
  });
}
