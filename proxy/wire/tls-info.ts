import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';

/** Protocol and cipher of a connection, as PgBouncer's SHOW CLIENTS says it (`TLSv1.3/TLS_AES_256_GCM_SHA384`); empty in the clear. */
export function tlsInfo(socket: Duplex): string {
  if (!(socket instanceof TLSSocket)) return '';
  return `${socket.getProtocol() ?? ''}/${socket.getCipher()?.standardName ?? ''}`;
}
