import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Pool, Waiter } from '../backend/pool.js';
import type { Analyzed, BoundParams, StatementPlan } from '../router/route.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { ClientOutput } from './client-output.js';
import type { Footprint } from './footprint.js';
import type { Inbox } from './inbox.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import { queueNotice } from './queue-notice.js';
import type { ClientStatements } from './statements.js';
import type { StraightAnswer } from './straight-answer.js';
import type { Units } from './units.js';

/** There is no connection yet. */
export const LATER = 'later';

export interface StraightFirstParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly output: ClientOutput;
  readonly inbox: Inbox;
  readonly statements: ClientStatements;
  readonly units: Units;
}

/**
 * The first plain statement of a transaction, or one without: the shard that it belongs to, and a connection there. When there is none, this object waits
 * in the pool's queue with nothing but the bytes: what is made of them would be moved about by the garbage collector meanwhile, and may be another
 * thing by then. Given a connection, in the turn in which another client gives it back, the statement is looked at once more, as if it had just come.
 */
export class StraightFirst implements Waiter {
  /** See Waiter. */
  since = 0;
  told = false;
  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #statements: ClientStatements;
  readonly #units: Units;
  readonly #answer: StraightAnswer;
  /** Sends the statement to this connection. @returns false: another way has to see to it */
  readonly #take: (bytes: Buffer, on: Backend) => boolean;
  /** As it was placed. */
  #shard = '' as ShardName;
  #footprint: Footprint | null = null;
  #writes = false;
  /** What waits, and the pool in whose queue it does; null: nothing. */
  #bytes: Buffer | null = null;
  #pool: Pool | null = null;

  constructor(parts: StraightFirstParts, answer: StraightAnswer, take: (bytes: Buffer, on: Backend) => boolean) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#statements = parts.statements;
    this.#units = parts.units;
    this.#answer = answer;
    this.#take = take;
  }

  /**
   * The connection that it can be sent to now. Null: another way has to see to it, on the connection that the lease may have by now.
   * @param taken the one that was waited for, if one was
   */
  connect(analyzed: Analyzed, params: BoundParams | null, taken: Backend | null): Backend | typeof LATER | null {
    const { lease, services } = this.#session;
    if (!this.#place(analyzed, params, taken)) return null;
    if (taken !== null) return taken.shard === this.#shard && this.#suits(taken) ? taken : null;
    const pool = services.pool(this.#shard);
    const idle = pool.takeIdle();
    if (idle === null) {
      this.#pool = pool;
      return pool.mayWait ? LATER : null;
    }
    lease.use(idle);
    return this.#suits(idle) ? idle : null;
  }

  /** Where it may go now: nothing else has to be done before it than what `Lease.startPlain` does. */
  #place(analyzed: Analyzed, params: BoundParams | null, taken: Backend | null): boolean {
    const { lease, services } = this.#session;
    const { live, replicas, router } = services;
    const plan = analyzed.statements[0]?.plan;
    if (plan?.plain !== true || analyzed.statements.length !== 1 || analyzed.syntaxError) return false;
    if (!live.schemaReady || !lease.maySendPlain(plan)) return false;
    const route = router.route(analyzed, 0, params, live.current);
    if (route.kind === 'shard') {
      if (route.hot !== undefined) return false;
      this.#shard = route.shard;
    } else if (route.kind !== 'any') return false;
    else
      this.#shard = taken !== null && route.shards.includes(taken.shard) ? taken.shard : (route.shards[0] as ShardName);
    // A read on its own is for replicas, as far as there are any. Lanes have been asked, and it is not for them now.
    if (lease.transaction === null && plan.laneSafe === true && replicas.served.length > 0) return false;
    const footprint: Footprint = {
      topology: live.current,
      touches: route.touches,
      everything: false,
      writesReference: route.writesReference,
    };
    if (!live.admits(footprint, lease.transaction)) return false;
    this.#footprint = footprint;
    this.#writes = route.writes;
    this.#answer.analyzed = analyzed;
    this.#answer.plan = plan;
    this.#answer.touches = route.touches;
    return true;
  }

  /** Whether the connection, which nobody has used since it was taken, needs nothing. */
  #suits(backend: Backend): boolean {
    const { lease, lookup } = this.#session;
    if (!lease.serverSettings.has(backend) || backend.byName || backend.mayAnswerSyncs) return false;
    if (!lookup.agrees(backend.connection.parameters)) return false;
    backend.prepareFor(this.#statements.schemaVersion);
    return true;
  }

  /** What was found is not used. */
  forget(): void {
    this.#footprint = null;
    this.#answer.forget();
  }

  /** It goes to this connection now. */
  begin(backend: Backend, bytes: Buffer): void {
    const session = this.#session;
    const { lease } = session;
    const plan = this.#answer.plan as StatementPlan;
    const { transaction } = lease;
    lease.startPlain(plan, this.#footprint as Footprint);
    this.#footprint = null;
    this.#answer.expect(true, transaction === null ? IDLE : IN_TRANSACTION);
    this.#units.beginUnit(backend);
    this.#units.sent(plan);
    // The way of all others looks at the messages once more, before what came behind them.
    const again = async () => this.#inbox.unread(bytes);
    session.ifUnseen(again);
    session.ifStale(this.#answer.statement === null ? null : again);
    if (this.#writes) this.#units.closeGate(transaction?.prelude ?? [], performance.now(), again);
  }

  /** Stands in the pool's queue; no other message is looked at. */
  wait(bytes: Buffer): void {
    this.#bytes = bytes;
    this.forget();
    this.#loop.hold();
    this.#session.activity.waitBegins();
    (this.#pool as Pool).wait(this);
  }

  /** See Waiter: called in the middle of what gives the connection back. */
  given(backend: Backend): void {
    const bytes = this.#waited();
    this.#session.lease.use(backend);
    try {
      if (this.#take(bytes, backend)) {
        this.#loop.goOn();
        return;
      }
    } catch (error) {
      this.#loop.goOn();
      this.#session.close(error);
      return;
    }
    this.forget();
    // Not in here: it may give the connection back, to the next who waits.
    this.#loop.follow(Promise.resolve().then(() => this.#inbox.unread(bytes)));
  }

  /** See Waiter. */
  refused(error: Error): void {
    this.#waited();
    this.#loop.follow(this.#units.fail(error));
  }

  /** See Waiter. */
  slow(): void {
    this.#output.write(queueNotice((this.#pool as Pool).shard));
  }

  /** The client wants no more of what waits. @returns whether something did */
  cancel(error: Error): boolean {
    if (!this.#leaves()) return false;
    this.refused(error);
    return true;
  }

  /** The client has gone. */
  close(): void {
    if (!this.#leaves()) return;
    this.#waited();
    this.#loop.goOn();
  }

  #leaves(): boolean {
    if (this.#bytes === null) return false;
    this.#pool?.leave(this);
    return true;
  }

  #waited(): Buffer {
    const bytes = this.#bytes as Buffer;
    this.#bytes = null;
    this.#pool = null;
    this.#session.activity.waitEnds();
    return bytes;
  }
}
