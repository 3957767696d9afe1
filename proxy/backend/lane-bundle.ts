import { encodeReadyForQuery } from '../wire/backend.js';
import type { ErrorFields } from '../wire/error-response.js';
import { SYNC } from '../wire/frontend.js';
import { BACKEND, FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import { IDLE } from '../wire/transaction-status.js';
import type { Backend } from './backend.js';
import type { Expectation } from './expectation.js';
import type { LaneRead } from './lane-read.js';
import { isPlain } from './whole-answer.js';

const MOST_READS = 16;
/** Messages of more bytes are not put together: they would no longer be copied to the socket's buffer in one go. */
const MOST_BYTES = 8 * 1024;
/** How long a server is expected to need for all of it, ms: nobody is answered before the last. */
const MOST_MS = 4;
/** An answer that is longer, and does not come in one piece, is not kept. */
const KEPT_BYTES = 128 * 1024;
/** Ends a comment at the end of a line, and a statement. */
const BETWEEN = Buffer.from('\n;\n');

const READY = encodeReadyForQuery('I');

/** One read's part of an answer. */
interface Part {
  readonly from: number;
  readonly to: number;
  /** DataRows in it. */
  readonly rows: number;
  /** Where in it the RowDescription or NoData begins; -1: there is none. */
  readonly described: number;
}

/**
 * Reads of several clients as one Query of several statements, or as one batch with one Sync: for the server one transaction, one packet to read
 * and one to write. Each client is told his part when all of the answer has come, and is in order; otherwise each read is said again by itself.
 */
export class LaneBundle implements Expectation {
  readonly kind: 'query' | 'batch';
  readonly internal = false;
  /** In the order in which they are said. */
  readonly reads: readonly LaneRead[];
  /** How long the server is expected to need for it, ms. */
  readonly expectedMs: number;
  /** Statements that are done. */
  #commands = 0;
  #parts: Part[] = [];
  /** Copies of what has come of an answer that is not here as a whole; null: nobody is to be told of it. */
  #kept: Buffer[] | null = [];
  #bytes = 0;
  readonly #backend: Backend;

  private constructor(backend: Backend, kind: 'query' | 'batch', reads: readonly LaneRead[], expectedMs: number) {
    this.#backend = backend;
    this.kind = kind;
    this.reads = reads;
    this.expectedMs = expectedMs;
  }

  /** The reads from `first` on that may be said together; null: it is said by itself. */
  static from(first: LaneRead, backend: Backend): LaneBundle | null {
    const kind = first.next === null ? null : first.joins(backend);
    if (kind === null) return null;
    const reads = [first];
    let bytes = first.mostBytes;
    let ms = first.expectedMs;
    for (let { next } = first; next !== null && reads.length < MOST_READS; { next } = next) {
      bytes += next.mostBytes + BETWEEN.length;
      ms += next.expectedMs;
      if (bytes > MOST_BYTES || ms > MOST_MS || next.joins(backend) !== kind) break;
      reads.push(next);
    }
    return reads.length === 1 ? null : new LaneBundle(backend, kind, reads, ms);
  }

  send(): void {
    const { kind, reads } = this;
    let most = HEADER_BYTES + SYNC.length;
    for (const read of reads) most += read.mostBytes + BETWEEN.length;
    const message = Buffer.allocUnsafe(most);
    const texts = kind === 'query';
    let at = texts ? HEADER_BYTES : 0;
    for (const read of reads) {
      if (texts && at > HEADER_BYTES) at += BETWEEN.copy(message, at);
      at += read.put(this.#backend, message, at);
      read.bundle = this;
      read.sent = true;
    }
    if (texts) {
      message[0] = FRONTEND.Query;
      message[at++] = 0;
      message.writeInt32BE(at - 1, 1);
    } else at += SYNC.copy(message, at);
    this.#backend.send(message.subarray(0, at), this);
  }

  /** Nothing of its answer has been looked at. */
  get isFresh(): boolean {
    return this.#kept?.length === 0;
  }

  /**
   * Looks whether the whole answer begins at `start`, with nothing in it that is out of the ordinary.
   * @returns where it ends, behind its ReadyForQuery; -1: it is not so
   */
  read(chunk: Buffer, start: number): number {
    const limit = chunk.length;
    const parts: Part[] = [];
    let from = start;
    let rows = 0;
    let described = -1;
    for (let at = start; at + HEADER_BYTES <= limit; ) {
      const type = chunk[at] as number;
      let end = at + 1 + chunk.readInt32BE(at + 1);
      if (end > limit || end <= at + 4) return -1;
      if (type === BACKEND.ReadyForQuery) {
        if (parts.length !== this.reads.length || from !== at || chunk[at + HEADER_BYTES] !== IDLE) return -1;
        this.#parts = parts;
        return end;
      }
      if (!isPlain(type)) return -1;
      if (type === BACKEND.DataRow) rows += 1;
      else if (type === BACKEND.RowDescription || type === BACKEND.NoData) described = at - from;
      else if (type === BACKEND.CommandComplete) {
        // Its portal may be closed behind it.
        while (chunk[end] === BACKEND.CloseComplete) end += HEADER_BYTES;
        parts.push({ from, to: end, rows, described });
        from = end;
        rows = 0;
        described = -1;
      }
      at = end;
    }
    return -1;
  }

  /** Tells each client his part of what was read. @param ms the server's time for one */
  deliver(chunk: Buffer, end: number, ms: number): void {
    const last = this.reads.length - 1;
    for (const [i, { from, to, rows, described }] of this.#parts.entries()) {
      const read = this.reads[i] as LaneRead;
      if (read.dropped) continue;
      // The last has the server's own ReadyForQuery.
      if (i === last) read.whole(chunk.subarray(from, end), rows, described, ms, null);
      else read.whole(chunk.subarray(from, to), rows, described, ms, READY);
    }
  }

  completed(): void {
    this.#commands += 1;
  }

  /** The unnamed statement may be any of them now. */
  failed(): void {
    this.undo();
  }

  undo(): void {
    this.#backend.unnamed = null;
  }

  /** Part of an answer that did not come in one piece. */
  take(slice: Buffer): void {
    this.#bytes += slice.length;
    if (this.#bytes > KEPT_BYTES) this.#kept = null;
    this.#kept?.push(Buffer.from(slice));
  }

  /** Nobody is to be told what comes. */
  refuse(): void {
    this.#kept = null;
  }

  /** The statement that runs has failed. @param byMistake a cancel request was meant for another */
  onError(fields: ErrorFields, frame: Buffer, byMistake: boolean): void {
    this.refuse();
    const read = this.reads[this.#commands];
    if (read === undefined || read.dropped) return;
    read.onError(fields, frame, byMistake);
    if (!byMistake) read.pace.broke();
  }

  /** ReadyForQuery has come, and all before it by `take`. @param ms the server's time for one */
  end(ready: Buffer, ms: number): void {
    const answer = this.#kept === null ? null : Buffer.concat([...this.#kept, ready]);
    const end = answer === null ? -1 : this.read(answer, 0);
    if (answer !== null && end >= 0) {
      this.deliver(answer, end, ms);
      return;
    }
    for (const read of this.reads) if (!read.dropped) read.again('refused');
  }
}
