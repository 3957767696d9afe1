import type { Disturbances } from './connection.js';

/** What was disturbed may still be felt for so long after it has been put right, ms. */
const FELT_MS = 10_000;

/** Keeps the time in which nothing is disturbed, and knows what may be excused by what. */
export class Calm implements Disturbances {
  #active = 0;
  #lastEnd = Number.NEGATIVE_INFINITY;
  #calmSince = performance.now();
  #calmBefore = 0;
  #diskFull = false;
  #diskFullUntil = Number.NEGATIVE_INFINITY;

  get calmMs(): number {
    return this.#calmBefore + (this.#active === 0 ? performance.now() - this.#calmSince : 0);
  }

  since(moment: number): boolean {
    return this.#active > 0 || moment < this.#lastEnd + FELT_MS;
  }

  diskFullSince(moment: number): boolean {
    return this.#diskFull || moment < this.#diskFullUntil + FELT_MS;
  }

  /** Something is disturbed while `work` goes on. */
  async disturb<T>(work: () => Promise<T>): Promise<T> {
    if (this.#active === 0) this.#calmBefore = this.calmMs;
    this.#active += 1;
    try {
      return await work();
    } finally {
      this.#active -= 1;
      this.#lastEnd = performance.now();
      this.#calmSince = this.#lastEnd;
    }
  }

  diskFull(full: boolean): void {
    this.#diskFull = full;
    if (!full) this.#diskFullUntil = performance.now();
  }
}
