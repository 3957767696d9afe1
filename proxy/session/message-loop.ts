import { LONG_TEXT_BYTES } from '../router/texts-ahead.js';
import { FRONTEND } from '../wire/message-types.js';
import type { ClientOutput } from './client-output.js';
import type { ClientSession } from './client-session.js';
import type { CopyIn } from './copy-in.js';
import type { Begun, ExtendedProtocol } from './extended.js';
import type { Inbox, Incoming } from './inbox.js';
import { readAhead, unlessAborted } from './long-text.js';
import type { MessageStream } from './message-stream.js';
import type { SimpleProtocol } from './simple.js';
import type { ClientStatements } from './statements.js';
import type { StraightLease } from './straight-lease.js';
import type { Units } from './units.js';

const NO_BYTES = Buffer.alloc(0);

/** Whose messages they are. */
export interface LoopOwner extends ClientSession {
  readonly id: number;
  readonly closed: boolean;
  /** What `wait` was for is over. */
  endWait(): void;
  /** Goes on with the end of the transaction that a flip does not wait for any more. Null: there is nothing to be done now. */
  goOnEnding(): Promise<void> | null;
  /** Tells the client what it listens to, if it is idle. */
  notify(): void;
  /** For statements of a transaction that is under way; null: it has had none yet. */
  readonly straight: StraightLease | null;
  /** The client has been told that the proxy is ready for the next Query or batch. */
  judgeStraight(): void;
  /** It was closed while something was under way, which is done now. */
  leave(): void;
}

/** What of a session its messages have to do with. */
export interface LoopParts {
  readonly owner: LoopOwner;
  readonly inbox: Inbox;
  readonly output: ClientOutput;
  readonly copyIn: CopyIn;
  readonly stream: MessageStream;
  readonly statements: ClientStatements;
  readonly units: Units;
  readonly simple: SimpleProtocol;
  readonly extended: ExtendedProtocol;
}

/**
 * Takes the client's messages in order and hands each Query or batch to its protocol. At most one Query or one Sync is answered
 * at a time; what the client pipelines behind waits in the inbox.
 */
export class MessageLoop {
  /** A ReadyForQuery is owed to the client. */
  awaitingReady = false;
  /** A cancel request is on its way, which is meant for nothing that comes after. */
  canceling = false;

  readonly #owner: LoopOwner;
  readonly #inbox: Inbox;
  readonly #output: ClientOutput;
  readonly #copyIn: CopyIn;
  readonly #stream: MessageStream;
  readonly #statements: ClientStatements;
  readonly #units: Units;
  readonly #simple: SimpleProtocol;
  readonly #extended: ExtendedProtocol;
  #busy = false;

  constructor(parts: LoopParts) {
    this.#owner = parts.owner;
    this.#inbox = parts.inbox;
    this.#output = parts.output;
    this.#copyIn = parts.copyIn;
    this.#stream = parts.stream;
    this.#statements = parts.statements;
    this.#units = parts.units;
    this.#simple = parts.simple;
    this.#extended = parts.extended;
  }

  /** Something asynchronous is under way for the messages before. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Looks at the next messages, as far as they may be looked at now. */
  pump(): void {
    if (this.#owner.lease.transaction?.ending) this.#end();
    while (!this.#busy && !this.#owner.closed) {
      const { next } = this.#inbox;
      if (next === undefined) break; // what has come of an unfinished batch waits for its Sync or Flush
      if (!this.#mayProcess(next.type)) break;
      if (this.#copyIn.active && !this.#copyIn.takes(next.type)) {
        this.#copyIn.intrude(this.#owner.lease.backend, next.type);
        continue;
      }
      if (endsBatch(next.type) && !this.#copyIn.active) {
        if (this.#extended.unsent) {
          const open = this.#extended.sendOpenBatch();
          if (open === null) continue;
          this.follow(open);
          break;
        }
        // Whether it is skipped, or belongs to a COPY, is known when what was asked before is answered.
        const { lease } = this.#owner;
        if (lease.unsynced && lease.backend?.quiet === false) break;
      }
      this.#inbox.shift();
      let work: Promise<void> | null;
      try {
        work = this.#process(next);
      } catch (error) {
        this.#owner.close(error);
        return;
      }
      if (work !== null) this.follow(work);
    }
    this.#inbox.resumeBelowHalf();
  }

  #end(): void {
    if (this.#busy || this.#owner.closed) return;
    const work = this.#owner.goOnEnding();
    if (work !== null) this.follow(work);
  }

  /** Looks at no other message before `work` is done. */
  follow(work: Promise<void>): void {
    this.#busy = true;
    work.then(
      () => this.#resume(),
      (error: unknown) => {
        this.#busy = false;
        if (this.#owner.closed) this.#owner.leave();
        else this.#owner.close(error);
      },
    );
  }

  /** Looks at no other message until `goOn`. */
  hold(): void {
    this.#busy = true;
  }

  goOn(): void {
    this.#busy = false;
  }

  #resume(): void {
    this.#busy = false;
    this.#owner.endWait();
    // The client went away while a connection was being fetched for it.
    if (this.#owner.closed) this.#owner.leave();
    else {
      this.pump();
      this.#owner.notify();
    }
  }

  #mayProcess(type: number): boolean {
    if (this.#copyIn.active || this.#stream.active) return true;
    if (this.awaitingReady || this.canceling || this.#copyIn.undecided(this.#owner.lease.backend)) return false;
    // Somebody does not read: the client its answers, or the server what was sent without a Sync.
    if (this.#output.full && type !== FRONTEND.Terminate) return false;
    const { lease } = this.#owner;
    return !lease.unsynced || lease.backend?.connection.isFull !== true;
  }

  #process(message: Incoming): Promise<void> | null {
    const { type, frame, refused } = message;
    if (this.#stream.active) {
      this.#stream.forward(frame, message.remaining);
      if (this.#stream.full) this.#inbox.pause();
      return null;
    }
    if (message.head) return this.#begin(message);
    if (message.again !== true) this.#owner.activity.message(type);
    this.#inbox.large.process(frame.length);
    if (refused !== undefined) return this.#refuseLarge(type, refused);
    return this.#readAhead(message) ?? this.#carryOut(message);
  }

  /** A large message has begun to come: is its beginning enough to send it on as it comes? */
  #begin({ type, frame, remaining }: Incoming): Promise<void> | null {
    if (this.#extended.skipping) {
      this.#inbox.drop();
      return null;
    }
    if (this.#copyIn.active || remaining === 0) {
      this.#inbox.hold();
      return null;
    }
    const begun: Promise<Begun> =
      type === FRONTEND.Bind
        ? this.#extended.begin(frame, remaining)
        : this.#simple.functionCall(frame).then((backend) => backend ?? 'drop');
    return begun.then((became) => {
      if (became === 'hold') {
        this.#inbox.hold();
        return;
      }
      this.#owner.activity.message(type);
      if (became === 'drop') {
        this.#inbox.drop();
        return;
      }
      this.#stream.begin(became);
      this.#inbox.stream();
    });
  }

  /** Has a long text read in another thread, and then carries the message out. Null: there is no need. */
  #readAhead(message: Incoming): Promise<void> | null {
    if (message.frame.length <= LONG_TEXT_BYTES || this.#copyIn.active || this.#extended.skipping) return null;
    const reading = readAhead(message, this.#statements);
    if (reading === null) return null;
    return unlessAborted(reading, this.#owner.wait.signal).then(
      async () => {
        if (!this.#owner.closed) await this.#carryOut(message);
      },
      async (error: unknown) => {
        if (!this.#owner.closed) await this.#refuse(message.type, error as Error);
      },
    );
  }

  #carryOut(message: Incoming): Promise<void> | null {
    const { type, frame } = message;
    if (this.#copyIn.active && type !== FRONTEND.Terminate) {
      this.#copyIn.forward(this.#owner.lease.backend, type, frame, message.remaining);
      if (this.#copyIn.full) this.#inbox.pause();
      return null;
    }
    switch (type) {
      case FRONTEND.Query:
        return this.#extended.skipping ? null : this.#simple.query(frame);
      case FRONTEND.FunctionCall:
        return this.#extended.skipping ? null : this.#simple.functionCall(frame).then(() => undefined);
      case FRONTEND.CopyData:
      case FRONTEND.CopyDone:
      case FRONTEND.CopyFail:
        return null; // ignored outside of COPY, as PostgreSQL does: an error may have ended it early
      case FRONTEND.Terminate:
        this.#owner.close();
        return null;
      default:
        return this.#extended.receive(type, frame);
    }
  }

  /** A message too large to be held has been read and dropped: the client learns it in its turn. */
  #refuseLarge(type: number, size: number): Promise<void> | null {
    if (this.#extended.skipping) return null;
    return this.#refuse(type, this.#inbox.large.refusal(size));
  }

  /** The client gets an error in place of what its message asks for. */
  #refuse(type: number, error: Error): Promise<void> | null {
    if (type === FRONTEND.Query || type === FRONTEND.FunctionCall) return this.#units.fail(error);
    return this.#extended.receive(type, NO_BYTES, error);
  }
}

/** Whether messages of a batch must have reached the server before this one is looked at. */
function endsBatch(type: number): boolean {
  switch (type) {
    case FRONTEND.Query:
    case FRONTEND.FunctionCall:
    case FRONTEND.CopyData:
    case FRONTEND.CopyDone:
    case FRONTEND.CopyFail:
      return true;
    default:
      return false;
  }
}
