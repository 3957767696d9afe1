import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ClientSocket, canReadIntoMemory, readIntoMemory } from '../../../proxy/listener/client-socket.js';
import type { Incoming } from '../../../proxy/wire/incoming.js';
import { isBorrowed } from '../../../proxy/wire/read-memory.js';
import { waitFor } from '../../support/wait-for.js';

let server: Server;
const sockets: Socket[] = [];

beforeEach(async () => {
  server = createServer({ pauseOnConnect: true, allowHalfOpen: false });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
});
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  server.close();
});

/** Both ends of a connection. */
async function pair(): Promise<{ peer: Socket; accepted: Socket }> {
  const peer = connect((server.address() as AddressInfo).port, '127.0.0.1');
  peer.on('error', () => undefined);
  const [accepted] = (await once(server, 'connection')) as [Socket];
  sockets.push(peer, accepted);
  return { peer, accepted };
}

function moved(accepted: Socket): { socket: Socket; incoming: Incoming } {
  const { socket, incoming } = readIntoMemory(accepted);
  sockets.push(socket);
  socket.on('error', () => undefined);
  if (incoming === null) throw new Error('it is read from its stream');
  return { socket, incoming };
}

describe('an accepted socket that is read into shared memory', () => {
  test('is what this version of Node can do', async () => {
    expect(await canReadIntoMemory()).toBe(true);
  });

  test('is not read before somebody wants it', async () => {
    const { peer, accepted } = await pair();
    const { socket } = moved(accepted);
    peer.write('early');
    const other = await pair();
    other.peer.write('x');
    other.accepted.resume();
    await once(other.accepted, 'data');
    expect(socket.bytesRead).toBe(0);
    await once(
      socket.on('readable', () => undefined),
      'readable',
    );
    expect(String(socket.read())).toBe('early');
  });

  test('gives what its stream has first, then all that comes, in order, through pauses', async () => {
    const { peer, accepted } = await pair();
    const { socket, incoming } = moved(accepted);
    const onReadable = () => undefined;
    socket.on('readable', onReadable);
    const sent = Buffer.alloc(3_000_000);
    for (let i = 0; i < sent.length; i += 4) sent.writeUInt32BE(i, i);
    peer.write(sent.subarray(0, 10));
    await waitFor(() => socket.readableLength === 10, { what: 'the beginning' });
    socket.off('readable', onReadable);
    await new Promise<void>((resolve) => process.nextTick(resolve));
    const got: Buffer[] = [];
    let bytes = 0;
    let borrowed = 0;
    const take = (chunk: Buffer) => {
      if (isBorrowed(chunk)) borrowed += chunk.length;
      got.push(Buffer.from(chunk));
      bytes += chunk.length;
      if (got.length % 3 !== 0) return;
      socket.pause();
      setImmediate(() => socket.resume());
    };
    incoming.takeBy(take);
    socket.on('data', take);
    socket.resume();
    peer.write(sent.subarray(10));
    await waitFor(() => bytes === sent.length, { what: 'all of it' });
    expect(Buffer.concat(got).equals(sent)).toBe(true);
    expect(borrowed).toBe(sent.length - 10);
    expect(socket.bytesRead).toBe(sent.length);
  });

  test('goes with the one that was accepted, which counts until then', async () => {
    const { peer, accepted } = await pair();
    const { socket } = moved(accepted);
    const count = () => new Promise<number>((resolve) => server.getConnections((_, n) => resolve(n)));
    expect(await count()).toBe(1);
    let closed = false;
    const gone = once(accepted, 'close').then(() => {
      closed = true;
    });
    socket.resume();
    // Both ways of ending are seen: what is still to be written is, after the peer's end too.
    socket.write('bye');
    const [heard] = (await once(peer, 'data')) as [Buffer];
    expect(String(heard)).toBe('bye');
    expect(closed).toBe(false);
    peer.end();
    await gone;
    expect(socket.destroyed).toBe(true);
    expect(await count()).toBe(0);
    const second = await pair();
    const { socket: other } = moved(second.accepted);
    second.accepted.destroy();
    await once(second.peer, 'close');
    expect(other.destroyed).toBe(true);
  });

  test('tells of a connection that is reset', async () => {
    const { peer, accepted } = await pair();
    const { socket } = moved(accepted);
    socket.resume();
    const error = once(socket, 'error').then(([e]) => (e as NodeJS.ErrnoException).code);
    const closed = once(accepted, 'close');
    peer.resetAndDestroy();
    expect(await error).toBe('ECONNRESET');
    await closed;
    expect(socket.closed).toBe(true);
  });

  test('is left as it is when it has been closed meanwhile', async () => {
    const { accepted } = await pair();
    accepted.destroy();
    expect(readIntoMemory(accepted)).toEqual({ socket: accepted, incoming: null });
  });
});

describe('a version of Node with which it would go wrong is found out', () => {
  const wrong: [string, (accepted: Socket) => ClientSocket][] = [
    ['it is not done', (accepted) => ({ socket: accepted, incoming: null })],
    [
      'it throws',
      () => {
        throw new TypeError('handle');
      },
    ],
    [
      'it is read before it is wanted, past pauses',
      (accepted) => {
        const made = readIntoMemory(accepted);
        made.socket.pause = () => made.socket;
        return made;
      },
    ],
    [
      'bytes are doubled',
      (accepted) => {
        const made = readIntoMemory(accepted);
        const { incoming } = made;
        const takeBy = incoming?.takeBy.bind(incoming);
        if (incoming !== null)
          incoming.takeBy = (take) =>
            takeBy?.((chunk) => {
              take(chunk);
              take(chunk);
            });
        return made;
      },
    ],
    [
      'its end is not seen by those who count',
      (accepted) => {
        const made = readIntoMemory(accepted);
        made.socket.removeAllListeners('close');
        return made;
      },
    ],
  ];
  test.each(wrong)('%s', async (_, make) => {
    // Long enough for all but the last to be found out before.
    expect(await canReadIntoMemory(make, 500)).toBe(false);
  });
});
