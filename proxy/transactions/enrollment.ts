import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Decisions } from '../../topology/catalog/decisions.js';
import { ForeshardError } from '../../topology/errors.js';
import type { CoordinatorId, TransactionName } from '../../topology/prepared-transactions.js';
import { DecisionBatches } from './decision-batches.js';

/** The lease of this proxy, as far as it matters here. */
export interface CoordinatorLease {
  readonly id: string;
  /** Another one after the lease had ended: then whoever wanted to has fenced what enrolled before. */
  readonly era: number;
}

/** This process as a coordinator, for one lease. */
export class Enrolled {
  readonly id: CoordinatorId;
  readonly batches: DecisionBatches;
  #last = 0n;

  constructor(id: CoordinatorId, batches: DecisionBatches) {
    this.id = id;
    this.batches = batches;
  }

  next(): TransactionName {
    this.#last += 1n;
    return { coordinator: this.id, number: this.#last };
  }
}

/** Enrolls when the first transaction needs it, and anew when the lease is another one or the coordinator was found to be fenced. */
export class Enrollment {
  readonly #decisions: Decisions;
  readonly #lease: CoordinatorLease;
  readonly #logger: Logger;
  #current: { readonly era: number; readonly enrolled: Promise<Enrolled> } | null = null;
  /** All that may have rows in the catalog. */
  readonly #all = new Set<Enrolled>();

  constructor(decisions: Decisions, lease: CoordinatorLease, logger: Logger) {
    this.#decisions = decisions;
    this.#lease = lease;
    this.#logger = logger;
  }

  /** @throws ForeshardError 57P03 when the lease has ended; what the catalog throws */
  get(): Promise<Enrolled> {
    const { era } = this.#lease;
    if (this.#current?.era !== era) {
      const before = this.#current;
      const enrolled = this.#enroll();
      this.#current = { era, enrolled };
      enrolled.catch(() => {
        if (this.#current?.enrolled === enrolled) this.#current = null;
      });
      before?.enrolled.then(({ id }) => this.#fence(id)).catch(() => undefined); // never enrolled
    }
    return (this.#current as { enrolled: Promise<Enrolled> }).enrolled;
  }

  /** It decides nothing any more. */
  fenced({ id }: Enrolled): void {
    const { enrolled } = this.#current ?? {};
    void enrolled?.then((current) => {
      if (current.id === id && this.#current?.enrolled === enrolled) this.#current = null;
    });
  }

  /** Takes back what has left nothing anywhere; the others are fenced, for whoever comes to look after them. @param isLeft whether anything may be */
  async close(isLeft: (id: CoordinatorId) => boolean): Promise<void> {
    await this.#current?.enrolled.catch(() => undefined); // counted below, if it has come to be
    for (const { id, batches } of this.#all) {
      const forgotten = await batches.flush();
      try {
        if (forgotten && !isLeft(id)) await this.#decisions.leave(id);
        else await this.#decisions.fence(id);
      } catch (error) {
        this.#logger.warn(
          { err: error, coordinator: id },
          'could not take the coordinator back; others see to it when the lease has ended',
        );
      }
    }
  }

  async #enroll(): Promise<Enrolled> {
    const id = randomUUID() as CoordinatorId;
    const enrolled = new Enrolled(id, new DecisionBatches(this.#decisions, id, this.#logger));
    this.#all.add(enrolled);
    if (!(await this.#decisions.enroll(id, this.#lease.id))) {
      this.#all.delete(enrolled);
      throw new ForeshardError('57P03', "this proxy's lease has ended: nothing can be committed on several shards", {
        hint: 'Nothing has been committed; try again when the proxy reaches the catalog.',
      });
    }
    return enrolled;
  }

  async #fence(id: CoordinatorId): Promise<void> {
    await this.#decisions.fence(id).catch((error: unknown) => {
      this.#logger.warn(
        { err: error, coordinator: id },
        'could not fence a coordinator of an earlier lease; it goes with the proxy',
      );
    });
  }
}
