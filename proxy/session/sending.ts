import { soleShard } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { SETTINGS_OF_FUNCTION, type StatementPlan } from '../router/route.js';
import { IDLE } from '../wire/transaction-status.js';
import type { Lease, LeaseClient } from './lease.js';
import type { Execution } from './placement.js';
import { firstThat, planOf } from './placement.js';
import { draws, mayDraw, PINNED_FOR_CURRVAL } from './sequences.js';
import { handsOverSettings, isDdl, MAY_CHANGE_SETTINGS, tying } from './statement-ties.js';

/** Takes note of what statements do to the connection that they are sent to now: settings, sequences, and what keeps it the client's. */
export class Sending {
  readonly #client: LeaseClient;
  readonly #lease: Lease;

  constructor(client: LeaseClient, lease: Lease) {
    this.#client = client;
    this.#lease = lease;
  }

  /** The statements go to this connection now. */
  sending(backend: Backend, executions: readonly Execution[]): void {
    const { asksSequences, live, router, schema } = this.#client.services;
    const { sequences } = this.#lease;
    this.#lease.span?.sending(executions);
    // What they run may be something else than what is known of it.
    const doubtful =
      this.#lease.transaction?.madeCode === true ||
      schema.mayRunUnread(executions) ||
      (executions.length > 1 && firstThat(executions, isDdl) >= 0);
    if (doubtful) {
      this.#lease.pinning.doubt();
      this.#lease.settingsUnsure = true;
      this.#lease.transaction?.said.tie(MAY_CHANGE_SETTINGS);
      if (!this.#lease.unsynced && this.#lease.transaction?.draws !== true && sequences.isForeign(backend))
        sequences.cleanFirst(backend);
    }
    if (firstThat(executions, this.drawing(executions)) >= 0 && !this.#lease.unsynced) {
      // A user's session that asks outside of a transaction keeps its connection. In one, what it draws is told from what was drawn before.
      const pins = asksSequences.value && soleShard(live.current) !== null;
      const inBlock = backend.status !== IDLE || executions.length > 1;
      if ((pins || inBlock) && sequences.place !== backend && backend.sequencesOf !== null)
        sequences.cleanFirst(backend);
      if (pins) {
        sequences.restart();
        this.#lease.pinning.add(PINNED_FOR_CURRVAL);
      }
      if (this.#lease.transaction !== null && inBlock) this.#lease.transaction.draws = true;
    }
    sequences.sending(backend, executions);
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan === null) continue;
      this.#lease.pinning.sending(plan);
      const ties = tying(plan);
      if (ties !== null) this.#lease.transaction?.said.tie(ties);
      if (!plan.unsureOfState && !plan.executesText) continue;
      // Which of PostgreSQL's settings a function has made the server tells, but not of custom ones.
      this.#lease.settingsUnsure = true;
      const text = execution.analyzed.text.toString('latin1');
      if (plan.command === 'DO' ? router.mayKeepSettings(text) : handsOverSettings(text, execution))
        this.#lease.pinning.add(SETTINGS_OF_FUNCTION);
    }
  }

  /** Which statements are taken to draw numbers: what tables do by themselves may have been changed a moment ago. */
  drawing(executions: readonly Execution[]): (plan: StatementPlan) => boolean {
    const sure =
      this.#client.services.schema.fresh &&
      this.#lease.transaction?.changedSchema !== true &&
      (executions.length === 1 || firstThat(executions, isDdl) < 0);
    return sure ? draws : mayDraw;
  }
}
