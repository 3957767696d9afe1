import type { Socket } from 'node:net';
import { clientFrames, type FrameHandler, FrameScanner } from '../wire/frame-scanner.js';
import { SYNC } from '../wire/frontend.js';
import { FRONTEND } from '../wire/message-types.js';
import { LargeMessages } from './large-messages.js';
import { LARGE_MESSAGE_BYTES, type MessageBudget } from './message-budget.js';

/** Client messages not yet looked at beyond this many bytes: the client's socket is not read. */
const INBOX_BYTES = 1024 * 1024;

/** What a message costs besides its bytes: a million of the smallest must not take more than a few large ones. */
const INCOMING_BYTES = 256;
const NO_BYTES = Buffer.alloc(0);
const FRAMES = clientFrames();

/** What of a large message is looked at before it is decided what becomes of it. */
const HEAD_BYTES = 32 * 1024;

export interface Incoming {
  readonly type: number;
  /** A whole message, or a piece of one that is streamed. */
  readonly frame: Buffer;
  /** Bytes of it that follow in other pieces. */
  readonly remaining: number;
  /** The beginning of a large message; nothing comes behind it before it has been told what becomes of it. */
  readonly head?: true;
  /** It has been looked at before. */
  readonly again?: true;
  /** It was too large to be held, and is no more: its size. */
  readonly refused?: number;
}

/** A Sync that was read before it was known that it would be answered. */
const SYNC_AGAIN: Incoming = { type: FRONTEND.Sync, frame: SYNC, remaining: 0 };

/** Whose inbox it is. */
export interface InboxOwner {
  /** Whether the socket may be read, as far as the owner is concerned. */
  mayRead(): boolean;
  /** Messages may have come. */
  arrived(): void;
  /** What the client sends has lost its frame. */
  failed(error: unknown): void;
}

/** What a client has sent and nobody has looked at yet, in order. Keeps the socket from being read while that is too much. */
export class Inbox implements FrameHandler {
  /** What the client has of the budget for large messages. */
  readonly large: LargeMessages;
  readonly #socket: Socket;
  readonly #owner: InboxOwner;
  readonly #scanner: FrameScanner;
  readonly #messages: Incoming[] = [];
  #bytes = 0;
  #closed = false;
  /** Size of a large message whose beginning is yet to come; 0: there is none. */
  #beginning = 0;
  /** The large message that the scanner asks about is to be held; is dropped. */
  #hold = false;
  #drop = false;

  constructor(socket: Socket, budget: MessageBudget, owner: InboxOwner) {
    this.#socket = socket;
    this.#owner = owner;
    this.large = new LargeMessages(budget, this);
    this.#scanner = new FrameScanner(this, FRAMES, LARGE_MESSAGE_BYTES);
  }

  /** The message to be looked at next. */
  get next(): Incoming | undefined {
    return this.#messages[0];
  }

  /** Nothing is there, not even of a message that has yet to come in whole. */
  get isEmpty(): boolean {
    return this.#messages.length === 0 && this.#scanner.atBoundary;
  }

  /** A large message has begun to come, and waits for room. */
  get isWaiting(): boolean {
    return this.#scanner.isWaiting;
  }

  has(type: number): boolean {
    return this.#messages.some((message) => message.type === type);
  }

  /** Takes bytes from the socket. */
  read(chunk: Buffer): void {
    try {
      this.#scanner.push(chunk);
    } catch (error) {
      this.#owner.failed(error);
      return;
    }
    this.#showHead();
    if (this.#bytes > INBOX_BYTES || this.#isHalted) this.#socket.pause();
    this.#owner.arrived();
  }

  /** The message whose head was looked at is to be held until it is whole, if there is room. */
  hold(): void {
    this.#hold = true;
    this.#goOn(() => this.#scanner.resume());
  }

  /** Its head has been dealt with, and the rest of it comes in pieces. */
  stream(): void {
    this.#goOn(() => this.#scanner.stream());
  }

  /** Nothing is to be heard of it any more. */
  drop(): void {
    this.#drop = true;
    this.#goOn(() => this.#scanner.resume());
  }

  /** The next message is looked at now. */
  shift(): void {
    const message = this.#messages.shift();
    if (message !== undefined && message !== SYNC_AGAIN) this.#bytes -= message.frame.length + INCOMING_BYTES;
  }

  /** Puts a Sync that was taken before in front of all others. */
  syncAgain(): void {
    this.#messages.unshift(SYNC_AGAIN);
  }

  /** Puts whole messages that were taken before in front of all others. */
  unread(bytes: Buffer): void {
    const messages: Incoming[] = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + bytes.readInt32BE(at + 1);
      const frame = bytes.subarray(at, end);
      messages.push({ type: bytes[at] as number, frame, remaining: 0, again: true });
      this.#bytes += frame.length + INCOMING_BYTES;
      at = end;
    }
    this.#messages.unshift(...messages);
  }

  /** Has the socket not be read until `resume`. */
  pause(): void {
    this.#socket.pause();
  }

  /** Has the socket read again, if nothing is against it. */
  resume(): void {
    if (this.#bytes <= INBOX_BYTES && this.#mayRead) this.#socket.resume();
  }

  /** Has a socket that was paused read again once half of what is here has been looked at. */
  resumeBelowHalf(): void {
    if (this.#bytes <= INBOX_BYTES / 2 && this.#socket.isPaused() && this.#mayRead) this.#socket.resume();
  }

  /** Gives back what was granted for large messages. */
  close(): void {
    this.#closed = true;
    this.large.close();
  }

  get #mayRead(): boolean {
    return this.#owner.mayRead() && !this.#isHalted;
  }

  /** A large message has to wait, and enough of it is here. */
  get #isHalted(): boolean {
    return this.#scanner.isWaiting && this.#beginning === 0;
  }

  /** See FrameHandler. */
  onMessage(type: number, frame: Buffer): void {
    this.#receive({ type, frame, remaining: 0 });
  }

  /** See FrameHandler. */
  onPartial(type: number, frame: Buffer, remaining: number): void {
    this.#receive({ type, frame, remaining });
  }

  /** See FrameHandler. */
  admit(type: number, size: number): 'take' | 'wait' | 'refuse' {
    if (type === FRONTEND.Bind || type === FRONTEND.FunctionCall) {
      if (this.#drop) return 'refuse';
      if (!this.#hold) {
        this.#beginning = size;
        return 'wait';
      }
    }
    const answer = this.large.admit(size);
    if (answer !== 'wait') this.#hold = false;
    return answer;
  }

  /** See FrameHandler. */
  onRefused(type: number, size: number): void {
    if (this.#drop) this.#drop = false;
    else this.#receive({ type, frame: NO_BYTES, remaining: 0, refused: size });
  }

  #showHead(): void {
    const { held } = this.#scanner;
    if (this.#beginning === 0 || held === null || held.length < HEAD_BYTES) return;
    const frame = held.subarray(0, this.#beginning);
    this.#receive({ type: held[0] as number, frame, remaining: this.#beginning - frame.length, head: true });
    this.#beginning = 0;
  }

  #goOn(work: () => void): void {
    if (this.#closed) return;
    try {
      work();
    } catch (error) {
      this.#owner.failed(error);
      return;
    }
    this.#showHead();
  }

  #receive(message: Incoming): void {
    this.#messages.push(message);
    this.#bytes += message.frame.length + INCOMING_BYTES;
  }

  /** There is room now for the large message that the client has begun to send. */
  admitted(): void {
    if (this.#closed) return;
    this.#goOn(() => this.#scanner.resume());
    this.#owner.arrived();
  }
}
