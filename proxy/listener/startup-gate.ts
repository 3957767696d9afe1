import type { Socket } from 'node:net';

/** How many clients may be starting up. */
export interface StartupLimits {
  /** Connections at most between accept and the end of authentication. */
  readonly maxStartups: number;
  /** Start-ups begun each second, on average over a few; 0: no limit. */
  readonly startupsPerSecond: number;
  /** How long a connection waits for its turn before it is refused. */
  readonly startupQueueMs: number;
  /** Connections that may wait; more are refused at once. */
  readonly maxQueued: number;
}

interface Waiter {
  readonly socket: Socket;
  readonly admit: (leave: () => void) => void;
  readonly refuse: () => void;
  readonly deadline: number;
  readonly closed: () => void;
}

/**
 * Lets connections begin their start-up: so many at a time, and so many each second (a token bucket that holds one second's
 * worth). Start-up is the only time at which strangers cost us memory and processor time; whoever waits here costs a socket
 * that nobody reads.
 */
export class StartupGate {
  #limits: StartupLimits;
  readonly #now: () => number;
  #startingUp = 0;
  #tokens: number;
  #filledAt: number;
  /** In order of their deadlines, as all wait equally long. */
  readonly #waiting: Waiter[] = [];
  #timer: NodeJS.Timeout | null = null;

  /** @param now milliseconds of a clock that never goes back */
  constructor(limits: StartupLimits, now: () => number = () => performance.now()) {
    this.#limits = limits;
    this.#now = now;
    this.#tokens = this.#capacity;
    this.#filledAt = now();
  }

  /**
   * Calls `admit` when it is this connection's turn, mostly at once; `leave`, which it is given, is to be called when its
   * start-up is over. Calls `refuse` instead when its turn does not come in time.
   */
  enter(socket: Socket, admit: (leave: () => void) => void, refuse: () => void): void {
    if (this.#waiting.length === 0 && this.#takeTurn()) {
      this.#admit(admit);
      return;
    }
    if (this.#waiting.length >= this.#limits.maxQueued) {
      refuse();
      return;
    }
    const waiter: Waiter = {
      socket,
      admit,
      refuse,
      deadline: this.#now() + this.#limits.startupQueueMs,
      closed: () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
      },
    };
    socket.once('close', waiter.closed);
    this.#waiting.push(waiter);
    this.#schedule();
  }

  /** For those who come, and those who wait, from now on. */
  reload(limits: StartupLimits): void {
    this.#limits = limits;
    this.#pump();
  }

  /** Refuses all who wait. */
  close(): void {
    for (let waiter = this.#next(); waiter !== undefined; waiter = this.#next()) waiter.refuse();
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  get #capacity(): number {
    return Math.max(1, this.#limits.startupsPerSecond);
  }

  #takeTurn(): boolean {
    const { maxStartups, startupsPerSecond } = this.#limits;
    if (this.#startingUp >= maxStartups) return false;
    if (startupsPerSecond === 0) return true;
    const now = this.#now();
    this.#tokens = Math.min(this.#capacity, this.#tokens + ((now - this.#filledAt) * startupsPerSecond) / 1000);
    this.#filledAt = now;
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  #admit(admit: (leave: () => void) => void): void {
    this.#startingUp += 1;
    let left = false;
    admit(() => {
      if (left) return;
      left = true;
      this.#startingUp -= 1;
      this.#pump();
    });
  }

  #next(): Waiter | undefined {
    const waiter = this.#waiting.shift();
    waiter?.socket.off('close', waiter.closed);
    return waiter;
  }

  #pump(): void {
    const now = this.#now();
    while (this.#waiting[0] !== undefined && this.#waiting[0].deadline <= now) this.#next()?.refuse();
    while (this.#waiting.length > 0 && this.#takeTurn()) {
      const waiter = this.#next();
      if (waiter !== undefined) this.#admit(waiter.admit);
    }
    this.#schedule();
  }

  /** Looks again when the oldest has waited long enough, or there may be another token. */
  #schedule(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const [oldest] = this.#waiting;
    if (oldest === undefined) return;
    const { maxStartups, startupsPerSecond } = this.#limits;
    const patience = oldest.deadline - this.#now();
    const token =
      startupsPerSecond > 0 && this.#startingUp < maxStartups
        ? ((1 - this.#tokens) * 1000) / startupsPerSecond
        : patience;
    this.#timer = setTimeout(
      () => {
        this.#timer = null;
        this.#pump();
      },
      Math.max(1, Math.ceil(Math.min(patience, token))),
    );
  }
}
