import { SILENT_OWNER } from '../backend/silent-owner.js';
import { IDLE } from '../wire/transaction-status.js';
import type { SessionServices } from './client-session.js';
import type { Lease } from './lease.js';

/**
 * The client has gone: gives its server connection back as others may have it, or closes it. To be called when nothing is under way
 * for the client.
 */
export async function leaveServer(lease: Lease, { live, logger }: SessionServices): Promise<void> {
  const backend = lease.backend;
  if (backend === null) {
    lease.transaction = null;
    live.released();
    return;
  }
  backend.attach(SILENT_OWNER);
  // The servers roll back what was open there; nobody waits for one that does not answer.
  lease.span?.discard();
  lease.span = null;
  if (lease.pinning.soft) lease.pinning.clear();
  if (backend.lost === null && backend.quiet && !lease.unsynced && lease.pinned === null && backend.status !== IDLE) {
    try {
      await lease.rollBack(backend);
    } catch (error) {
      logger.debug({ err: error }, 'rollback for a client that has gone failed');
      lease.discard();
      return;
    }
  }
  // Without its Sync a batch is still open: only closing the connection undoes it.
  if (backend.reusable && lease.pinned === null && !lease.unsynced) {
    backend.settings = null;
    lease.releaseIfIdle();
    return;
  }
  if (backend.lost === null && !backend.quiet)
    await backend.connection.cancel().catch((e: unknown) => {
      logger.debug({ err: e }, 'cancel for a client that has gone failed');
    });
  lease.discard();
}
