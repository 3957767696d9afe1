import { setTimeout as delay } from 'node:timers/promises';
import { oneOf, type Random } from '../support/random.js';
import { Connection, type Disturbances, type InFlight, StatementError, type Value } from './connection.js';
import type { History } from './history.js';
import { judge, type Phase } from './judge.js';

/** Between two operations of a client, at most, ms. */
const THINK_MS = 40;
/** A client whose connection is lost, or who is not let in, tries again after at most so long, ms. */
const RETRY_MS = 300;
/** Every so many operations, on average, a client leaves and comes again by some proxy. */
const STAY = 80;

/** What all clients share. */
export interface Surroundings {
  readonly history: History;
  readonly inFlight: InFlight;
  readonly disturbances: Disturbances & { diskFullSince(moment: number): boolean };
  /** Of the proxies. */
  readonly urls: readonly string[];
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
  #connection: Connection | null = null;
  #stopped = false;

  constructor(name: string, random: Random, around: Surroundings) {
    this.name = name;
    this.random = random;
    this.around = around;
    // What a subclass has of its own is there when it begins.
    this.done = Promise.resolve().then(() => this.#loop());
  }

  /** One thing to do; what it throws is no StatementError. */
  protected abstract act(): Promise<void>;

  stop(): void {
    this.#stopped = true;
  }

  protected query<T extends Record<string, unknown>>(
    text: string,
    values: readonly Value[] = [],
  ): Promise<{ rows: T[]; command: string }> {
    return (this.#connection as Connection).query<T>(this.random, text, values);
  }

  /** Takes note of an error. @returns whether what failed may have been done all the same */
  protected failed(
    error: unknown,
    phase: Phase,
    crossing = false,
  ): { readonly perhapsDone: boolean; readonly code: string } {
    if (!(error instanceof StatementError)) throw error;
    const { disturbances, errors, history } = this.around;
    const { allowed, perhapsDone } = judge(error, phase, {
      crossing,
      disturbed: disturbances.since(error.sentAt),
      diskFull: disturbances.diskFullSince(error.sentAt),
    });
    errors.set(error.code, (errors.get(error.code) ?? 0) + 1);
    if (!allowed) history.violate(`${this.name} was told, ${phase}: ${error.code} ${error.message}`);
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
      await this.pause(THINK_MS);
    }
    await this.#connection?.close();
  }

  async #connect(): Promise<boolean> {
    try {
      this.#connection = await Connection.open(oneOf(this.random, this.around.urls), this.name, this.around.inFlight);
      return true;
    } catch (error) {
      this.failed(error, 'login');
      return false;
    }
  }
}
