import type { Lane } from './lane.js';
import type { Lanes } from './lanes.js';

/** Pause between two looks while reads are under way, and while none are. */
const LOOK_MS = 2;
const REST_MS = 100;

/** Looks after the lanes of a process with one timer: nothing is armed when a read begins or ends. */
export class LaneWatch {
  readonly #lanes = new Map<Lane, Lanes>();
  #suspects: Lane[] = [];
  #timer: NodeJS.Timeout | null = null;
  #resting = false;
  #swept = 0;

  opened(lane: Lane, owner: Lanes): void {
    this.#lanes.set(lane, owner);
    if (this.#timer === null) this.#arm(REST_MS);
  }

  /** Reads are under way, or somebody waits for the connections that they had. */
  begins(): void {
    if (this.#resting) this.#arm(LOOK_MS);
  }

  ends(lane: Lane): void {
    this.#lanes.delete(lane);
  }

  close(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#lanes.clear();
  }

  #arm(ms: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#resting = ms === REST_MS;
    this.#timer = setTimeout(this.#tick, ms);
    this.#timer.unref();
  }

  // Timers come before sockets are read: what has arrived while this process was busy elsewhere must not look late.
  readonly #tick = (): void => {
    setImmediate(this.#look);
  };

  readonly #look = (): void => {
    if (this.#timer === null) return;
    const now = performance.now();
    let busy = false;
    for (const lane of [...this.#lanes.keys()]) {
      if (lane.look(now)) this.#suspects.push(lane);
      if (!lane.isEmpty || lane.retired !== null) busy = true;
    }
    const due = now - this.#swept > REST_MS;
    if (due) this.#swept = now;
    for (const lanes of new Set(this.#lanes.values())) {
      if (due || lanes.isWanted) lanes.sweep(now);
      // What is empty, and was in use a moment ago, is given back if it is empty at one of the next looks.
      if (lanes.isWanted) busy = true;
    }
    // An answer may have been there before, and this process too busy to read it. The next turn reads all that is there.
    if (this.#suspects.length > 0) setImmediate(this.#judge);
    if (this.#lanes.size > 0) this.#arm(busy ? LOOK_MS : REST_MS);
    else {
      this.#timer = null;
      this.#resting = false;
    }
  };
  readonly #judge = (): void => {
    const now = performance.now();
    const suspects = this.#suspects;
    this.#suspects = [];
    for (const lane of suspects) if (this.#lanes.has(lane)) lane.late(now);
  };
}
