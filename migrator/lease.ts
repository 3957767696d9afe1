import { setTimeout as delay } from 'node:timers/promises';
import { ownLeaseEnd } from '../topology/catalog/leases.js';
import { ConflictError } from '../topology/errors.js';
import { DEFAULT_CONTROLS, type MigrationControls } from '../topology/migration-controls.js';
import type { Requested } from './migration-row.js';
import type { MigrationStore } from './migration-store.js';

/** Somebody else may drive the migration now: stop at once, touch nothing. */
export class LeaseLostError extends ConflictError {}

/**
 * The lease on one migration, renewed in the background. The catalog's clock decides when it ends; ours runs from before we
 * asked, and a little shorter, so that we do not believe in it for longer than the catalog does. No promise hangs on that: what we
 * change the catalog checks by its own clock, and a successor ends our connections to the shards before it acts.
 */
export class MigrationLease {
  readonly #store: MigrationStore;
  readonly #ttlMs: number;
  readonly #lost = new AbortController();
  readonly #closing = new AbortController();
  #validUntil = 0;
  #loop: Promise<void> = Promise.resolve();
  /** Somebody asked for an abort; seen at every renewal. */
  abortRequested = false;
  /** Somebody has paused the migration. */
  paused = false;
  controls: MigrationControls = DEFAULT_CONTROLS;
  requested: Requested | null = null;
  /** The catalog's clock less ours, ms. */
  #clockOffsetMs = 0;

  private constructor(store: MigrationStore, ttlMs: number) {
    this.#store = store;
    this.#ttlMs = ttlMs;
  }

  /** @returns null when another process holds it */
  static async take(store: MigrationStore, ttlMs: number): Promise<MigrationLease | null> {
    const lease = new MigrationLease(store, ttlMs);
    if (!(await lease.#renew())) return null;
    lease.#loop = lease.#keep();
    return lease;
  }

  /** The time by the catalog's clock, about. */
  get now(): Date {
    return new Date(Date.now() + this.#clockOffsetMs);
  }

  /** Aborted when the lease is lost. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /** @throws LeaseLostError when the lease is lost, or cannot be known to be ours */
  check(): void {
    if (this.#lost.signal.aborted || performance.now() >= this.#validUntil)
      throw new LeaseLostError(`the lease on migration ${this.#store.id} is lost`);
  }

  /**
   * Takes it once more, by the catalog. A transaction of ours that is still under way there, though its connection was lost, has
   * the migration's row locked: it is over when this resolves.
   * @throws LeaseLostError
   */
  async confirm(): Promise<void> {
    if (!(await this.#renew())) this.#lost.abort();
    this.check();
  }

  /** Gives it back. */
  async release(): Promise<void> {
    this.#closing.abort();
    await this.#loop;
    if (!this.#lost.signal.aborted) await this.#store.dropLease();
  }

  async #renew(): Promise<boolean> {
    const asked = performance.now();
    const wishes = await this.#store.takeLease(this.#ttlMs);
    if (wishes === null) return false;
    this.#validUntil = ownLeaseEnd(asked, this.#ttlMs);
    this.abortRequested = wishes.abortRequested;
    this.paused = wishes.paused;
    this.controls = wishes.controls;
    this.requested = wishes.requested;
    this.#clockOffsetMs = wishes.now.getTime() - Date.now();
    return true;
  }

  async #keep(): Promise<void> {
    const every = Math.min(1000, this.#ttlMs / 5);
    while (!this.#closing.signal.aborted) {
      await delay(every, undefined, { signal: this.#closing.signal }).catch(ignoreAbort);
      if (this.#closing.signal.aborted) return;
      try {
        if (await this.#renew()) continue;
        this.#lost.abort();
        return;
      } catch {
        // The catalog is away: the lease lasts as long as it was granted, then it counts as lost.
        if (performance.now() < this.#validUntil) continue;
        this.#lost.abort();
        return;
      }
    }
  }
}

function ignoreAbort(): void {}
