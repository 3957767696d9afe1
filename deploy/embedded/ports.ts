import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

/**
 * Below the ports that systems hand out for outgoing connections (32768 and up on Linux, 49152 on others), and not by
 * asking for port 0, which gives one of those: while a server with such a port is down, an outgoing connection may take
 * it, and a client that keeps trying to connect on the same host may in the end be connected to itself.
 */
const LOWEST_PORT = 15_000;
const HIGHEST_PORT = 32_000;

/** A port of 127.0.0.1 that nobody listens on at this moment. The server that takes it must still expect to find it taken. */
export async function findFreePort(): Promise<number> {
  for (;;) {
    const port = randomInt(LOWEST_PORT, HIGHEST_PORT);
    if (await isFree(port)) return port;
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE' || error.code === 'EACCES') resolve(false);
      else reject(error);
    });
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)));
  });
}
