import { BACKEND, FRONTEND, HEADER_BYTES, LARGE_MESSAGE_BYTES, SMALL_MESSAGE_BYTES } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/**
 * Receives what a FrameScanner finds, in order, synchronously from within `push`. Buffers are slices of the pushed chunk
 * where the message lay in one chunk: keep them only if you mean to keep the chunk.
 */
export interface FrameHandler {
  /** A whole message, header included. */
  onMessage(type: number, message: Buffer): void;
  /**
   * A piece of a message of a streamed type, in order. The first piece starts with the header; `remaining` is the number
   * of bytes of this message still to come, 0 with the last piece.
   */
  onPartial(type: number, chunk: Buffer, remaining: number): void;
  /**
   * Consecutive whole messages of one streamed type, as one slice. A handler without it gets each of them from
   * `onPartial` with `remaining` 0.
   */
  onRun?(slice: Buffer, messages: number, type: number): void;
  /**
   * Asked before a message of more than `askAbove` bytes is assembled. `wait`: nothing more is looked at until `resume`, which
   * asks again. `refuse`: the message is read and dropped, and `onRefused` told at its end.
   */
  admit?(type: number, size: number): 'take' | 'wait' | 'refuse';
  onRefused?(type: number, size: number): void;
}

/** What a stream may hold. Index: type byte. */
export interface FrameRules {
  /** Largest value of the length word; 0 for a type that must not come. */
  readonly maxLength: Int32Array;
  /** 1: forwarded in slices, never assembled. */
  readonly streamed: Uint8Array;
  /** For messages: whose mistake it is. */
  readonly peer: 'frontend' | 'backend';
}

export interface FrameLimits {
  /** Largest message, its length word included. Default and maximum: LARGE_MESSAGE_BYTES, as in PostgreSQL. */
  readonly maxMessageBytes?: number;
}

function rules(
  peer: FrameRules['peer'],
  limits: FrameLimits,
  types: readonly number[],
  small: readonly number[],
  streamed: readonly number[],
): FrameRules {
  const largest = Math.min(limits.maxMessageBytes ?? LARGE_MESSAGE_BYTES, LARGE_MESSAGE_BYTES);
  const maxLength = new Int32Array(256);
  const stream = new Uint8Array(256);
  for (const type of types) maxLength[type] = largest;
  for (const type of small) maxLength[type] = Math.min(SMALL_MESSAGE_BYTES, largest);
  for (const type of streamed) stream[type] = 1;
  return { peer, maxLength, streamed: stream };
}

/** What a client may send after authentication, with the limits of SocketBackend in PostgreSQL's postgres.c. CopyData is streamed. */
export function clientFrames(limits: FrameLimits = {}): FrameRules {
  const types = Object.values(FRONTEND).filter((type) => type !== FRONTEND.Password);
  const { Query, Parse, Bind, FunctionCall, CopyData } = FRONTEND;
  const large: readonly number[] = [Query, Parse, Bind, FunctionCall, CopyData];
  return rules(
    'frontend',
    limits,
    types,
    types.filter((type) => !large.includes(type)),
    [CopyData],
  );
}

/** What a server may send. DataRow and CopyData are streamed. */
export function serverFrames(limits: FrameLimits = {}): FrameRules {
  return rules('backend', limits, Object.values(BACKEND), [], [BACKEND.DataRow, BACKEND.CopyData]);
}

const EMPTY = Buffer.alloc(0);

/** An assembled message starts in a buffer of at most this size and doubles: a length alone must not reserve 1 GiB. */
const FIRST_ASSEMBLY_BYTES = 64 * 1024;

/**
 * Cuts a byte stream into messages. Copies nothing that lies whole in one chunk; a message of a streamed type is passed on
 * piece by piece; other messages that span chunks are assembled, each byte copied at most twice on the way.
 *
 * After `push` has thrown, the stream has lost its frame and the scanner must not be used again.
 */
export class FrameScanner {
  readonly #handler: FrameHandler;
  readonly #rules: FrameRules;
  /** Bytes of a header that has not fully arrived; nothing before the first of them. */
  #header: Buffer = EMPTY;
  #headerBytes = 0;
  /** A streamed message in progress: its type, and bytes to come. */
  #streamType = 0;
  #streamRemaining = 0;
  /** A message being assembled; `#assemblyTotal` is 0 when there is none. */
  #assembly: Buffer = EMPTY;
  #assemblyBytes = 0;
  #assemblyTotal = 0;
  /** Bytes of a refused message to come, and what it was. */
  #refusedRemaining = 0;
  #refusedType = 0;
  #refusedSize = 0;
  /** Not looked at: it begins with a message that has to wait; null when none does. */
  #held: Buffer | null = null;
  readonly #askAbove: number;

  /** @param askAbove messages larger than this are asked about by `admit`. Default: none */
  constructor(handler: FrameHandler, frameRules: FrameRules, askAbove: number = Number.POSITIVE_INFINITY) {
    this.#handler = handler;
    this.#rules = frameRules;
    this.#askAbove = askAbove;
  }

  /** A message waits to be admitted: nothing should be read until then. */
  get isWaiting(): boolean {
    return this.#held !== null;
  }

  /** What has come since a message has to wait: its beginning, or more. Null: none has to. */
  get held(): Buffer | null {
    return this.#held;
  }

  /** Lets the message that had to wait go on in pieces: its bytes in `held` have been taken, the rest comes by `onPartial`. */
  stream(): void {
    const held = this.#held;
    if (held === null) return;
    this.#held = null;
    const size = this.#sizeOf(held, 0);
    this.#streamType = held[0] as number;
    this.#streamRemaining = Math.max(0, size - held.length);
    if (held.length > size) this.push(held.subarray(size));
  }

  /** Asks again for the message that had to wait, and goes on with what has come behind it. */
  resume(): void {
    const held = this.#held;
    this.#held = null;
    if (held !== null) this.push(held);
  }

  /** Whether the bytes so far end at a message boundary. */
  get atBoundary(): boolean {
    return (
      this.#headerBytes === 0 &&
      this.#streamRemaining === 0 &&
      this.#assemblyTotal === 0 &&
      this.#refusedRemaining === 0 &&
      this.#held === null
    );
  }

  push(chunk: Buffer): void {
    if (this.#held !== null) {
      this.#held = Buffer.concat([this.#held, chunk]);
      return;
    }
    let at = 0;
    const end = chunk.length;
    while (at < end) {
      if (this.#refusedRemaining > 0) at = this.#continueRefused(chunk, at);
      else if (this.#streamRemaining > 0) at = this.#continueStream(chunk, at);
      else if (this.#assemblyTotal > 0) at = this.#continueAssembly(chunk, at);
      else if (this.#headerBytes > 0 || end - at < HEADER_BYTES) at = this.#continueHeader(chunk, at);
      else at = this.#scan(chunk, at);
    }
  }

  /** A message starts at `at` and its header is whole. Returns where to go on. */
  #scan(chunk: Buffer, at: number): number {
    const type = chunk[at] as number;
    const size = this.#sizeOf(chunk, at);
    const end = at + size;
    if (this.#rules.streamed[type] === 1) return this.#scanStreamed(chunk, at, type, size);
    if (end <= chunk.length) {
      this.#handler.onMessage(type, chunk.subarray(at, end));
      return end;
    }
    switch (this.#admit(type, size)) {
      case 'wait':
        this.#held = chunk.subarray(at);
        return chunk.length;
      case 'refuse':
        this.#startRefused(type, size);
        return this.#continueRefused(chunk, at);
      default:
        this.#startAssembly(size);
        return this.#continueAssembly(chunk, at);
    }
  }

  #admit(type: number, size: number): 'take' | 'wait' | 'refuse' {
    return size > this.#askAbove ? (this.#handler.admit?.(type, size) ?? 'take') : 'take';
  }

  #startRefused(type: number, size: number): void {
    this.#refusedType = type;
    this.#refusedSize = size;
    this.#refusedRemaining = size;
  }

  #continueRefused(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + this.#refusedRemaining);
    this.#refusedRemaining -= end - at;
    if (this.#refusedRemaining === 0) this.#handler.onRefused?.(this.#refusedType, this.#refusedSize);
    return end;
  }

  #scanStreamed(chunk: Buffer, start: number, type: number, firstSize: number): number {
    const limit = chunk.length;
    let messages = 0;
    let at = start;
    let size = firstSize;
    // Walk over the headers of messages of this type that lie whole in the chunk.
    while (at + size <= limit) {
      at += size;
      messages++;
      if (at + HEADER_BYTES > limit || chunk[at] !== type) break;
      size = this.#sizeOf(chunk, at);
    }
    if (messages > 0) {
      if (this.#handler.onRun !== undefined) this.#handler.onRun(chunk.subarray(start, at), messages, type);
      else this.#eachAsPartial(chunk, start, at, type);
      return at;
    }
    this.#streamType = type;
    this.#streamRemaining = size;
    return this.#continueStream(chunk, at);
  }

  #eachAsPartial(chunk: Buffer, start: number, end: number, type: number): void {
    for (let at = start; at < end; ) {
      const next = at + 1 + chunk.readInt32BE(at + 1);
      this.#handler.onPartial(type, chunk.subarray(at, next), 0);
      at = next;
    }
  }

  #continueStream(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + this.#streamRemaining);
    this.#streamRemaining -= end - at;
    this.#handler.onPartial(this.#streamType, chunk.subarray(at, end), this.#streamRemaining);
    return end;
  }

  #continueHeader(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + HEADER_BYTES - this.#headerBytes);
    if (this.#header === EMPTY) this.#header = Buffer.alloc(HEADER_BYTES);
    chunk.copy(this.#header, this.#headerBytes, at, end);
    this.#headerBytes += end - at;
    // A wrong type is refused at once: waiting for the length of garbage could take for ever.
    this.#checkType(this.#header[0] as number);
    if (this.#headerBytes < HEADER_BYTES) return end;
    this.#headerBytes = 0;
    const type = this.#header[0] as number;
    const size = this.#sizeOf(this.#header, 0);
    if (this.#rules.streamed[type] === 1) {
      this.#streamType = type;
      this.#streamRemaining = size;
      this.#continueStream(Buffer.from(this.#header), 0);
      return end;
    }
    switch (this.#admit(type, size)) {
      case 'wait':
        this.#held = Buffer.concat([this.#header, chunk.subarray(end)]);
        return chunk.length;
      case 'refuse':
        this.#startRefused(type, size);
        this.#continueRefused(this.#header, 0);
        return end;
      default:
        this.#startAssembly(size);
        this.#continueAssembly(this.#header, 0);
        return end;
    }
  }

  #startAssembly(size: number): void {
    // What somebody has admitted has its place already, and need not be copied as it grows.
    const first = size > this.#askAbove ? size : Math.min(size, FIRST_ASSEMBLY_BYTES);
    this.#assembly = Buffer.allocUnsafe(first);
    this.#assemblyBytes = 0;
    this.#assemblyTotal = size;
  }

  #continueAssembly(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + this.#assemblyTotal - this.#assemblyBytes);
    const filled = this.#assemblyBytes + end - at;
    if (filled > this.#assembly.length) {
      const larger = Buffer.allocUnsafe(Math.min(this.#assemblyTotal, Math.max(filled, this.#assembly.length * 2)));
      this.#assembly.copy(larger, 0, 0, this.#assemblyBytes);
      this.#assembly = larger;
    }
    chunk.copy(this.#assembly, this.#assemblyBytes, at, end);
    this.#assemblyBytes = filled;
    if (filled === this.#assemblyTotal) {
      const message = this.#assembly;
      this.#assembly = EMPTY;
      this.#assemblyTotal = 0;
      this.#handler.onMessage(message[0] as number, message);
    }
    return end;
  }

  #checkType(type: number): void {
    if (this.#rules.maxLength[type] === 0) throw new ProtocolError(`invalid ${this.#rules.peer} message type ${type}`);
  }

  /** Size of the message whose header is at `at`, header included. */
  #sizeOf(buffer: Buffer, at: number): number {
    const type = buffer[at] as number;
    this.#checkType(type);
    const length = buffer.readInt32BE(at + 1);
    if (length < 4 || length > (this.#rules.maxLength[type] as number))
      throw new ProtocolError('invalid message length');
    return length + 1;
  }
}
