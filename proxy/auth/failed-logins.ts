import { parseIp } from './ip-range.js';

export interface FailureLimits {
  /** Wrong passwords of an address, or of a user, that cost nothing yet. */
  readonly free: number;
  /** What the next one costs, ms; doubled with each. 0: no limit at all. */
  readonly delayMs: number;
  /** Longest delay, ms. */
  readonly maxDelayMs: number;
  /** Failures are forgotten when no more came for so long, ms. */
  readonly forgetMs: number;
}

/** What the processes on one port tell each other, so that all count the same. Plain JSON. */
export interface LoginEvent {
  /** `turn`: an attempt has been made to wait; `known`: a first right password, or one after wrong ones. */
  readonly kind: 'turn' | 'failed' | 'known';
  readonly address: string | null;
  readonly user: string;
}

/** Entries per table; the one that was used longest ago makes room. */
const MAX_ENTRIES = 10_000;

interface Entry {
  failures: number;
  lastMs: number;
  /** When the next attempt of this address may go on. */
  nextMs: number;
}

/**
 * Who has failed to log in, and how long that makes others like them wait.
 *
 * - An address with failures is served one attempt at a time, `delay` apart: however many connections guess, no faster.
 * - A user with failures is slow from everywhere, but nobody queues behind anybody: whoever has the right password and another address gets in
 *   after one delay, whatever an attacker does.
 * - Where a user has logged in before, only failures of that user from there count: neither a neighbour's wrong password nor an attack on the user
 *   from elsewhere holds up an application that is known.
 *
 * All tables are bounded. Times come in as arguments, in ms of any steady clock. Processes that share a port tell each other what
 * changes their tables: an address that is served by several of them waits as long as with one.
 */
export class FailedLogins {
  #limits: FailureLimits;
  readonly #byAddress = new Map<string, Entry>();
  readonly #byUser = new Map<string, Entry>();
  readonly #byPair = new Map<string, Entry>();
  /** Users where they have logged in. */
  readonly #good = new Map<string, true>();
  readonly #tell: (event: LoginEvent) => void;

  /** @param tell the other processes on the port */
  constructor(limits: FailureLimits, tell: (event: LoginEvent) => void = () => undefined) {
    this.#limits = limits;
    this.#tell = tell;
  }

  reload(limits: FailureLimits): void {
    this.#limits = limits;
  }

  /** How long this attempt has to wait before it is told anything, ms; the turn is taken. 0: go on. */
  delay(address: string | null, user: string, nowMs: number): number {
    if (this.#limits.delayMs === 0) return 0;
    const turn = this.#takeTurn(address, user, nowMs);
    if (turn > 0) this.#tell({ kind: 'turn', address, user });
    if (this.isKnown(address, user)) return turn;
    const byUser = this.#live(this.#byUser.get(user), nowMs);
    return Math.max(turn, byUser === null ? 0 : this.#cost(byUser));
  }

  /** Another process says what has happened there. */
  hear({ kind, address, user }: LoginEvent, nowMs: number): void {
    if (kind === 'failed') this.#failed(address, user, nowMs);
    else if (kind === 'known') this.#succeeded(address, user);
    else this.#takeTurn(address, user, nowMs);
  }

  /** This user has logged in from there before. */
  isKnown(address: string | null, user: string): boolean {
    return this.#good.has(keysOf(address, user).pair);
  }

  /** A wrong password. */
  failed(address: string | null, user: string, nowMs: number): void {
    this.#failed(address, user, nowMs);
    this.#tell({ kind: 'failed', address, user });
  }

  /** The right password. */
  succeeded(address: string | null, user: string): void {
    if (this.#succeeded(address, user)) this.#tell({ kind: 'known', address, user });
  }

  #takeTurn(address: string | null, user: string, nowMs: number): number {
    const { from, pair } = keysOf(address, user);
    return this.#turn(this.#good.has(pair) ? this.#byPair.get(pair) : this.#byAddress.get(from), nowMs);
  }

  #failed(address: string | null, user: string, nowMs: number): void {
    const { from, pair } = keysOf(address, user);
    if (this.#good.has(pair)) this.#count(this.#byPair, pair, nowMs);
    else {
      this.#count(this.#byAddress, from, nowMs);
      this.#count(this.#byUser, user, nowMs);
    }
  }

  /** @returns whether that is news */
  #succeeded(address: string | null, user: string): boolean {
    const { from, pair } = keysOf(address, user);
    const forgiven = this.#byAddress.delete(from);
    const news = this.#byPair.delete(pair) || forgiven || !this.#good.has(pair);
    put(this.#good, pair, true);
    return news;
  }

  #live(entry: Entry | undefined, nowMs: number): Entry | null {
    return entry === undefined || nowMs - entry.lastMs > this.#limits.forgetMs ? null : entry;
  }

  #cost({ failures }: Entry): number {
    const { free, delayMs, maxDelayMs } = this.#limits;
    return failures < free ? 0 : Math.min(maxDelayMs, delayMs * 2 ** Math.min(failures - free, 30));
  }

  /** Takes the next free turn of an address. */
  #turn(found: Entry | undefined, nowMs: number): number {
    const entry = this.#live(found, nowMs);
    if (entry === null) return 0;
    const cost = this.#cost(entry);
    if (cost === 0) return 0;
    entry.nextMs = Math.max(entry.nextMs, nowMs) + cost;
    return entry.nextMs - nowMs;
  }

  #count(table: Map<string, Entry>, key: string, nowMs: number): void {
    const entry = this.#live(table.get(key), nowMs) ?? { failures: 0, lastMs: nowMs, nextMs: nowMs };
    entry.failures++;
    entry.lastMs = nowMs;
    put(table, key, entry);
  }
}

/** Sets it as the newest, and drops the oldest beyond the bound. */
function put<T>(table: Map<string, T>, key: string, value: T): void {
  table.delete(key);
  table.set(key, value);
  if (table.size > MAX_ENTRIES) for (const oldest of table.keys()) return void table.delete(oldest);
}

function keysOf(address: string | null, user: string): { from: string; pair: string } {
  const from = networkOf(address);
  return { from, pair: `${from} ${user}` };
}

/** An IPv6 customer has a whole /64 to guess from: it counts as one address. */
function networkOf(address: string | null): string {
  if (address === null) return 'local';
  const ip = parseIp(address);
  return ip === null ? address : ip.subarray(0, ip.length === 16 ? 8 : 4).toString('hex');
}
