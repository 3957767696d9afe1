import type { Logger } from 'pino';
import type { ShutdownMode } from '../../proxy/admin/siblings.js';
import type { ListenOptions } from '../../proxy/listener/listener.js';
import { failureOf } from '../failure.js';
import type { Child } from './child.js';
import type { Plan, Shared } from './messages.js';

/** The first replacement for a process that has died comes after this time, each further one after twice as long. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;
/** A process that has run for so long is not counted as one that cannot start. */
const STEADY_MS = 30_000;

export interface GenerationOptions {
  /** Starts the process that is to be number `index` of those that serve clients, or, with null, the one for the other parts. */
  readonly fork: (index: number | null) => Child;
  /** What its processes are to have in common, as it is at the moment. */
  readonly shared: () => Shared;
  /** Whether there are other parts. */
  readonly others: boolean;
  /** The processes that can be given clients are others now. */
  readonly onChange: () => void;
  /** Now that of the parent: its level may change. */
  readonly logger: () => Logger;
}

interface Place {
  readonly index: number | null;
  child: Child;
  /** ms; before the next replacement. */
  pause: number;
  /** Its process was told to end, to be started again. */
  leaving: boolean;
}

/** Processes that were started together, from the same code and configuration. */
export class Generation {
  readonly #options: GenerationOptions;
  readonly #places: Place[] = [];
  readonly #timers = new Set<NodeJS.Timeout>();
  /** Processes that die are replaced. */
  #kept = false;
  #listen: ListenOptions | null = null;
  #plan: Plan | null = null;

  constructor(options: GenerationOptions) {
    this.#options = options;
  }

  /** The configuration it was started with, or has been reloaded with. */
  get plan(): Plan {
    return this.#plan as Plan;
  }

  set plan(plan: Plan) {
    this.#plan = plan;
  }

  /** Reads the configuration, in the first of its processes. @throws what that process says of it */
  async begin(): Promise<Plan> {
    const place = this.#add(0);
    this.#plan = await place.child.plan;
    return this.#plan;
  }

  /** Starts all processes, and resolves when they can serve. @throws what the first to fail says */
  async start(listen: ListenOptions): Promise<void> {
    this.#listen = listen;
    const { workers } = this.plan;
    for (let index = 1; index < workers; index++) this.#add(index);
    if (this.#options.others) this.#add(null);
    for (const { child } of this.#places) child.go(listen, workers, this.#options.shared());
    await Promise.all(this.#places.map(({ child }) => child.ready));
  }

  /** From now on those that die are replaced. */
  keep(): void {
    this.#kept = true;
    for (const place of this.#places) this.#watch(place);
  }

  /** Those that can be given clients. */
  get proxies(): Child[] {
    return this.#places.filter(({ index, child }) => index !== null && child.serving).map(({ child }) => child);
  }

  /** Starts the process of the other parts again. */
  replaceOthers(): void {
    const place = this.#places.find(({ index }) => index === null);
    if (place === undefined) return;
    place.leaving = true;
    place.child.stop('now', 0);
  }

  /** Ends it. May be called again, with another mode. */
  stop(mode: ShutdownMode, patienceMs: number): void {
    this.#kept = false;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    for (const { index, child } of this.#places) child.stop(index === null ? 'now' : mode, patienceMs);
  }

  kill(): void {
    this.#kept = false;
    for (const { child } of this.#places) child.kill();
  }

  /** Resolves when none of its processes is left. To be called after `stop` or `kill`. */
  async ended(): Promise<void> {
    await Promise.all(this.#places.map(({ child }) => child.ended));
  }

  #add(index: number | null): Place {
    const place: Place = { index, child: this.#options.fork(index), pause: FIRST_PAUSE_MS, leaving: false };
    this.#places.push(place);
    return place;
  }

  #watch(place: Place): void {
    const since = performance.now();
    void place.child.ended.then((how) => {
      if (!this.#kept) return;
      if (place.leaving) {
        place.leaving = false;
        this.#replace(place);
        return;
      }
      if (performance.now() - since > STEADY_MS) place.pause = FIRST_PAUSE_MS;
      this.#options
        .logger()
        .error({ ended: how, child: place.child.pid, retryMs: place.pause }, 'a process has ended and is replaced');
      this.#options.onChange();
      const timer = setTimeout(() => {
        this.#timers.delete(timer);
        this.#replace(place);
      }, place.pause);
      this.#timers.add(timer);
      place.pause = Math.min(LONGEST_PAUSE_MS, place.pause * 2);
    });
  }

  #replace(place: Place): void {
    const child = this.#options.fork(place.index);
    place.child = child;
    this.#watch(place);
    child.go(this.#listen as ListenOptions, this.plan.workers, this.#options.shared());
    child.ready.then(
      () => this.#options.onChange(),
      (error: unknown) => {
        const { message, hint } = failureOf(error);
        if (this.#kept) this.#options.logger().error({ hint }, message);
        child.kill();
      },
    );
  }
}
