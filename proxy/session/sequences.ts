import type { Backend } from '../backend/backend.js';
import type { StatementPlan } from '../router/route.js';
import { encodeQuery } from '../wire/frontend.js';
import { type Execution, firstThat, planOf } from './placement.js';
import { RefusedError } from './refusals.js';

const DISCARD_SEQUENCES = encodeQuery('DISCARD SEQUENCES');

/** The reason for which a session is pinned that may ask for currval or lastval. */
export const PINNED_FOR_CURRVAL = 'currval or lastval';

/**
 * currval and lastval for one session. What they answer lies in the server process that drew the numbers, so they are exact there
 * as long as nobody else has drawn any by it since, and nowhere else.
 *
 * Every write counts as one that may have drawn a number: triggers and defaults do so unseen.
 */
export class Sequences {
  readonly #session: number;
  /** Where this session has written, if it is one connection. */
  #drawn: Backend | 'several' | null = null;

  /** @param session its id */
  constructor(session: number) {
    this.#session = session;
  }

  /** Where an answer would be exact: there, anywhere (after `clean`: PostgreSQL's error says that there is none), or nowhere. */
  get place(): Backend | 'anywhere' | 'nowhere' {
    const drawn = this.#drawn;
    if (drawn === null) return 'anywhere';
    if (drawn === 'several' || drawn.lost !== null || drawn.sequencesOf !== this.#session) return 'nowhere';
    return drawn;
  }

  /** Whether the connection holds numbers that others have drawn, perhaps. */
  isForeign(backend: Backend): boolean {
    return backend.sequencesOf !== null && backend.sequencesOf !== this.#session;
  }

  /** Has the connection forget them before what is sent next, without waiting. */
  cleanFirst(backend: Backend): void {
    backend.send(DISCARD_SEQUENCES, { kind: 'query', internal: true });
    backend.sequencesOf = null;
  }

  /** Has the connection forget all of them. */
  async clean(backend: Backend): Promise<void> {
    await backend.runInternal(DISCARD_SEQUENCES);
    backend.sequencesOf = null;
  }

  /**
   * To be called before statements that ask are sent, unless their transaction has drawn there itself; `unsynced`: a batch is open.
   * @param drawing which statements `cleanFirst` is called for
   * @returns resolves when the connection has done what it had to be asked for; null: nothing
   * @throws RefusedError when the answer could be another's
   */
  prepare(
    backend: Backend,
    executions: readonly Execution[],
    unsynced: boolean,
    drawing: (plan: StatementPlan) => boolean,
  ): Promise<void> | null {
    const { place } = this;
    if (place === backend) return null;
    // Drawn in this very Query or batch, behind a clean start.
    const first = firstThat(executions, drawing);
    if (first >= 0 && first < firstThat(executions, asksSequences) && !unsynced) return null;
    // Defaults mostly draw what they then ask for; if not, the server says that there is none.
    const fresh = place === 'anywhere' || firstThat(executions, asksItself) < 0;
    if (fresh && !unsynced) {
      return backend.sequencesOf === null ? null : this.clean(backend);
    }
    throw new RefusedError(
      '0A000',
      'currval() and lastval() depend on the server connection that drew the number, and this session has used others since, or others have used it',
      {
        hint: 'Use RETURNING, or run both statements in one transaction. While one shard has everything, sessions of this user keep their connection from now on, so that the next ones are answered.',
      },
    );
  }

  /** The statements go to this connection now. */
  sending(backend: Backend, executions: readonly Execution[]): void {
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan === null || plan.kind === 'read' || plan.kind === 'utility') continue;
      this.mayHaveDrawn(backend);
    }
  }

  /** Something that changes rows goes to this connection now. */
  mayHaveDrawn(backend: Backend): void {
    backend.sequencesOf = this.isForeign(backend) ? 'several' : this.#session;
    this.#drawn = this.#drawn === null || this.#drawn === backend ? backend : 'several';
  }

  /** From here on the session draws on one connection, which holds nothing from before. */
  restart(): void {
    if (typeof this.place === 'string') this.#drawn = null;
  }

  /** DISCARD ALL or DISCARD SEQUENCES. */
  discarded(backend: Backend | null): void {
    if (backend !== null) backend.sequencesOf = null;
    this.#drawn = null;
  }
}

/** Whether the statement asks for currval or lastval, itself or by a default. */
export function asksSequences(plan: StatementPlan): boolean {
  return plan.asksSequences !== undefined;
}

const asksItself = (plan: StatementPlan): boolean => plan.asksSequences === 'itself';

/** Whether the statement draws a number, as far as its plan can be relied on. */
export function draws(plan: StatementPlan): boolean {
  return plan.drawsNothing !== true && mayDraw(plan);
}

/** Whether the statement is likely to draw a number. */
export function mayDraw(plan: StatementPlan): boolean {
  if (plan.kind !== 'write' || plan.command === 'UPDATE' || plan.command === 'DELETE') return false;
  return plan.asksSequences !== 'itself';
}
