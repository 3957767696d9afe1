import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { Incoming } from '../wire/incoming.js';

/** A client's socket, and how to take what is read from it. */
export interface ClientSocket {
  /** Paused, and nothing of it has been read. */
  readonly socket: Socket;
  /** Null: from its stream alone. */
  readonly incoming: Incoming | null;
}

/** What a socket of Node reads from and writes to. Not public; of this name in all versions so far. */
interface WithHandle {
  _handle: object | null;
}

/** How Node's own servers, and its child processes, make a socket of a handle. Not public either. */
interface OfHandle extends SocketConstructorOpts {
  readonly handle: object;
  readonly pauseOnCreate: true;
  readonly onread: OnReadOpts;
}

/** A trial that takes longer has failed; it needs a few milliseconds on a machine that has nothing else to do. */
const TRIAL_MS = 5000;

/**
 * Has an accepted socket, paused and not read yet, read into READ_MEMORY. Node would allocate 64 KiB for each read, and take it through a stream. `connect` has an
 * option against that (`onread`), but the sockets of a server, and those from another process, are made by Node itself, without. So another one is made of
 * the same handle. The one that was accepted stays for those who count it, without its handle; when one of them closes, the other does.
 *
 * That a handle can be moved is not public: see `canReadIntoMemory`.
 */
export function readIntoMemory(accepted: Socket): ClientSocket {
  const from: Socket & Partial<WithHandle> = accepted;
  const handle = from._handle;
  // Closed by now, or not as Node makes them.
  if (handle === null || handle === undefined || !('useUserBuffer' in handle))
    return { socket: accepted, incoming: null };
  const incoming = new Incoming();
  const options: OfHandle = { handle, pauseOnCreate: true, onread: incoming.onread };
  const socket = new Socket(options);
  from._handle = null;
  incoming.socket = socket;
  socket.once('close', () => accepted.destroy());
  accepted.once('close', () => socket.destroy());
  return { socket, incoming };
}

/**
 * Whether this version of Node is one with which `readIntoMemory` does what it should, by trying it on a connection to ourselves. Never rejects.
 * @param make for tests, as `trialMs`
 */
export async function canReadIntoMemory(
  make: typeof readIntoMemory = readIntoMemory,
  trialMs: number = TRIAL_MS,
): Promise<boolean> {
  const server = createServer({ pauseOnConnect: true });
  const sockets: Socket[] = [];
  let timer: NodeJS.Timeout | undefined;
  try {
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(resolve, trialMs, false);
    });
    return await Promise.race([tried(), late]);
  } catch {
    // Whatever is thrown, it is not as it should be.
    return false;
  } finally {
    clearTimeout(timer);
    for (const socket of sockets) socket.destroy();
    server.close();
  }

  async function tried(): Promise<boolean> {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const peer = connect((server.address() as AddressInfo).port, '127.0.0.1');
    sockets.push(peer);
    // Its end is looked at from the other side.
    peer.on('error', () => undefined);
    const [accepted] = (await once(server, 'connection')) as [Socket];
    sockets.push(accepted);
    const { socket, incoming } = make(accepted);
    sockets.push(socket);
    if (incoming === null) return false;
    const closed = Promise.all([once(socket, 'close'), once(accepted, 'close')]);
    closed.catch(() => undefined); // awaited at the end

    // As a login reads: from the stream.
    peer.write('1');
    await once(socket, 'readable');
    if (String(socket.read()) !== '1') return false;
    socket.removeAllListeners('readable');

    // As a session does, with pauses.
    let heard = '';
    let told = (): void => undefined;
    incoming.takeBy((chunk) => {
      heard += chunk;
      told();
    });
    const hears = (bytes: string) =>
      new Promise<void>((resolve) => {
        told = () => {
          if (heard === bytes) resolve();
        };
        told();
      });
    socket.resume();
    peer.write('2');
    await hears('2');
    socket.pause();
    peer.write('3');
    // A way there and back later.
    socket.write('4');
    const [answer] = (await once(peer, 'data')) as [Buffer];
    if (String(answer) !== '4' || heard !== '2') return false;
    socket.resume();
    await hears('23');

    peer.end();
    await closed;
    return socket.bytesRead === 3;
  }
}
