import { namesOf } from '../session/name-lookup.js';
import { decodeErrorFields, isFatal } from '../wire/error-response.js';
import { BACKEND } from '../wire/message-types.js';
import { IDLE } from '../wire/transaction-status.js';
import type { Backend } from './backend.js';
import type { BackendOwner, Expectation } from './expectation.js';
import { LaneBundle } from './lane-bundle.js';
import type { LaneRead } from './lane-read.js';
import { WholeAnswer } from './whole-answer.js';

/** What a lane tells those it belongs to. */
export interface LaneOwner {
  /** A read is late when the server has had it in hand for so long. */
  readonly lateMs: number;
  /** Connections at work. */
  readonly busy: number;
  /** Whether several reads may be said in one. */
  readonly joins: boolean;
  /** Reads were said in one. */
  joined(reads: number): void;
  /** One has something to do, after it had nothing. */
  begins(): void;
  /** A read is answered. @param waitedMs until the server could begin with it */
  served(lane: Lane, waitedMs: number): void;
  /** Its server takes too long. */
  late(lane: Lane): void;
  /** It takes no more reads. */
  retires(lane: Lane): void;
  /** Nothing is left in it, and nothing more comes. */
  drained(lane: Lane): void;
  lost(lane: Lane, error: Error): void;
  rescued(reads: number): void;
}

export type RetireReason = 'late' | 'slow reader' | 'canceled' | 'parameters' | 'given back';

/** And for so many times what it was expected to take. */
const LATE_TIMES = 8;
/** The answer that is looked at; nothing of it is kept. */
const answer = new WholeAnswer();

/** A server connection on which reads of several clients stand in line. Those that come in one turn of the event loop, behind others, are said in one. */
export class Lane implements BackendOwner {
  readonly rowsAtStake = true;
  readonly backend: Backend;
  /** What names mean there: `namesOf` its parameters, which do not change while it takes reads. */
  readonly names: string;
  /** Reads in it, those that nobody waits for included. */
  depth = 0;
  /** How long the server is expected to need for them, ms. */
  workMs = 0;
  /** Since when it has had nothing to do, on performance.now()'s clock. */
  idleSince = 0;
  /** Reads answered. */
  served = 0;
  readonly #owner: LaneOwner;
  #head: LaneRead | null = null;
  #tail: LaneRead | null = null;
  /** What has come in this turn, and is to be sent at its end, from this one on. */
  #unsent: LaneRead | null = null;
  #retired: RetireReason | null = null;
  #paused = false;
  #late = false;
  /** The read of which its template has been told that it is late. */
  #blamed: LaneRead | null = null;
  /** What the server seemed to take too long for. */
  #suspect: LaneRead | null = null;
  /** A cancel request was sent: what comes next may be hit by it. */
  #canceled = false;
  #gone = false;

  /** `backend` has the settings of those who will read, and is nobody's. */
  constructor(backend: Backend, owner: LaneOwner, now: number) {
    this.backend = backend;
    this.names = namesOf(backend.connection.parameters);
    this.#owner = owner;
    this.idleSince = now;
    backend.attach(this);
    backend.pipelined = true;
  }

  get isEmpty(): boolean {
    return this.#head === null;
  }

  /** Why it takes no more reads; null: it does. */
  get retired(): RetireReason | null {
    return this.#retired;
  }

  get takes(): boolean {
    return this.#retired === null && this.backend.lost === null && !this.backend.connection.isClosed;
  }

  get lateMs(): number {
    return this.#owner.lateMs;
  }

  /** Whether it is the one, and the only one, with which the server can have begun. */
  isHead(read: LaneRead): boolean {
    return this.#head === read && read.bundle === null;
  }

  join(read: LaneRead, now: number): void {
    read.joined(this, now);
    this.depth += 1;
    this.workMs += read.expectedMs;
    const alone = this.#head === null;
    if (this.#tail === null) this.#head = read;
    else this.#tail.next = read;
    this.#tail = read;
    if (alone) {
      read.headAt = now;
      this.backend.clock.since = now;
      this.#owner.begins();
    }
    if (alone) {
      this.#send(read);
      // Whoever comes while it is answered is gathered; nobody waits for others to come.
      this.backend.connection.flush();
    } else if (!this.#owner.joins) this.#send(read);
    else if (this.#unsent === null) {
      this.#unsent = read;
      setImmediate(this.#sendUnsent);
    }
  }

  #send(read: LaneRead): void {
    read.sent = true;
    read.send(this.backend);
  }

  readonly #sendUnsent = (): void => {
    const first = this.#unsent;
    if (first === null) return;
    this.#unsent = null;
    let all = true;
    for (let read: LaneRead | null = first; read !== null; read = read.next) {
      if (!read.dropped && !read.fits(this.backend)) {
        read.dropped = true;
        read.again('refused');
      }
      if (read.dropped) all = false;
    }
    if (!all) this.#leaveOut();
    let read = this.#head;
    while (read?.sent === true) read = read.next;
    while (read !== null) {
      const bundle = LaneBundle.from(read, this.backend);
      if (bundle === null) {
        this.#send(read);
        read = read.next;
        continue;
      }
      bundle.send();
      this.#owner.joined(bundle.reads.length);
      read = (bundle.reads.at(-1) as LaneRead).next;
    }
    this.backend.connection.flush();
    if (this.#head === null) this.settle();
  };

  /** Nobody waits for some that were not sent. */
  #leaveOut(): void {
    let last: LaneRead | null = null;
    for (let read = this.#head; read !== null; read = read.next) {
      if (read.sent || !read.dropped) {
        if (last === null) this.#head = read;
        else last.next = read;
        last = read;
        continue;
      }
      this.depth -= 1;
      this.workMs -= read.expectedMs;
    }
    if (last === null) this.#head = null;
    else last.next = null;
    this.#tail = last;
  }

  /** Takes no more reads; is given back when those in it are answered. */
  retire(why: RetireReason): void {
    if (this.#retired !== null) return;
    this.#retired = why;
    this.#owner.retires(this);
    if (this.#head === null) this.settle();
  }

  /** The client of the read does not read what it is told: nobody else is to wait for that. */
  clogged(read: LaneRead): void {
    if (!this.isHead(read)) return;
    this.#paused = true;
    this.backend.connection.pause();
    this.retire('slow reader');
    this.#rescueBehind();
  }

  /** It has read, or has gone. */
  resume(read: LaneRead): void {
    if (this.#head === read) this.#resume();
  }

  /** The client wants its read canceled, and the server has it in hand: whoever calls sends the request. Nobody else is to be hit. */
  cancelHead(): void {
    this.#canceled = true;
    this.retire('canceled');
    this.#rescueBehind();
  }

  /** Nobody waits for the read any more; what it answers is thrown away. */
  drop(read: LaneRead): void {
    read.dropped = true;
    if (this.#head === read) this.#resume();
  }

  /**
   * Looks whether the server seems to take too long. `now` as performance.now(). @returns whether `late` should follow, when all that had arrived by
   * now has been looked at
   */
  look(now: number): boolean {
    const head = this.#head;
    this.#suspect = null;
    if (head === null) {
      if (this.#retired !== null) this.settle();
      return false;
    }
    if (now - head.headAt < this.#lateAfter(head)) return false;
    this.#suspect = head;
    return true;
  }

  #lateAfter({ bundle, expectedMs }: LaneRead): number {
    return Math.max(this.#owner.lateMs, LATE_TIMES * (bundle ?? { expectedMs }).expectedMs);
  }

  /** The server does take too long if it has not answered what it seemed to take too long for. */
  late(now: number): void {
    const head = this.#head;
    if (head === null || head !== this.#suspect) return;
    const ms = now - head.headAt;
    // A client's next read is the same object.
    if (ms < this.#lateAfter(head)) return;
    if (!this.#late) {
      this.#late = true;
      this.#owner.late(this);
      this.retire('late');
      // The client may be one that shows rows as they come.
      if (head.bundle === null) head.show();
    }
    if (head.bundle !== null) this.#rescueFrom(head);
    else {
      if (this.#blamed !== head && head.pace.late(ms, this.#owner.busy, this.#owner.lateMs)) this.#blamed = head;
      this.#rescueBehind();
    }
    if (head.dropped && !this.#canceled) this.#cancelForNobody();
  }

  /** Given back when the server has answered everything, a cancel request included. */
  settle(): void {
    if (this.#gone || this.#head !== null || this.#retired === null) return;
    const { backend } = this;
    // A request on its way would hit whoever comes next.
    if ((backend.canceling || !backend.quiet) && backend.lost === null) return;
    this.#gone = true;
    backend.pipelined = false;
    this.#owner.drained(this);
  }

  /** Whole answers are cut out by their headers and go on as they are, each in one piece. */
  onChunk(chunk: Buffer): number {
    const { backend } = this;
    let now = 0;
    let start = 0;
    while (start < chunk.length) {
      const read = this.#head;
      if (read === null) return start;
      const { bundle } = read;
      let end: number;
      if (bundle !== null) {
        if (!bundle.isFresh || !backend.expects(bundle)) return start;
        end = bundle.read(chunk, start);
        if (end < 0) return start;
        if (now === 0) now = performance.now();
        backend.wholeAnswer();
        bundle.deliver(chunk, end, this.#bundleEnded(bundle, now));
      } else {
        if (!answer.read(chunk, start) || !read.isFresh || !backend.expects(read) || answer.status !== IDLE)
          return start;
        const { rows, described } = answer;
        end = answer.end;
        if (now === 0) now = performance.now();
        backend.wholeAnswer();
        read.whole(chunk.subarray(start, end), rows, described, this.#ended(read, now), null);
      }
      if (this.#head === null) this.settle();
      if (backend.connection.isClosed) return chunk.length;
      start = end;
    }
    return start;
  }

  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void {
    if (type === BACKEND.ErrorResponse) this.#onError(frame);
    else if (type === BACKEND.ParameterStatus) {
      // A safe read changes none: somebody has reloaded the server's configuration.
      this.retire('parameters');
    } else if (type === BACKEND.NotificationResponse) backend.connection.destroy();
    else {
      const bundle = this.#head?.bundle ?? null;
      // Whose notice it is would have to be told from where it stands.
      if (bundle !== null && type === BACKEND.NoticeResponse) bundle.refuse();
      else if (expectation !== null || type === BACKEND.NoticeResponse) (bundle ?? this.#head)?.take(frame);
    }
  }

  onData(_backend: Backend, slice: Buffer): void {
    (this.#head?.bundle ?? this.#head)?.take(slice);
  }

  onRead(): void {
    this.#head?.keep();
  }

  onCopyIn(backend: Backend): void {
    backend.connection.destroy();
  }

  onReady(_backend: Backend, status: number, internal: boolean, frame: Buffer): void {
    const read = this.#head;
    if (internal || read === null) return;
    const { bundle } = read;
    const now = performance.now();
    const ms = bundle === null ? this.#ended(read, now) : this.#bundleEnded(bundle, now);
    // Nothing else can come of a read; nobody else is to have such a connection.
    if (status !== IDLE) this.retire('parameters');
    if (bundle !== null) bundle.end(frame, ms);
    else {
      read.pace.served(ms, read.size, this.#owner.lateMs);
      if (!read.dropped) read.end(frame, ms);
    }
    if (this.#head === null) this.settle();
  }

  /** The server is done with all of its reads. @returns how long it took for each */
  #bundleEnded({ reads }: LaneBundle, now: number): number {
    const since = (reads[0] as LaneRead).headAt;
    const ms = (now - since) / reads.length;
    for (const [i, read] of reads.entries()) {
      read.headAt = since + i * ms;
      this.#ended(read, since + (i + 1) * ms);
    }
    if (this.#head !== null) this.#head.headAt = now;
    return ms;
  }

  /** The server is done with the head. @returns how long it took */
  #ended(read: LaneRead, now: number): number {
    const { next } = read;
    read.next = null;
    this.#head = next;
    this.depth -= 1;
    if (next === null) {
      this.#tail = null;
      this.workMs = 0;
      this.idleSince = now;
    } else {
      next.headAt = now;
      this.workMs -= read.expectedMs;
    }
    this.#resume();
    this.served += 1;
    const ms = now - read.headAt;
    this.backend.clock.read(ms);
    this.#owner.served(this, read.headAt - read.submittedAt);
    return ms;
  }

  onLost(_backend: Backend, error: Error): void {
    this.#retired ??= 'given back';
    this.#gone = true;
    const first = this.#head;
    this.#head = null;
    this.#tail = null;
    this.#unsent = null;
    this.#owner.lost(this, error);
    this.depth = 0;
    let reads = 0;
    for (let read = first; read !== null; read = read.next) {
      if (read.dropped) continue;
      read.dropped = true;
      if (read.told) read.cutShort(error);
      else {
        reads += 1;
        read.again('lost');
      }
    }
    if (reads > 0) this.#owner.rescued(reads);
  }

  onWritable(): void {}

  #onError(frame: Buffer): void {
    const read = this.#head;
    if (read === null || (read.dropped && read.bundle === null)) return;
    const fields = decodeErrorFields(frame);
    // The loss of the connection follows.
    if (isFatal(fields)) return;
    (read.bundle ?? read).onError(fields, frame, this.#canceled && !read.canceled);
  }

  /** What stands behind the head has had no byte of an answer: it is read elsewhere. */
  #rescueBehind(): void {
    this.#rescueFrom(this.#head?.next ?? null);
  }

  #rescueFrom(first: LaneRead | null): void {
    const suspected = this.#head?.bundle ?? null;
    let reads = 0;
    for (let read = first; read !== null; read = read.next) {
      if (read.dropped) continue;
      read.dropped = true;
      reads += 1;
      // Which of those that were said in one is late is found out by each being said by itself.
      read.again(suspected !== null && read.bundle === suspected ? 'refused' : 'late');
    }
    if (reads > 0) this.#owner.rescued(reads);
  }

  #resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.backend.connection.resume();
  }

  #cancelForNobody(): void {
    this.#canceled = true;
    // When it cannot be sent, the statement ends by itself.
    this.backend.cancel().catch(() => undefined);
  }
}
