import { poison } from './read-memory.js';

/** Room for the answer to a short statement. */
const SMALL_BYTES = 8 * 1024;
/** Room for all that is read in one go. */
const LARGE_BYTES = 64 * 1024;
/** Memory in unused ones that is kept, of either size. */
const UNUSED_BYTES = 4 * 1024 * 1024;

const unused = {
  small: [] as Buffer[],
  large: [] as Buffer[],
};

/** Memory for what is to be written to a socket: `bytes` and what may follow. It may hold less than that. */
export function takeSendBuffer(bytes: number): Buffer {
  return bytes * 2 <= SMALL_BYTES
    ? (unused.small.pop() ?? Buffer.allocUnsafeSlow(SMALL_BYTES))
    : (unused.large.pop() ?? Buffer.allocUnsafeSlow(LARGE_BYTES));
}

/** The kernel has taken what was in it. */
export function giveBackSendBuffer(buffer: Buffer): void {
  poison(buffer);
  const list = buffer.length === SMALL_BYTES ? unused.small : unused.large;
  if (list.length * buffer.length < UNUSED_BYTES) list.push(buffer);
}
