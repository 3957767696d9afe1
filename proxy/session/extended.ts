import { soleShard } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { FanOut } from '../gather/fan-out.js';
import { Gather } from '../gather/gather.js';
import type { Analyzed, Touch } from '../router/route.js';
import { BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, PARSE_COMPLETE } from '../wire/backend.js';
import type { ErrorFields } from '../wire/error-response.js';
import { decodeBind, decodeBindHead, decodeDescribe, FLUSH, rewriteBindStatement } from '../wire/frontend.js';
import { FRONTEND } from '../wire/message-types.js';
import { IDLE } from '../wire/transaction-status.js';
import { BatchReader, type Item, type Message, type Reading, syncOf } from './batch.js';
import { BatchSender } from './batch-sender.js';
import type { ClientSession } from './client-session.js';
import { HalvesWrite } from './halves-write.js';
import { LARGE_MESSAGE_BYTES } from './message-budget.js';
import type { Placement } from './placement.js';
import type { Prepared } from './readiness.js';
import { checkAgain, RefusedError } from './refusals.js';
import { checkShapes, mustCheckShapes } from './stale-plan.js';
import type { ClientStatements } from './statements.js';
import type { Transaction } from './transaction.js';
import type { Units } from './units.js';

/** A batch is sent on, without waiting for its Sync, when it has grown to this size. */
const BATCH_BYTES = 256 * 1024;
/** Where the rest of a message is to be sent whose beginning has been; `hold`: it is needed as a whole; `drop`: no more of it is. */
export type Begun = Backend | 'hold' | 'drop';

/** One statement from its Bind, or Parse, to the Sync. */
const ALONE = /^(parse )?bind (describe-portal )?execute sync$/;

/** A batch on its way. */
interface Unit {
  readonly batch: readonly Message[];
  readonly reading: Reading;
  /** When the client sent it, on performance.now()'s clock. */
  readonly since: number;
  /** How often it has been made ready before. */
  readonly times: number;
  /** It goes on with a batch that has begun. */
  readonly open: boolean;
}

/** The extended query protocol of one session: batches of messages, up to a Sync or Flush, run together on one shard. */
export class ExtendedProtocol {
  readonly #session: ClientSession;
  readonly #units: Units;
  readonly #statements: ClientStatements;
  readonly #reader: BatchReader;
  readonly #sender: BatchSender;
  /** Messages of the batch not sent yet. */
  #batch: Message[] = [];
  #batchBytes = 0;
  /** After an error of our own, until the client's Sync. */
  #skipping = false;
  /** Messages were sent without a Flush or Sync behind them: the server keeps its replies. */
  #unflushed = false;
  /** What became of the large Bind that was begun last. */
  #begun: Begun = 'drop';

  constructor(session: ClientSession, units: Units, statements: ClientStatements) {
    this.#session = session;
    this.#units = units;
    this.#statements = statements;
    const { live } = session.services;
    this.#reader = new BatchReader(statements, session.lookup, units, () => soleShard(live.current) === null);
    this.#sender = new BatchSender(session, units, statements, this.#reader);
  }

  /** @param error the message cannot be carried out for this reason */
  receive(type: number, frame: Buffer, error?: Error): Promise<void> | null {
    if (this.#skipping && type !== FRONTEND.Sync) return null;
    if (type === FRONTEND.Sync && this.#skipping) {
      this.#skipping = false;
      return this.#syncAfterError(frame);
    }
    this.#batch.push(error === undefined ? { type, frame } : { type, frame, error });
    this.#batchBytes += frame.length;
    if (error === undefined && type !== FRONTEND.Sync && type !== FRONTEND.Flush && this.#batchBytes < BATCH_BYTES)
      return null;
    this.#unflushed = type !== FRONTEND.Sync && type !== FRONTEND.Flush;
    return this.#dispatch(this.#takeBatch(), performance.now(), 0);
  }

  /**
   * A large Bind begins with `head`, and `following` bytes of it are to come. What was sent before it and the head go to a server, if
   * the head says where it belongs.
   *
   * @returns where the rest is to be sent; or that the whole message is needed (`hold`), or not at all (`drop`).
   */
  async begin(head: Buffer, following: number): Promise<Begun> {
    if (decodeBindHead(head) === null) return 'hold';
    const batch = [...this.#takeBatch(), { type: FRONTEND.Bind, frame: head, following }];
    this.#unflushed = true;
    this.#begun = 'drop';
    await this.#dispatch(batch, performance.now(), 0);
    const begun = this.#begun;
    this.#begun = 'drop';
    return begun;
  }

  /** Something waits for its Sync or Flush, or was sent without one. */
  get unsent(): boolean {
    return this.#batch.length > 0 || this.#unflushed;
  }

  /** Another kind of message follows: sends what is `unsent`, so that its replies come. Null: that is done. */
  sendOpenBatch(): Promise<void> | null {
    this.#unflushed = false;
    return this.#dispatch([...this.#takeBatch(), { type: FRONTEND.Flush, frame: FLUSH }], performance.now(), 0);
  }

  /** A batch has begun whose Sync has not come. */
  get open(): boolean {
    return this.unsent || this.#skipping;
  }

  /** An error has everything up to the next Sync ignored, ours or the server's. */
  get skipping(): boolean {
    return this.#skipping || (this.#session.lease.backend?.skipping ?? false);
  }

  /** The server has failed, and does not skip what follows: that is done here. */
  skip(): void {
    this.#skipping = true;
  }

  /** The portal is another one from now on, which nothing has to be known of. */
  forgetPortal(name: string): void {
    this.#reader.forgetPortal(name);
  }

  #takeBatch(): readonly Message[] {
    const batch = this.#batch;
    this.#batch = [];
    this.#batchBytes = 0;
    return batch;
  }

  close(): void {
    this.#statements.close();
    this.#reader.forgetPortals();
  }

  /** Null: it is sent, or answered, without having waited for anything. */
  #dispatch(
    batch: readonly Message[],
    since: number,
    times: number,
    shared = true,
    prepared = false,
  ): Promise<void> | null {
    const { lease, wait } = this.#session;
    const reading = this.#reader.read(batch);
    const { items, executions, error, rest } = reading;
    if (shared && times === 0 && error === null && rest.length === 0) {
      const onLease = () => {
        this.#reader.undo(items);
        return this.#dispatch(batch, since, 0, false);
      };
      const { lanes } = this.#session;
      const preparing = prepared ? null : lanes.preparingBatch(items);
      if (preparing !== null)
        return preparing.then(
          () => {
            this.#reader.undo(items);
            return this.#dispatch(batch, since, 0, true, true) ?? undefined;
          },
          (error: unknown) =>
            this.#failUnit({ batch, reading, since, times, open: lease.unsynced }, error) ?? undefined,
        );
      if (lanes.batch(items, onLease)) return null;
    }
    const noServer = lease.backend === null || lease.untold;
    if (error === null && rest.length === 0 && noServer && this.#answerLocally(items)) return null;
    if (error === null && rest.length === 0 && lease.span !== null) {
      const analyzed = this.#alone(items);
      if (analyzed !== null && this.#units.commitsSpan(analyzed))
        return this.#units.commitSpan((reply) => this.#tellAlone(items, reply));
    }
    const unit: Unit = { batch, reading, since, times, open: lease.unsynced };
    let placement: Prepared | Promise<Prepared>;
    try {
      checkAgain(times);
      placement = lease.prepare(executions, wait, lease.transaction?.deferred === true && isPlain(reading));
    } catch (e) {
      return this.#failUnit(unit, e);
    }
    if (placement instanceof Promise || placement.kind !== 'one' || placement.hot !== undefined)
      return this.#dispatchLater(unit, placement);
    return this.#placed(unit, placement);
  }

  async #dispatchLater(unit: Unit, preparing: Prepared | Promise<Prepared>): Promise<void> {
    const { lease } = this.#session;
    const { items, sync } = unit.reading;
    let placement: Prepared;
    try {
      placement = await preparing;
      if (unit.open && !lease.unsynced && this.#units.unitFailed) {
        // The batch was ended where it began, to go on elsewhere, and there its Parse or Describe had failed: the rest is skipped.
        this.#reader.undo(items);
        this.#units.unitFailed = false;
        this.#skipRest(sync ?? syncOf(items));
        lease.releaseIfIdle();
        return;
      }
      if (placement.kind === 'one') this.#assignHot(items, placement);
      if (placement.kind === 'halves') {
        if (this.#needsWhole(unit)) return;
        await this.#halves(unit, placement);
        return;
      }
      if (placement.kind === 'fanout' || placement.kind === 'gather') {
        if (this.#needsWhole(unit)) return;
        if (!(await this.#fanOut(unit, placement))) await this.#again(unit);
        return;
      }
    } catch (e) {
      await this.#failUnit(unit, e);
      return;
    }
    await (placement.kind === 'again' ? this.#again(unit) : this.#placed(unit, placement));
  }

  async #again({ batch, reading, since, times }: Unit): Promise<void> {
    this.#reader.undo(reading.items);
    await this.#dispatch(batch, since, times + 1);
  }

  /** @returns null: it begins anew when it is whole. */
  #failUnit(unit: Unit, error: unknown): Promise<void> | null {
    if (error instanceof RefusedError && this.#needsWhole(unit)) return null;
    const { items, executions, sync } = unit.reading;
    this.#reader.undo(items);
    const refused = error instanceof RefusedError ? this.#session.lease.refusedInBlock(executions) : -1;
    if (refused === 1) {
      const at = this.#begin(unit);
      if (at > 0) return this.#dispatch(unit.batch.slice(at), unit.since, unit.times + 1);
    }
    if (refused >= 0) {
      // What begins the transaction is done, so that it fails where PostgreSQL's would.
      const at = items.findIndex((item) => item.type === 'bind' && item.execution === executions[refused]);
      const batch = unit.batch.map((message, i) => (i === at ? { ...message, error: error as RefusedError } : message));
      return this.#dispatch(batch, unit.since, unit.times + 1);
    }
    return this.#fail(this.#units.fieldsOf(error), sync ?? syncOf(items));
  }

  /**
   * Answers the BEGIN with which the batch begins, as some drivers send it, when what follows cannot go to a server with it: a statement over several shards is
   * then in a block, and what is refused fails that. @returns how many messages that was; 0: it is something else
   */
  #begin({ batch }: Unit): number {
    const at = batch.findIndex(({ type }) => type === FRONTEND.Execute) + 1;
    if (at === 0 || this.#session.lease.backend !== null) return 0;
    const { items } = this.#reader.read(batch.slice(0, at));
    const analyzed = this.#alone([...items, { type: 'sync', frame: FLUSH }]);
    const reply = analyzed === null || analyzed.syntaxError ? null : this.#units.answerAlone(analyzed);
    if (reply === null) this.#reader.undo(items);
    else this.#tellAlone(items, reply);
    return reply === null ? 0 : at;
  }

  #placed(unit: Unit, placement: Placement & { kind: 'one' }): Promise<void> | null {
    const { lease, services } = this.#session;
    if (!lease.unsynced) {
      const backend = lease.backend as Backend;
      const { version } = services.contents;
      if (mustCheckShapes(backend, unit.reading.items, version)) return this.#sendIfShapesAgree(unit, placement);
    }
    return this.#send(unit, placement);
  }

  async #sendIfShapesAgree(unit: Unit, placement: Placement & { kind: 'one' }): Promise<void> {
    const { lease, services } = this.#session;
    const backend = lease.backend as Backend;
    try {
      await checkShapes(backend, unit.reading.items, services.contents.version);
    } catch (e) {
      await this.#failUnit(unit, e);
      return;
    }
    if (lease.backend === backend) await this.#send(unit, placement);
  }

  #send(unit: Unit, placement: Placement & { kind: 'one' }): Promise<void> | null {
    const session = this.#session;
    const { lease } = session;
    const { batch, since, times } = unit;
    const { items, error, sync, rest } = unit.reading;
    const backend = lease.backend as Backend;
    const again = () => this.#again(unit);
    const transaction = lease.transaction as Transaction | null;
    const first = !lease.unsynced;
    if (first) this.#units.beginUnit(backend);
    const large = batch.some((message) => message.frame.length > LARGE_MESSAGE_BYTES || message.following);
    // A large batch without its Sync is let go of once it is sent: it could not be sent again.
    const kept = first && sync === null && (!large || items.at(-1)?.type === 'sync');
    session.ifStale(kept && rest.length === 0 && times === 0 ? again : null);
    session.ifUnseen(kept ? again : null);
    const whole = first && items.at(-1)?.type === 'sync';
    if (whole && placement.writes && transaction?.clean) {
      const prelude = backend.status === IDLE ? [] : transaction.prelude;
      this.#units.closeGate(prelude, since, () => this.#again({ ...unit, times: -1 }));
    } else if (
      whole &&
      !placement.writes &&
      times === 0 &&
      backend.status === IDLE &&
      this.#answersEarly(backend, items)
    )
      session.gate.close(again);
    this.#assignParts(items, placement.parts);
    this.#sender.send(backend, items);
    const last = items.at(-1);
    if (last?.type === 'bind' && last.following > 0) this.#begun = backend;
    if (rest.length > 0) return this.#sendRest(backend, rest, since);
    if (error === null) return null;
    this.#sender.poison(backend, error);
    if (sync === null) this.#skipping = true;
    else this.#sender.send(backend, [sync]);
    return null;
  }

  /** What stands behind a statement that changes names is read when that has been answered. */
  async #sendRest(backend: Backend, rest: readonly Message[], since: number): Promise<void> {
    await answered(backend);
    if (this.#session.lease.backend === backend) await this.#dispatch(rest, since, 0);
  }

  /** The batch ends with the head of a large Bind, which does not say enough: it is read again when the Bind is whole. */
  #needsWhole({ batch, reading }: Unit): boolean {
    if (!batch.at(-1)?.following) return false;
    this.#reader.undo(reading.items);
    this.#batch = batch.slice(0, -1);
    this.#batchBytes = this.#batch.reduce((bytes, message) => bytes + message.frame.length, 0);
    this.#begun = 'hold';
    this.#session.lease.releaseIfIdle();
    return true;
  }

  /** Whether a Parse is answered by the proxy, before the server has said whether what follows can be done. */
  #answersEarly(backend: Backend, items: readonly Item[]): boolean {
    return items.some((i) => i.type === 'parse' && i.name !== '' && backend.prepared.has(i.statement.content));
  }

  /** @throws RefusedError when one of them cannot be said to its hot table */
  #assignHot(items: readonly Item[], { hot }: Placement & { kind: 'one' }): void {
    if (hot === undefined) return;
    let i = 0;
    for (const item of items) {
      if (item.type !== 'bind') continue;
      const halves = hot.get(i++);
      const { analyzed } = item.execution;
      if (halves !== undefined)
        item.bound.hot = this.#statements.hotOf(item.statement, analyzed.again ?? analyzed, halves);
    }
  }

  #assignParts(items: readonly Item[], parts: readonly (readonly Touch[])[]): void {
    let i = 0;
    for (const item of items) if (item.type === 'bind') item.part = parts[i++] ?? [];
  }

  /** A batch that only closes statements, or begins a transaction, or is empty, needs no server. */
  #answerLocally(items: readonly Item[]): boolean {
    if (items.some((item) => item.type === 'execute')) return this.#answerAlone(items);
    const { lease } = this.#session;
    // Its Sync would have committed what was ended.
    if (lease.untold && lease.transaction?.deferred !== true) return false;
    for (const item of items)
      if (item.type !== 'close-statement' && item.type !== 'flush' && item.type !== 'sync') return false;
      else if (item.type === 'sync' && item.frame.length > FLUSH.length) return false; // a server says what is wrong with it
    const session = this.#session;
    for (const item of items) {
      if (item.type === 'close-statement') {
        if (item.statement !== null) this.#statements.release(item.statement);
        session.write(CLOSE_COMPLETE);
      } else if (item.type === 'sync') session.answerReady();
    }
    return true;
  }

  /** As the simple protocol does: one statement, from its Bind (or Parse) to the Sync, that needs no server. */
  #answerAlone(items: readonly Item[]): boolean {
    const analyzed = this.#alone(items);
    const reply = analyzed === null || analyzed.syntaxError ? null : this.#units.answerAlone(analyzed);
    if (reply === null) return false;
    this.#tellAlone(items, reply);
    this.#session.answerReady();
    return true;
  }

  /** The statement that does something to the session, and is alone from its Bind (or Parse) to the Sync, without parameters; null: it is something else. */
  #alone(items: readonly Item[]): Analyzed | null {
    const bind = items.find((item) => item.type === 'bind');
    // Most statements do nothing of the kind, and are not looked at further.
    if (bind === undefined || (bind.statement.analyzed.statements[0]?.plan.effect ?? null) === null) return null;
    if (!ALONE.test(items.map((item) => item.type).join(' '))) return null;
    if (bind.bind.portal !== '' || bind.bind.values.length > 0) return null;
    for (const item of items) {
      if (item.type === 'parse' && item.statement !== bind.statement) return null;
      if (item.type === 'describe-portal' && decodeDescribe(item.frame).name !== '') return null;
      if (item.type === 'execute' && item.bound?.statement !== bind.statement) return null;
    }
    return bind.statement.analyzed;
  }

  #tellAlone(items: readonly Item[], reply: Buffer): void {
    this.#reader.forgetPortal('');
    const session = this.#session;
    for (const item of items)
      if (item.type === 'parse') {
        this.#statements.parsed(item.statement);
        session.write(PARSE_COMPLETE);
      } else if (item.type === 'bind') session.write(BIND_COMPLETE);
      else if (item.type === 'describe-portal') session.write(NO_DATA);
      else if (item.type === 'execute') session.write(reply);
  }

  /** Portals end with their transaction; the unnamed one may stay inside a block. */
  ready(status: number): void {
    if (status === IDLE) this.#reader.forgetPortals();
  }

  /** Nothing of the batch was sent. */
  async #fail(error: ErrorFields, sync: Item | null): Promise<void> {
    const session = this.#session;
    try {
      if (await this.#units.openForFailure()) {
        this.#sender.poison(session.lease.backend as Backend, error);
        if (sync !== null) this.#sender.send(session.lease.backend as Backend, [sync]);
        else this.#skipping = true;
        return;
      }
    } catch (second) {
      session.close(second);
      return;
    }
    session.writeError(error);
    this.#skipRest(sync);
  }

  /** An error has been answered, and no server has an open batch: nothing more until the Sync. */
  #skipRest(sync: Item | null): void {
    if (sync !== null) this.#session.answerReady();
    else this.#skipping = true;
  }

  #syncAfterError(frame: Buffer): Promise<void> | null {
    const session = this.#session;
    const { backend } = session.lease;
    if (backend === null || !session.lease.unsynced) {
      session.answerReady();
      return null;
    }
    this.#sender.send(backend, [{ type: 'sync', frame }]);
    return null;
  }

  /** @returns false: it is to be placed again */
  async #fanOut({ reading }: Unit, placement: Placement & { kind: 'fanout' | 'gather' }): Promise<boolean> {
    const session = this.#session;
    const { items, error } = reading;
    const shape = items.map((i) => i.type).filter((t) => t !== 'flush');
    const bind = items.find((i) => i.type === 'bind');
    const execute = items.find((i) => i.type === 'execute');
    if (error !== null || bind === undefined || execute?.maxRows !== 0 || !FAN_OUT_SHAPE.test(shape.join(' ')))
      throw new RefusedError('0A000', 'a statement for several shards cannot be pipelined or fetched in parts yet', {
        hint: 'Give it a key, or send it with a Sync of its own and without a row limit.',
      });
    if (session.lease.transaction !== null && bind.bind.portal !== '')
      throw new RefusedError(
        '0A000',
        'a statement for several shards in a portal that has a name is not supported inside a transaction block',
        { hint: 'Bind it to the unnamed portal.' },
      );
    const { content, analyzed } = bind.statement;
    const sent = {
      kind: 'extended',
      oids: content.oids,
      parsed: shape.includes('parse'),
      describe: shape.includes('describe-statement')
        ? 'statement'
        : shape.includes('describe-portal')
          ? 'portal'
          : null,
      closePortal: shape.includes('close-portal'),
    } as const;
    const run =
      placement.kind === 'gather'
        ? new Gather(session, placement, analyzed, { ...sent, bind: decodeBind(bind.frame) })
        : new FanOut(session, placement, analyzed, {
            ...sent,
            bind: rewriteBindStatement(bind.frame, ''),
            portal: bind.bind.portal,
          });
    const done = await session.runFanOut(run);
    if (done) {
      // Others stay as long as the block.
      if (session.lease.transaction === null) this.#reader.forgetPortals();
      else this.#reader.forgetPortal(bind.bind.portal);
      this.#parsed(items);
      if (run.failure !== null) await this.#fail(run.failure, syncOf(items));
    }
    return done;
  }

  async #halves(unit: Unit, placement: Placement & { kind: 'halves' }): Promise<void> {
    const session = this.#session;
    const { items, executions, error } = unit.reading;
    const shape = items.map((i) => i.type).filter((t) => t !== 'flush');
    const bind = items.find((i) => i.type === 'bind');
    const execute = items.find((i) => i.type === 'execute');
    if (error !== null || bind === undefined || execute?.maxRows !== 0 || !FAN_OUT_SHAPE.test(shape.join(' ')))
      throw new RefusedError(
        '0A000',
        'a statement that writes columns that are on another shard than their rows cannot be pipelined or fetched in parts',
        { hint: 'Send it with a Sync of its own and without a row limit.' },
      );
    const { content, analyzed } = bind.statement;
    const statement = {
      kind: 'extended',
      oids: content.oids,
      bind: decodeBind(bind.frame),
      parsed: shape.includes('parse'),
      describesStatement: shape.includes('describe-statement'),
      describesPortal: shape.includes('describe-portal'),
      closesPortal: shape.includes('close-portal'),
    } as const;
    const write = new HalvesWrite(session, this.#units, placement, executions, analyzed, statement, unit.since);
    if (!(await session.runHalves(write))) {
      await this.#again(write.moved ? { ...unit, times: -1 } : unit);
      return;
    }
    this.#reader.forgetPortals();
    // It failed before its text was parsed: for its client there is no such statement.
    if (write.parsed) this.#parsed(items);
    else this.#reader.undo(items);
  }

  /** What the client has been told to be prepared, though the text was said to servers in another way. */
  #parsed(items: readonly Item[]): void {
    for (const item of items) {
      if (item.type !== 'parse') continue;
      item.statement.made = true;
      this.#statements.parsed(item.statement);
    }
  }
}

/** Whether a batch goes to a server in one piece, with its Sync, whatever that has prepared. */
function isPlain({ items, error, rest }: Reading): boolean {
  if (error !== null || rest.length > 0 || items.at(-1)?.type !== 'sync') return false;
  let told = false;
  let asks = false;
  for (const item of items) {
    if (item.type === 'flush' || item.type === 'close-statement') return false;
    if (item.type === 'bind') {
      const { statements } = item.statement.analyzed;
      if (statements[0] !== undefined && statements[0].plan.effect !== null) return false;
      if (item.statement.told !== null) told = true;
    } else if (item.type === 'parse' || item.type.startsWith('describe')) asks = true;
  }
  return asks || !told;
}

/** Resolves when the server has answered all that was sent, or skips it. */
function answered(backend: Backend): Promise<void> {
  return new Promise((resolve) => {
    backend.sendRaw(FLUSH);
    backend.send(null, { kind: 'local', internal: true, done: resolve, undo: resolve });
  });
}

/** What a statement for several shards may look like as messages. */
const FAN_OUT_SHAPE = /^(parse )?(describe-statement )?bind (describe-portal )?execute (close-portal )?sync$/;
