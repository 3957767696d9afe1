import { encodeCancelRequest } from '../wire/frontend.js';
import { ConnectionLostError } from '../wire/handshake-reader.js';
import { type ServerAddress, withServerPath } from './server-address.js';

/**
 * Asks a server to cancel what one of its sessions is doing, over a connection of its own, which has TLS where the address asks
 * for it. Resolves once the server has closed it, which is after the signal has been sent: a statement sent to the session
 * afterwards is not hit by it any more, unless the signal is still under way (as with every PostgreSQL client). Rejects with 08001.
 */
export function sendCancelRequest(
  address: ServerAddress,
  target: { readonly processId: number; readonly secret: Buffer },
  timeoutMs: number = 10_000,
): Promise<void> {
  return withServerPath(address, timeoutMs, async ({ reader, connected }) => {
    await connected;
    reader.socket.write(encodeCancelRequest(target.processId, target.secret));
    try {
      for (;;) await reader.read(1);
    } catch (error) {
      // PostgreSQL closes without an answer; a reset instead of an orderly end says the same.
      if (!(error instanceof ConnectionLostError)) throw error;
    }
    reader.socket.destroy();
    await reader.release().catch(() => undefined);
  });
}
