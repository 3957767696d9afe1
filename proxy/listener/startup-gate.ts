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

/** What a connection that has been let in may do. */
export interface StartupPass {
  /** null: it is its turn. Otherwise it was let in ahead of it, and goes on behind its start-up packet when this says true. */
  readonly turn: Promise<boolean> | null;
  /** Its start-up is over. To be called in any case; more than once does no harm. */
  leave(): void;
}

interface Waiter {
  readonly socket: Socket;
  readonly admit: (pass: StartupPass) => void;
  readonly refuse: () => void;
  readonly deadline: number;
  readonly closed: () => void;
  /** It was let in ahead of its turn: to be told when that comes. */
  ahead: ((hasTurn: boolean) => void) | null;
}

/** Connections let in ahead of their turn each second. */
const AHEAD_PER_SECOND = 16;

/**
 * Lets connections begin their start-up: so many at a time, and so many each second (a token bucket that holds one second's
 * worth). Start-up is the only time at which strangers cost us memory and processor time; whoever waits here costs a socket
 * that nobody reads.
 *
 * A few each second, the newest first, are let in ahead of their turn as far as their start-up packet: a cancel request or an
 * administrator must get through when strangers hold every place. All others wait behind it.
 */
export class StartupGate {
  #limits: StartupLimits;
  readonly #now: () => number;
  #startingUp = 0;
  #tokens: number;
  #filledAt: number;
  /** In order of their deadlines, as all wait equally long. */
  readonly #waiting: Waiter[] = [];
  #aheadTokens = AHEAD_PER_SECOND;
  #aheadFilledAt: number;
  #timer: NodeJS.Timeout | null = null;

  /** @param now milliseconds of a clock that never goes back */
  constructor(limits: StartupLimits, now: () => number = () => performance.now()) {
    this.#limits = limits;
    this.#now = now;
    this.#tokens = this.#capacity;
    this.#filledAt = now();
    this.#aheadFilledAt = now();
  }

  /**
   * Calls `admit` when it is this connection's turn, mostly at once, or ahead of it. Calls `refuse` instead when its turn does not
   * come in time.
   */
  enter(socket: Socket, admit: (pass: StartupPass) => void, refuse: () => void): void {
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
        this.#remove(waiter);
        waiter.ahead?.(false);
      },
      ahead: null,
    };
    socket.once('close', waiter.closed);
    this.#waiting.push(waiter);
    this.#letAhead();
    this.#schedule();
  }

  /** For those who come, and those who wait, from now on. */
  reload(limits: StartupLimits): void {
    this.#limits = limits;
    this.#pump();
  }

  /** Refuses all who wait. */
  close(): void {
    for (let waiter = this.#next(); waiter !== undefined; waiter = this.#next()) refuse(waiter);
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

  /** @returns what gives the place free again */
  #takePlace(): () => void {
    this.#startingUp += 1;
    let left = false;
    return () => {
      if (left) return;
      left = true;
      this.#startingUp -= 1;
      this.#pump();
    };
  }

  #admit(admit: (pass: StartupPass) => void): void {
    admit({ turn: null, leave: this.#takePlace() });
  }

  #letAhead(): void {
    const now = this.#now();
    const filled = this.#aheadTokens + ((now - this.#aheadFilledAt) * AHEAD_PER_SECOND) / 1000;
    this.#aheadTokens = Math.min(AHEAD_PER_SECOND, filled);
    this.#aheadFilledAt = now;
    for (let at = this.#waiting.length - 1; at >= 0 && this.#aheadTokens >= 1; at--) {
      const waiter = this.#waiting[at];
      if (waiter === undefined || waiter.ahead !== null) continue;
      this.#aheadTokens -= 1;
      this.#admitAhead(waiter);
    }
  }

  #admitAhead(waiter: Waiter): void {
    let leave = () => this.#remove(waiter);
    const turn = new Promise<boolean>((resolve) => {
      waiter.ahead = (hasTurn) => {
        if (hasTurn) leave = this.#takePlace();
        resolve(hasTurn);
      };
    });
    waiter.admit({ turn, leave: () => leave() });
  }

  #remove(waiter: Waiter): void {
    waiter.socket.off('close', waiter.closed);
    const at = this.#waiting.indexOf(waiter);
    if (at >= 0) this.#waiting.splice(at, 1);
  }

  #next(): Waiter | undefined {
    const waiter = this.#waiting.shift();
    waiter?.socket.off('close', waiter.closed);
    return waiter;
  }

  #pump(): void {
    const now = this.#now();
    for (let first = this.#waiting[0]; first !== undefined && first.deadline <= now; first = this.#waiting[0]) {
      this.#remove(first);
      refuse(first);
    }
    while (this.#waiting.length > 0 && this.#takeTurn()) {
      const waiter = this.#next();
      if (waiter?.ahead != null) waiter.ahead(true);
      else if (waiter !== undefined) this.#admit(waiter.admit);
    }
    this.#letAhead();
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
    const ahead = this.#waiting.some((waiter) => waiter.ahead === null)
      ? ((1 - this.#aheadTokens) * 1000) / AHEAD_PER_SECOND
      : patience;
    this.#timer = setTimeout(
      () => {
        this.#timer = null;
        this.#pump();
      },
      Math.max(1, Math.ceil(Math.min(patience, token, ahead))),
    );
  }
}

function refuse(waiter: Waiter): void {
  if (waiter.ahead === null) waiter.refuse();
  else waiter.ahead(false);
}
