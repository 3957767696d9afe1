import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner, Expectation } from '../backend/expectation.js';
import { InternalStatementError } from '../backend/internal-statement.js';
import { cancelAll } from '../gather/connections.js';
import type { Analyzed } from '../router/route.js';
import { CLOSE_COMPLETE, decodeCommandComplete, decodeParameterDescription, rowsOfTag } from '../wire/backend.js';
import { decodeErrorFields, encodeErrorResponse, fieldsOfError, isFatal } from '../wire/error-response.js';
import { type BindMessage, encodeBind, encodeDescribe, encodeExecute, encodeParse, SYNC } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { IDLE } from '../wire/transaction-status.js';
import { allDone } from './all-done.js';
import type { ClientSession, SpreadRun } from './client-session.js';
import type { Footprint } from './footprint.js';
import { bring, changed, type Given, idOf, LOG, LOG_NOTHING, lockBase, lockHot, ship, take } from './halves-steps.js';
import type { Execution, Placement } from './placement.js';
import { RefusedError, transactionMoved } from './refusals.js';
import type { Units } from './units.js';

/** What the client has sent. */
export type HalvesStatement =
  | { readonly kind: 'simple'; readonly frame: Buffer }
  | {
      readonly kind: 'extended';
      /** Of the parameters. */
      readonly oids: readonly number[];
      readonly bind: BindMessage;
      /** Which of these the client waits for the answers of. */
      readonly parsed: boolean;
      readonly describesStatement: boolean;
      readonly describesPortal: boolean;
      readonly closesPortal: boolean;
    };

type Placed = Placement & { kind: 'halves' };

/** One that the client has not begun; that the shards wait for each other is not its idleness. */
const BEGIN = Buffer.from('BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0');

/**
 * A statement that writes, or locks, both halves of rows of a table whose columns are split, while the halves are on different shards. It runs where the base
 * half is, as it came; what it did there is done to the hot half, in the transaction's branch on the other shard, before the client is told that it is done. Hot
 * columns that it reads are brought before. Outside of a transaction block it has a transaction of its own, which is committed in two phases.
 *
 * Always the base half first: who has locked that has the row, and deadlocks are those that one server would have.
 */
export class HalvesWrite implements BackendOwner, SpreadRun {
  readonly rowsAtStake = true;
  /** It fails the transaction itself. */
  readonly failure = null;
  /** What it touches the transaction says. */
  readonly footprint: Footprint;
  /** The shard does not own a row any more; nothing has been told or done. */
  moved = false;
  readonly #session: ClientSession;
  readonly #units: Units;
  readonly #analyzed: Analyzed;
  readonly #executions: readonly Execution[];
  readonly #statement: HalvesStatement;
  /** When the client sent it, on performance.now()'s clock. */
  readonly #since: number;
  #placement: Placed;
  /** It has a transaction of its own. */
  readonly #alone: boolean;
  #signal: AbortSignal | null = null;
  #abandoned = false;
  /** Whose the connection is otherwise. */
  #owner: BackendOwner | null = null;
  /** What the client is to be told before the first row. */
  #held: Buffer[] = [];
  /** The client has been told something. */
  #told = false;
  /** Its server has taken the text, and the client has been told so, if it was to be. */
  parsed = false;
  #error: Buffer | null = null;
  /** Its server is ready for what comes behind the client's statement. */
  #answered: () => void = () => undefined;
  #completion: Buffer | null = null;

  constructor(
    session: ClientSession,
    units: Units,
    placement: Placed,
    executions: readonly Execution[],
    analyzed: Analyzed,
    statement: HalvesStatement,
    since: number,
  ) {
    this.#session = session;
    this.#units = units;
    this.#placement = placement;
    this.#executions = executions;
    this.#analyzed = analyzed;
    this.#statement = statement;
    this.#since = since;
    this.#alone = !session.lease.inBlock;
    this.footprint = { topology: placement.topology, touches: [], everything: false, writesReference: false };
  }

  /** Where something runs now. */
  get backends(): readonly Backend[] {
    const { backend } = this.#session.lease;
    return backend === null || backend.quiet ? [] : [backend];
  }

  /** @returns false when it is to be placed again: what names mean, or where its rows are, has changed before anything was done */
  async run(signal: AbortSignal): Promise<boolean> {
    this.#signal = signal;
    try {
      if (this.#alone && !(await this.#begin())) return false;
      await this.#carryOut();
    } catch (error) {
      return this.#fail(error);
    }
    if (!this.#alone) this.#goOn();
    return true;
  }

  /** @returns false when it is no such statement any more */
  async #begin(): Promise<boolean> {
    const { lease, settings, wait } = this.#session;
    lease.begin(BEGIN);
    settings.begin();
    const placement = await lease.prepare(this.#executions, wait);
    if (placement.kind === 'halves') {
      this.#placement = placement;
      return true;
    }
    await this.#rollBack();
    return false;
  }

  async #carryOut(): Promise<void> {
    const session = this.#session;
    const { shards, halves, touches } = this.#placement;
    const [shard] = shards;
    const started = performance.now();
    const { brings, locks } = halves.apart;
    this.#units.beginUnit(session.lease.backend as Backend);
    for (const { plan } of this.#analyzed.statements) this.#units.sent(plan);
    session.ifStale(null);
    session.ifUnseen(null);
    if (brings || locks) await this.#carryOutOnLocked(shard);
    else await this.#writeBoth(shard, null);
    const completion = this.#completion as Buffer;
    const rows = rowsOfTag(decodeCommandComplete(completion)) ?? 0;
    this.#turnTo(shard);
    const { bytesForwarded } = session;
    const record = () =>
      session.services.load.record({
        template: this.#analyzed.template,
        shard,
        touches,
        write: true,
        rows,
        bytes: bytesForwarded,
        ms: performance.now() - started,
      });
    if (!this.#alone) {
      record();
      return;
    }
    this.#units.completed(this.#executions[0] as Execution, decodeCommandComplete(completion));
    await this.#units.commitSpan((reply) => this.#tellEnd(reply), completion);
    record();
  }

  /** It is about rows as they are: both halves of all that it may be about are locked first, and the hot columns brought if it reads them. */
  async #carryOutOnLocked(shard: ShardName): Promise<void> {
    const { halves, hotShard } = this.#placement;
    const { brings, locks } = halves.apart;
    const text = this.#session.services.router.lockBaseText(this.#analyzed, 0);
    if (text === null)
      throw new RefusedError(
        '0A000',
        'the rows that the statement is about cannot be found without columns that are on another shard',
        { hint: 'Restrict it by the primary key.' },
      );
    const base = this.#turnTo(shard);
    const given = await this.#given(base);
    const check = () => this.#check();
    const keys = await lockBase(base, text, given);
    const hot = await lockHot(this.#turnTo(hotShard), halves, keys, check);
    const isBrought = brings ? await bring(this.#turnTo(shard), halves, keys, hot) : null;
    if (!locks) {
      await this.#writeBoth(shard, isBrought);
      return;
    }
    const there = this.#turnTo(shard);
    // Rows that have come since were read with hot columns that do not count.
    const [, again] = await allDone([this.#relay(there), lockBase(there, text, given)]);
    const locked = new Set(keys.map(idOf));
    if (again.some((key) => !locked.has(idOf(key)))) throw changed();
  }

  /** @param isBrought whether a row's hot columns have been; null: none needed to be */
  async #writeBoth(shard: ShardName, isBrought: Awaited<ReturnType<typeof bring>> | null): Promise<void> {
    const { halves, hotShard } = this.#placement;
    const base = this.#turnTo(shard);
    const [, , written] = await allDone([
      base.runInternal(LOG),
      this.#relay(base),
      take(base, halves.table, halves.split, halves.apart.assigned),
    ]);
    if (isBrought !== null && written.some((one) => one.op !== 'I' && !isBrought(one))) throw changed();
    if (written.length === 0) return;
    await ship(this.#turnTo(hotShard), halves, halves.apart.assigned, written, () => this.#check());
  }

  #turnTo(shard: ShardName): Backend {
    this.#check();
    return this.#session.lease.turnTo(shard);
  }

  /** @throws when the client does not want it any more, or it is not to go on */
  #check(): void {
    this.#signal?.throwIfAborted();
    if (this.#abandoned) throw new Error('the client has gone away');
  }

  /** The parameters that the client has bound, with their types: its own text says these, ours may not. Null: there are none. */
  async #given(base: Backend): Promise<Given | null> {
    if (this.#statement.kind === 'simple') return null;
    const { bind, oids } = this.#statement;
    const described: Buffer[] = [];
    await base.askInternal([
      { kind: 'parse', message: encodeParse('', this.#analyzed.text, oids) },
      {
        kind: 'describe',
        message: encodeDescribe('statement', ''),
        replied: (type, frame) => type === BACKEND.ParameterDescription && described.push(kept(frame)),
      },
    ]);
    const [frame] = described;
    return {
      oids: frame === undefined ? [] : decodeParameterDescription(frame),
      formats: bind.formats,
      values: bind.values,
    };
  }

  /** Has the client's statement carried out, and answered but for its CommandComplete. */
  #relay(base: Backend): Promise<void> {
    const owner = base.owner as BackendOwner;
    this.#owner = owner;
    base.unnamed = null;
    base.hand(this);
    return new Promise((resolve, reject) => {
      base.send(this.#messages, {
        kind: this.#statement.kind === 'simple' ? 'query' : 'batch',
        internal: false,
        undo: () => {
          base.hand(owner);
          reject(base.lost ?? new Error('server connection lost'));
        },
      });
      this.#answered = () => {
        base.hand(owner);
        if (this.#error === null) resolve();
        else reject(new InternalStatementError(this.#error));
      };
    });
  }

  get #messages(): Buffer | readonly Buffer[] {
    const statement = this.#statement;
    if (statement.kind === 'simple') return statement.frame;
    return [
      encodeParse('', this.#analyzed.text, statement.oids),
      ...(statement.describesStatement ? [encodeDescribe('statement', '')] : []),
      encodeBind({ ...statement.bind, statement: '', portal: '' }),
      ...(statement.describesPortal ? [encodeDescribe('portal', '')] : []),
      encodeExecute(''),
      SYNC,
    ];
  }

  #tell(bytes: Buffer): void {
    if (this.#told) this.#session.write(bytes);
    else this.#held.push(kept(bytes));
  }

  #tellHeld(): void {
    this.#told = true;
    for (const bytes of this.#held.splice(0)) this.#session.write(bytes);
  }

  /** The answer's end: CommandComplete, or an ErrorResponse. */
  #tellEnd(reply: Buffer): void {
    this.#tellHeld();
    this.#session.write(this.#withEnd(reply));
  }

  #withEnd(reply: Buffer): Buffer {
    const closes = this.#statement.kind === 'extended' && this.#statement.closesPortal;
    return closes && reply === this.#completion ? Buffer.concat([reply, CLOSE_COMPLETE]) : reply;
  }

  /** The transaction goes on: the client is told by what is answered to our last statement in it. */
  #goOn(): void {
    const session = this.#session;
    const base = session.lease.backend as Backend;
    const completion = this.#completion as Buffer;
    this.#tellHeld();
    session.lease.serverSettings.tellParameters(base);
    session.expectReady();
    base.send(LOG_NOTHING, {
      kind: 'query',
      internal: false,
      completed: () => this.#units.completed(this.#executions[0] as Execution, decodeCommandComplete(completion)),
      tell: (type, frame) => (type === BACKEND.CommandComplete ? this.#withEnd(completion) : frame),
    });
  }

  /** @returns false when it is to be tried again elsewhere */
  async #fail(error: unknown): Promise<boolean> {
    const session = this.#session;
    const { lease } = session;
    // The session has been closed: by the loss of a connection, or by the client, and then whoever closes it looks after what is open.
    if (this.#abandoned || (lease.backend === null && lease.transaction === null)) return true;
    const refused = error instanceof InternalStatementError && decodeErrorFields(error.frame).sqlstate === 'SH001';
    const placedBy = this.#placement.topology.epoch;
    try {
      if (!this.#alone) lease.turnTo(this.#placement.shards[0]);
    } catch {
      // It is lost; then the branch where it is fails the others.
    }
    let frame = refused ? encodeErrorResponse(fieldsOfError(transactionMoved())) : this.#frameOf(error);
    if (this.#alone) {
      await this.#rollBack();
      if (this.#abandoned) return true;
      if (refused && !this.#told) {
        try {
          await this.#units.untilMoved(this.#since, placedBy);
          this.moved = true;
          return false;
        } catch (late) {
          frame = this.#frameOf(late);
        }
      }
    }
    // As PostgreSQL does, what came of it before it failed is told.
    this.#tellHeld();
    await this.#units.failWith(frame);
    return true;
  }

  #frameOf(error: unknown): Buffer {
    const frame =
      error instanceof InternalStatementError ? error.frame : encodeErrorResponse(this.#units.fieldsOf(error));
    return this.#session.worded(frame);
  }

  /** Ends its own transaction. */
  async #rollBack(): Promise<void> {
    const session = this.#session;
    const { lease } = session;
    const { backend } = lease;
    if (backend !== null && backend.lost === null && backend.status !== IDLE) await this.#rollBackOn(backend);
    await lease.endSpan();
    if (backend === null) this.#session.settings.end(false);
    else await session.transactionEnded(backend, false);
    lease.transaction = null;
    if (lease.backend !== null) lease.giveBackUnlessPinned();
    session.services.live.released();
  }

  /** A cancel request that came late may hit this. */
  async #rollBackOn(backend: Backend): Promise<void> {
    const { lease } = this.#session;
    await lease.rollBack(backend).catch(async (error: unknown) => {
      if (backend.lost !== null) throw error;
      await lease.rollBack(backend);
    });
  }

  pause(): void {
    // whoever reads the rows is the lease's connection, which the session pauses
  }

  resume(): void {
    // as above
  }

  /** The client has gone: what runs is of no use, unless it is being committed. */
  abandon(): void {
    if (this.#session.lease.span?.committing === true) return;
    this.#abandoned = true;
    cancelAll(this.backends, this.#session.services.logger);
  }

  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void {
    switch (type) {
      case BACKEND.ErrorResponse:
        if (isFatal(decodeErrorFields(frame))) this.#owner?.onReply(backend, type, frame, expectation);
        else this.#error ??= kept(frame);
        return;
      case BACKEND.ParameterStatus:
      case BACKEND.NotificationResponse:
        this.#owner?.onReply(backend, type, frame, expectation);
        return;
      case BACKEND.CommandComplete:
        this.#completion = kept(frame);
        return;
      case BACKEND.ParseComplete:
        this.parsed = true;
        if (this.#statement.kind === 'extended' && this.#statement.parsed) this.#tell(frame);
        return;
      default:
        this.#tell(frame);
    }
  }

  onData(_backend: Backend, slice: Buffer): void {
    this.#session.bytesForwarded += slice.length;
    if (!this.#told) this.#tellHeld();
    this.#session.write(slice);
  }

  onCopyIn(): void {
    throw new Error('COPY is not carried out so');
  }

  onReady(_backend: Backend, _status: number, internal: boolean): void {
    if (!internal) this.#answered();
  }

  onLost(backend: Backend, error: Error): void {
    this.#owner?.onLost(backend, error);
  }

  onWritable(backend: Backend): void {
    this.#owner?.onWritable(backend);
  }
}
