import type { Disturbances } from './connection.js';

/** What was disturbed may still be felt for so long after it has been put right, ms. */
const FELT_MS = 3000;

/** What ended longer ago than this is forgotten, ms. */
const MEMORY_MS = 600_000;

/** Whom a fault may reach: the clients of one proxy, by its place in the world; or all, or none. */
export type Reach = number | 'everybody' | 'nobody';

/** Something that is going on, or was. */
interface Disturbance {
  readonly name: string;
  readonly reach: Reach;
  /** Infinity: it goes on. */
  endedAt: number;
}

/** Keeps the time in which nothing is disturbed, and knows what may be excused by what. */
export class Calm implements Disturbances {
  /** Of each fault, the longest time after its end that a statement was sent whose error it excused, ms. */
  readonly latestMs = new Map<string, number>();
  #active = 0;
  #calmSince = performance.now();
  #calmBefore = 0;
  #lastEnd = Number.NEGATIVE_INFINITY;
  #recent: Disturbance[] = [];
  #diskFull = false;
  #diskFullUntil = Number.NEGATIVE_INFINITY;

  get calmMs(): number {
    return this.#calmBefore + (this.#active === 0 ? performance.now() - this.#calmSince : 0);
  }

  /** Whether anything at all was disturbed after this moment, or shortly before it. */
  since(moment: number): boolean {
    return this.#active > 0 || moment < this.#lastEnd + FELT_MS;
  }

  /** The same, of what clients of this proxy may feel. */
  feltSince(moment: number, proxy: number): boolean {
    const [last] = this.#recent
      .filter(({ reach }) => reach === 'everybody' || reach === proxy)
      .toSorted((a, b) => b.endedAt - a.endedAt);
    if (last === undefined || moment >= last.endedAt + FELT_MS) return false;
    const lateMs = Math.max(0, Math.round(moment - last.endedAt));
    this.latestMs.set(last.name, Math.max(lateMs, this.latestMs.get(last.name) ?? 0));
    return true;
  }

  diskFullSince(moment: number): boolean {
    return this.#diskFull || moment < this.#diskFullUntil + FELT_MS;
  }

  /** Something is disturbed while `work` goes on. */
  async disturb<T>(name: string, reach: Reach, work: () => Promise<T>): Promise<T> {
    if (this.#active === 0) this.#calmBefore = this.calmMs;
    this.#active += 1;
    const disturbance: Disturbance = { name, reach, endedAt: Number.POSITIVE_INFINITY };
    this.#recent.push(disturbance);
    try {
      return await work();
    } finally {
      this.#active -= 1;
      this.#lastEnd = performance.now();
      this.#calmSince = this.#lastEnd;
      disturbance.endedAt = this.#lastEnd;
      // A statement may have been under way for as long as it can hang.
      this.#recent = this.#recent.filter((one) => one.endedAt > this.#lastEnd - MEMORY_MS);
    }
  }

  diskFull(full: boolean): void {
    this.#diskFull = full;
    if (!full) this.#diskFullUntil = performance.now();
  }
}
