import type { Logger } from 'pino';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import type { ClientSession, SpreadRun } from '../session/client-session.js';
import { giveBack } from '../session/give-back.js';
import { queueNotice } from '../session/queue-notice.js';
import { lost } from '../session/refusals.js';
import { applySettings } from '../session/server-settings.js';
import { checkDeferred, checkNames, type SpreadBlock } from '../session/spread-block.js';
import type { SpreadWait } from '../session/spread-wait.js';
import { encodeQuery } from '../wire/frontend.js';
import { IDLE } from '../wire/transaction-status.js';

/** Of a batch of the extended protocol with one statement in it. */
export interface SentBatch {
  /** Of the parameters. */
  readonly oids: readonly number[];
  /** Whether the client's own batch has the Parse, so that it waits for ParseComplete. */
  readonly parsed: boolean;
  readonly describe: 'statement' | 'portal' | null;
  readonly closePortal: boolean;
}

/** How long a connection may take to leave a transaction that has failed, ms. */
const ROLLBACK_MS = 5_000;

const ROLLBACK = encodeQuery('ROLLBACK');
const NOTHING = encodeQuery('');

/**
 * Connections to all these shards for one statement, with the client's settings: put into `backends` one by one, in the order of the shards' names, so that
 * two statements never wait for each other's; beyond the pools' sizes where the client's transaction block has some already.
 * @returns false when the topology, or what is held back, changed meanwhile, or a connection was lost: place the statement again
 */
export async function acquireAll(
  session: ClientSession,
  owner: BackendOwner & Pick<SpreadRun, 'footprint'>,
  shards: readonly ShardName[],
  topology: Topology,
  backends: Backend[],
  signal: AbortSignal,
  block: SpreadBlock | null,
): Promise<boolean> {
  const { activity, lease, services, settings } = session;
  for (const shard of [...shards].sort()) {
    const pool = services.pool(shard);
    const acquired =
      block === null || block.deferred
        ? pool.acquire(signal, () => session.write(queueNotice(shard)))
        : pool.acquireBeyond();
    const backend = await activity.waitFor(acquired);
    activity.assignments += 1;
    backend.attach(owner);
    backends.push(backend);
    if (block !== null && (!block.deferred || block.opening.length > 0)) {
      await applySettings(backend, settings.outside);
      // What the block has set is said on top of these, and compared with what the client was told then.
      if (block.opening.length === 0) checkNames(backend, session);
    } else if (!(await lease.serverSettings.adopt(backend))) return false;
  }
  const { transaction, span } = lease;
  const [first] = backends;
  if (block?.deferred === true && transaction !== null && first !== undefined) await checkDeferred(transaction, first);
  if (services.live.current !== topology || !services.live.admits(owner.footprint, transaction, span)) return false;
  // Lost while the others were waited for: nobody would be told of it any more, and its rows would be missing.
  if (backends.some((backend) => backend.lost !== null)) return false;
  signal.throwIfAborted(); // the client may have gone or canceled after the last connection was there
  return true;
}

/** The block's own connections to these shards serve the statement from now on. @throws ForeshardError when one of them is lost */
export function lend(lent: readonly Backend[], owner: BackendOwner): void {
  for (const backend of lent) {
    if (backend.lost !== null) throw lost(backend.shard, backend.lost);
    backend.hand(owner);
  }
}

/** The statement is through, or has failed: nothing is left under way, and on connections of its own nothing open. */
export async function letGo(
  session: ClientSession,
  own: readonly Backend[],
  lent: readonly Backend[],
  block: SpreadBlock | null,
  wait: SpreadWait | null,
): Promise<void> {
  const { lease, services } = session;
  await Promise.all([...own.map(rollBack), ...lent.map((backend) => within(backend, NOTHING))]);
  for (const backend of own) {
    // What was set there in a transaction is over, and not every server says so.
    if (block !== null && block.opening.length > 0) backend.settings = null;
    giveBack(backend, services.pool(backend.shard));
  }
  wait?.end();
  for (const backend of lent) {
    backend.connection.resume();
    lease.takeBack(backend);
  }
}

/** Nothing is left open on a connection. */
export async function rollBack(backend: Backend): Promise<void> {
  if (backend.status !== IDLE || !backend.quiet) await within(backend, ROLLBACK, true);
}

/** Waits for what is under way on a connection, with this behind it; or for its end. */
async function within(backend: Backend, sql: Buffer, always = false): Promise<void> {
  if (backend.lost !== null || (backend.quiet && !always)) return;
  const late = setTimeout(() => backend.destroy(), ROLLBACK_MS);
  await backend.runInternal(sql).catch(() => always && backend.destroy());
  clearTimeout(late);
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
