import type { Logger } from 'pino';
import type { Decision, Decisions } from '../../topology/catalog/decisions.js';
import type { CoordinatorId } from '../../topology/prepared-transactions.js';

/** What was carried out is forgotten after so long, ms, or when so many have come together. */
const FORGET_MS = 1_000;
const FORGET_AT_ONCE = 500;

interface Waiting {
  readonly decision: Decision;
  readonly resolve: (recorded: boolean) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Decisions of one coordinator, as few statements: those that come while one is under way go together in the next, so that a busy proxy takes no more than
 * one connection of the catalog, and the catalog flushes its log once for all of them.
 */
export class DecisionBatches {
  readonly #decisions: Decisions;
  readonly #id: CoordinatorId;
  readonly #logger: Logger;
  #waiting: Waiting[] = [];
  #deciding = false;
  #done: bigint[] = [];
  #timer: NodeJS.Timeout | null = null;

  constructor(decisions: Decisions, id: CoordinatorId, logger: Logger) {
    this.#decisions = decisions;
    this.#id = id;
    this.#logger = logger;
  }

  /** As `Decisions.decide`. */
  decide(decision: Decision): Promise<boolean> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ decision, resolve, reject });
      if (!this.#deciding) void this.#decideAll();
    });
  }

  async #decideAll(): Promise<void> {
    this.#deciding = true;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting;
      this.#waiting = [];
      try {
        const recorded = await this.#decisions.decide(
          this.#id,
          batch.map(({ decision }) => decision),
        );
        for (const { resolve } of batch) resolve(recorded);
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    this.#deciding = false;
  }

  /** It is committed everywhere, for good: the decision is of no use any more. */
  forget(number: bigint): void {
    this.#done.push(number);
    if (this.#done.length >= FORGET_AT_ONCE) void this.flush();
    else this.#timer ??= setTimeout(() => void this.flush(), FORGET_MS);
  }

  /** Forgets now. Never rejects: what stays is in nobody's way, and is forgotten with the next. @returns whether nothing is left to be forgotten */
  async flush(): Promise<boolean> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const numbers = this.#done;
    if (numbers.length === 0) return true;
    this.#done = [];
    try {
      await this.#decisions.forget(this.#id, numbers);
      return true;
    } catch (error) {
      this.#done.push(...numbers);
      this.#logger.warn({ err: error, decisions: numbers.length }, 'could not forget decisions that are carried out');
      return false;
    }
  }
}
