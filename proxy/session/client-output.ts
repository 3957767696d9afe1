import type { Socket } from 'node:net';
import { GatheredWriter } from '../wire/gathered-writer.js';
import type { Activity } from './activity.js';

/** Sent and not read by the client: notifications wait. */
const CLOGGED_BYTES = 256 * 1024;
/** Replies that a client which has said goodbye no longer reads; beyond, its statement is canceled. */
const UNREAD_BYTES = 1024 * 1024;

/** Waits for the client to read. */
const NOBODY = (): void => undefined;

/** Whose output it is. */
export interface OutputOwner {
  /** The client does not read as fast as it is answered. */
  clogged(): void;
  /** It has read. */
  drained(): void;
  close(): void;
}

/** What a client is sent. */
export class ClientOutput {
  /** Bytes sent since whoever counts them has set it to 0. */
  told = 0;
  readonly #socket: Socket;
  readonly #writer: GatheredWriter;
  readonly #activity: Activity;
  readonly #owner: OutputOwner;
  #full = false;
  /** The client said goodbye and went, but what it sent before has yet to be done. */
  #left = false;
  #unread = 0;
  #ended = false;
  /** Called when the client has read. */
  #onDrained: () => void = NOBODY;

  constructor(socket: Socket, activity: Activity, owner: OutputOwner) {
    this.#socket = socket;
    this.#activity = activity;
    this.#owner = owner;
    this.#writer = new GatheredWriter(socket, () => this.#drained());
  }

  /** The client does not read as fast as it is answered: like PostgreSQL, we read nothing more from it. */
  get full(): boolean {
    return this.#full;
  }

  /** So much is unread that notifications wait. */
  get isClogged(): boolean {
    return this.#writer.buffered > CLOGGED_BYTES;
  }

  write(frame: Buffer): void {
    this.#write(frame, false);
  }

  /** Sends the end of an answer, for which the client waits, in one or two pieces. */
  answer(bytes: Buffer, rest: Buffer | null = null): void {
    if (rest !== null) this.#write(bytes, false);
    this.#write(rest ?? bytes, true);
  }

  #write(frame: Buffer, now: boolean): void {
    if (this.#ended) return;
    this.#activity.sent += frame.length;
    this.told += frame.length;
    if (this.#left) {
      this.#unread += frame.length;
      if (this.#unread > UNREAD_BYTES) this.#owner.close();
      return;
    }
    if (now ? this.#writer.writeNow(frame) : this.#writer.write(frame)) return;
    this.#full = true;
    this.#owner.clogged();
  }

  /** Resolves when the client has read, or the output has ended. One at a time may wait. */
  untilDrained(): Promise<void> {
    return new Promise((resolve) => {
      this.#onDrained = resolve;
    });
  }

  /** The client reads no more: what it is sent from here on is only counted. */
  leave(): void {
    this.#left = true;
    this.#drained();
  }

  /** Sends what has been written, and nothing more. */
  end(): void {
    this.#ended = true;
    this.#onDrained();
    this.#writer.end();
    // A client that does not read its last words is not waited for.
    this.#socket.setTimeout(1000, () => this.#socket.destroy());
  }

  #drained(): void {
    this.#full = false;
    this.#onDrained();
    this.#owner.drained();
  }
}
