import { setTimeout as delay } from 'node:timers/promises';
import type { Random } from '../support/random.js';
import { Connection, type Disturbances, type InFlight, StatementError, type Value } from './connection.js';
import type { AccountKey, History } from './history.js';
import { isEnded, judge, type Phase } from './judge.js';
import type { Statement } from './tables.js';
import { STALENESS_MS } from './world.js';

/** Between two operations of a client, at most, ms. */
const THINK_MS = 250;
/** A client whose connection is lost, or who is not let in, tries again after at most so long, ms. */
const RETRY_MS = 300;
/** Every so many operations, on average, a client leaves and comes again by some proxy. */
const STAY = 80;

/** How old what a client reads may be, ms, as it says itself; or it says nothing, and a replica's terms decide. */
export type Freshness = number | 'unsaid';

/** Tenants that a replica shows, from one up to, and without, another; null: there is none. */
export interface Shown {
  tenants: readonly [from: number, to: number] | null;
}

/** What all clients share. */
export interface Surroundings {
  readonly history: History;
  readonly inFlight: InFlight;
  readonly disturbances: Disturbances & { diskFullSince(moment: number): boolean };
  /** Of the proxies, in the order in which disturbances know them. */
  readonly urls: readonly string[];
  /** What a replica shows now. */
  readonly shown: Shown;
  /** How often each error came. */
  readonly errors: Map<string, number>;
}

/** Somebody who is connected to some proxy and does one thing after the other, until told to stop. */
export abstract class Client {
  protected readonly name: string;
  protected readonly random: Random;
  protected readonly around: Surroundings;
  readonly done: Promise<void>;
  operations = 0;
  /** How old what it reads may be, ms. */
  protected readonly stalenessMs: number;
  /** How often it has connected: a session. */
  protected session = 0;
  readonly #settings: Readonly<Record<string, string>>;
  /** The newest versions that this session has made or been shown. */
  readonly #told = new Map<AccountKey, number>();
  #connection: Connection | null = null;
  #proxy = 0;
  #stopped = false;

  constructor(name: string, random: Random, around: Surroundings, freshness: Freshness) {
    this.name = name;
    this.random = random;
    this.around = around;
    this.stalenessMs = freshness === 'unsaid' ? STALENESS_MS : freshness;
    this.#settings = freshness === 'unsaid' ? {} : { 'foreshard.max_staleness': `${freshness}ms` };
    // What a subclass has of its own is there when it begins.
    this.done = Promise.resolve().then(() => this.#loop());
  }

  /** What this client may be told of an account from now on is at least this version. To be asked for before the statement is sent. */
  protected floor(key: AccountKey): number {
    const { history } = this.around;
    if (this.stalenessMs === 0) return history.newest(key);
    return Math.max(history.newestAt(key, performance.now() - this.stalenessMs), this.#told.get(key) ?? 0);
  }

  /** This session knows of a version. */
  protected knows(key: AccountKey, version: number): void {
    this.#told.set(key, Math.max(version, this.#told.get(key) ?? 0));
  }

  /** Between two operations, at most, ms. */
  protected get thinkMs(): number {
    return THINK_MS;
  }

  /** One thing to do; what it throws is no StatementError. */
  protected abstract act(): Promise<void>;

  stop(): void {
    this.#stopped = true;
  }

  protected send<T extends Record<string, unknown>>({
    text,
    values,
  }: Statement): Promise<{ rows: T[]; command: string }> {
    return this.query<T>(text, values);
  }

  protected query<T extends Record<string, unknown>>(
    text: string,
    values: readonly Value[] = [],
  ): Promise<{ rows: T[]; command: string }> {
    return this.#once<T>(text, values);
  }

  async #once<T extends Record<string, unknown>>(
    text: string,
    values: readonly Value[],
  ): Promise<{ rows: T[]; command: string }> {
    const from = performance.now();
    const answer = await (this.#connection as Connection).query<T>(this.random, text, values);
    // The driver makes a list of what comes for one statement and is more than one answer.
    if (!Array.isArray(answer)) return answer;
    const after = Math.round(performance.now() - from);
    this.around.history.violate(
      `${this.name} at proxy ${this.#proxy + 1} was given ${answer.length} answers after ${after} ms: ${text}: ${JSON.stringify(answer)}`,
    );
    return answer.at(-1) as { rows: T[]; command: string };
  }

  /** Takes note of an error. @returns whether what failed may have been done all the same */
  protected failed(
    error: unknown,
    phase: Phase,
    crossing = false,
    halved = false,
  ): { readonly perhapsDone: boolean; readonly code: string } {
    if (!(error instanceof StatementError)) throw error;
    const { disturbances, errors, history } = this.around;
    const { allowed, perhapsDone } = judge(error, phase, {
      crossing,
      halved,
      disturbed: () => disturbances.feltSince(error.sentAt, this.#proxy),
      diskFull: () => disturbances.diskFullSince(error.sentAt),
    });
    const told = isEnded(error) ? `${error.code} (ended)` : error.code;
    errors.set(told, (errors.get(told) ?? 0) + 1);
    if (!allowed)
      history.violate(`${this.name} at proxy ${this.#proxy + 1} was told, ${phase}: ${error.code} ${error.message}`);
    if (!error.alive) this.#leave();
    return { perhapsDone, code: error.code };
  }

  /** Ends a transaction that has failed. */
  protected async giveUp(): Promise<void> {
    if (this.#connection === null) return;
    try {
      await this.query('ROLLBACK');
    } catch (error) {
      this.failed(error, 'in a transaction');
      this.#leave();
    }
  }

  protected pause(ms: number): Promise<void> {
    return delay(this.random(ms));
  }

  #leave(): void {
    this.#connection?.drop();
    this.#connection = null;
  }

  async #loop(): Promise<void> {
    while (!this.#stopped) {
      if (this.#connection === null && !(await this.#connect())) {
        await this.pause(RETRY_MS);
        continue;
      }
      await this.act();
      this.operations += 1;
      if (this.random(STAY) === 0) {
        await this.#connection?.close();
        this.#connection = null;
      }
      await this.pause(this.thinkMs);
    }
    await this.#connection?.close();
  }

  async #connect(): Promise<boolean> {
    const { urls, inFlight } = this.around;
    this.#proxy = this.random(urls.length);
    this.session += 1;
    this.#told.clear();
    try {
      this.#connection = await Connection.open(
        urls[this.#proxy] as string,
        `${this.name} at proxy ${this.#proxy + 1}`,
        inFlight,
        this.#settings,
      );
      return true;
    } catch (error) {
      this.failed(error, 'login');
      return false;
    }
  }
}
