import type { Socket } from 'node:net';

/** A process that can be given clients. */
export interface Receiver {
  /** Clients it has been given that have not left. */
  readonly clients: number;
  /** Hands a socket over. @returns false when the process has ended before: the socket is as it was */
  give(socket: Socket): Promise<boolean>;
}

/** Clients that may wait for a process to be there; those that come beyond are cut. */
const WAITING = 10_000;

/** A process that does not take a client for so long is passed over until it has. */
const STALLED_MS = 500;

/**
 * Gives each client to the process with the fewest. A process is given the next one when it has the one before, so that what one
 * that hangs, or is about to end, cannot take goes to another; one that is just slower than the others is waited for, or a
 * burst would all go to the fastest, and stay there.
 */
export class Spread {
  #receivers: readonly Receiver[] = [];
  /** Since when, on `performance.now()`'s clock. */
  readonly #taking = new Map<Receiver, number>();
  #timer: NodeJS.Timeout | null = null;
  #waiting: Socket[] = [];

  /** Clients go to these from now on, those that wait first. Order decides between equals. */
  to(receivers: readonly Receiver[]): void {
    this.#receivers = receivers;
    this.#hand();
  }

  add(socket: Socket): void {
    // Whoever gets it notices that its client has gone.
    socket.on('error', () => undefined);
    if (this.#waiting.length >= WAITING) {
      socket.destroy();
      return;
    }
    this.#waiting.push(socket);
    this.#hand();
  }

  /** Cuts whoever still waits. */
  close(): void {
    this.#receivers = [];
    for (const socket of this.#waiting) socket.destroy();
    this.#waiting = [];
  }

  #hand(): void {
    while (this.#waiting.length > 0) {
      const receiver = this.#choose();
      const socket = receiver === null ? undefined : this.#waiting.shift();
      if (receiver === null || socket === undefined) {
        this.#lookAgain();
        return;
      }
      this.#taking.set(receiver, performance.now());
      void receiver.give(socket).then((taken) => {
        this.#taking.delete(receiver);
        // It is no longer among the receivers when this is seen.
        if (!taken) this.#waiting.unshift(socket);
        this.#hand();
      });
    }
  }

  /** Null: it is taking another one, or there is none. */
  #choose(): Receiver | null {
    const stalled = performance.now() - STALLED_MS;
    let best: Receiver | null = null;
    for (const receiver of this.#receivers)
      if (
        (this.#taking.get(receiver) ?? Number.POSITIVE_INFINITY) > stalled &&
        (best === null || receiver.clients < best.clients)
      )
        best = receiver;
    return best === null || this.#taking.has(best) ? null : best;
  }

  /** When a process that is waited for counts as stalled. */
  #lookAgain(): void {
    if (this.#taking.size === 0) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#hand();
    }, STALLED_MS);
  }
}
