/** A result of more bytes has no place in a lane. */
const SMALL_BYTES = 16 * 1024;
/** So many times as long is slow for certain: a server that is busy makes any statement late now and then. */
const SLOW = 4;
/** So many connections at work slow one another down by nothing worth counting. */
const UNHURRIED = 4;
/** Good runs that a template needs at first, and at most. */
const FIRST_RUNS = 3;
const MOST_RUNS = 20_000;
/** Each disgrace asks for so many times more good runs; so many good runs in lanes halve that again. */
const BACK_OFF = 4;
const FORGIVEN_AFTER = 500;
/** Once in so many runs in lanes anything is late: the server's machine was busy with something else. */
const RARELY = 2_000;
/** A larger result, or what takes longer, is said by itself: ms, and bytes. */
const JOINED_MS = 1;
const JOINED_BYTES = 1024;
/** So many runs in lanes are said by themselves after one that failed. */
const APART = 1_000;
/** What one run weighs in the expectation. */
const WEIGHT = 1 / 16;

/**
 * How fast and how large the executions of one template have been, and so whether the next may share a server connection: it runs on
 * leases until it was fast and small a few times, and again after it has been late or large, for longer each time. Plain numbers,
 * kept beside the template; times in ms.
 */
export class Pace {
  #good = 0;
  #needed = FIRST_RUNS;
  /** Runs in lanes since it was late. */
  #streak = 0;
  #expectedMs = 0;
  #expectedBytes = 0;
  /** Runs that are yet to be said by themselves. */
  #apart = 0;

  /** Whether it has its place in lanes. */
  get isFit(): boolean {
    return this.#good >= this.#needed;
  }

  /** How long a server needs for it. */
  get expectedMs(): number {
    return this.#expectedMs;
  }

  /** Whether it may be said in one with others. */
  get joins(): boolean {
    return this.#apart === 0 && this.#expectedMs <= JOINED_MS && this.#expectedBytes <= JOINED_BYTES;
  }

  /** It has failed, and so have all that were said in one with it. */
  broke(): void {
    this.#apart = APART;
  }

  /** It ran on a lease, while `busy` connections of the pool were at work. `lateMs`: what takes longer has no place in a lane. */
  ran(ms: number, bytes: number, busy: number, lateMs: number): void {
    const share = shareOf(ms, busy);
    if (share >= lateMs * SLOW || bytes > SMALL_BYTES) this.#good = 0;
    else if (share >= lateMs) this.#good = Math.max(0, this.#good - 1);
    else this.#good += 1;
    if (share >= lateMs) return;
    this.#learn(share, bytes);
  }

  /** It ran in a lane: the server needed this long for it. */
  served(ms: number, bytes: number, lateMs: number): void {
    if (bytes > SMALL_BYTES) {
      this.disgrace();
      return;
    }
    // What came late has been told already; a pause of this process is nobody's fault.
    this.#learn(Math.min(ms, lateMs), bytes);
    if (this.#apart > 0) this.#apart -= 1;
    if (this.#expectedMs > lateMs / 2) this.#good = 0;
    this.#streak += 1;
    if (this.#streak % FORGIVEN_AFTER !== 0) return;
    this.#needed = Math.max(FIRST_RUNS, Math.floor(this.#needed / 2));
  }

  /**
   * It keeps others waiting, for so long until now, while `busy` connections of the pool are at work. @returns whether that counts: it is not to be told
   * of the same run again
   */
  late(ms: number, busy: number, lateMs: number): boolean {
    if (shareOf(ms, busy) < lateMs * SLOW) return false;
    const rarely = this.#streak >= RARELY;
    this.#streak = 0;
    if (!rarely) this.disgrace();
    return true;
  }

  /** It has lost its place. */
  disgrace(): void {
    if (!this.isFit) return;
    this.#good = 0;
    this.#streak = 0;
    this.#needed = Math.min(MOST_RUNS, this.#needed * BACK_OFF);
  }

  #learn(ms: number, bytes: number): void {
    const first = this.#expectedMs === 0;
    this.#expectedMs = first ? ms : this.#expectedMs + (ms - this.#expectedMs) * WEIGHT;
    this.#expectedBytes = first ? bytes : this.#expectedBytes + (bytes - this.#expectedBytes) * WEIGHT;
  }
}

/** What of the time it would have taken, had not so many connections been at work. */
function shareOf(ms: number, busy: number): number {
  return ms / Math.max(1, busy / UNHURRIED);
}
