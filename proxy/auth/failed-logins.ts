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
 * All tables are bounded. Times come in as arguments, in ms of any steady clock.
 */
export class FailedLogins {
  #limits: FailureLimits;
  readonly #byAddress = new Map<string, Entry>();
  readonly #byUser = new Map<string, Entry>();
  readonly #byPair = new Map<string, Entry>();
  /** Users where they have logged in. */
  readonly #good = new Map<string, true>();

  constructor(limits: FailureLimits) {
    this.#limits = limits;
  }

  reload(limits: FailureLimits): void {
    this.#limits = limits;
  }

  /** How long this attempt has to wait before it is told anything, ms; the turn is taken. 0: go on. */
  delay(address: string | null, user: string, nowMs: number): number {
    if (this.#limits.delayMs === 0) return 0;
    const { from, pair } = keysOf(address, user);
    if (this.#good.has(pair)) return this.#turn(this.#byPair.get(pair), nowMs);
    const byUser = this.#live(this.#byUser.get(user), nowMs);
    return Math.max(this.#turn(this.#byAddress.get(from), nowMs), byUser === null ? 0 : this.#cost(byUser));
  }

  /** This user has logged in from there before. */
  isKnown(address: string | null, user: string): boolean {
    return this.#good.has(keysOf(address, user).pair);
  }

  /** A wrong password. */
  failed(address: string | null, user: string, nowMs: number): void {
    const { from, pair } = keysOf(address, user);
    if (this.#good.has(pair)) this.#count(this.#byPair, pair, nowMs);
    else {
      this.#count(this.#byAddress, from, nowMs);
      this.#count(this.#byUser, user, nowMs);
    }
  }

  /** The right password. */
  succeeded(address: string | null, user: string): void {
    const { from, pair } = keysOf(address, user);
    this.#byAddress.delete(from);
    this.#byPair.delete(pair);
    put(this.#good, pair, true);
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
