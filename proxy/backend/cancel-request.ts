import { ForeshardError } from '../../topology/errors.js';
import { encodeCancelRequest } from '../wire/frontend.js';
import { connectError, connectTimeoutError, openSocket, type ServerAddress } from './server-address.js';

/**
 * Asks a server to cancel what one of its sessions is doing, over a connection of its own. Resolves once the server has
 * closed it, which is after the signal has been sent: a statement sent to the session afterwards is not hit by it any
 * more, unless the signal is still under way (as with every PostgreSQL client). Rejects with 08001.
 */
export function sendCancelRequest(
  address: ServerAddress,
  target: { readonly processId: number; readonly secret: Buffer },
  timeoutMs: number = 10_000,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = openSocket(address);
    const timer = setTimeout(() => socket.destroy(connectTimeoutError(address, timeoutMs)), timeoutMs);
    let failure: unknown = null;
    let connected = false;
    socket.on('connect', () => {
      connected = true;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      // PostgreSQL closes without an answer; a reset instead of an orderly end says the same.
      if (!connected || error.code !== 'ECONNRESET') failure = error;
    });
    socket.on('close', () => {
      clearTimeout(timer);
      if (failure === null) resolve();
      else reject(failure instanceof ForeshardError ? failure : connectError(address, failure));
    });
    socket.resume();
    socket.write(encodeCancelRequest(target.processId, target.secret));
  });
}
