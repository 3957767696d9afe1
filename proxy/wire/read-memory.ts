/** What is read from a server in one go at most. */
const READ_BYTES = 64 * 1024;

/**
 * What all server connections of this process are read into, one at a time: Node would otherwise allocate 64 KiB for each read, and collect it again.
 *
 * Its content is good until the handler that is given a slice of it returns; then the next read may overwrite it. Whoever keeps a slice for longer
 * takes `kept` of it.
 */
export const READ_MEMORY = Buffer.allocUnsafeSlow(READ_BYTES);

const MEMORY = READ_MEMORY.buffer;

/** Whether the bytes are overwritten by the next read. */
export function isBorrowed(bytes: Buffer): boolean {
  return bytes.buffer === MEMORY;
}

/** The same bytes, to be had for as long as one likes. */
export function kept(bytes: Buffer): Buffer {
  return bytes.buffer === MEMORY ? Buffer.from(bytes) : bytes;
}

/** Tests have memory that is given back overwritten at once, so that whoever still looks at it sees nonsense. */
const POISONED = process.env.FORESHARD_POISON_MEMORY === '1';

/** Nobody may look at these bytes any more. */
export function poison(bytes: Buffer): void {
  if (POISONED) bytes.fill(0xee);
}
