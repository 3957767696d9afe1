import type { Backend } from '../backend/backend.js';
import { FanOut } from '../gather/fan-out.js';
import type { Touch } from '../router/route.js';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  decodeCommandComplete,
  encodeCommandComplete,
  NO_DATA,
  PARSE_COMPLETE,
  rowsOfTag,
} from '../wire/backend.js';
import { type ErrorFields, encodeErrorResponse } from '../wire/error-response.js';
import {
  decodeDescribe,
  encodeBind,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  FLUSH,
  rewriteBindStatement,
  rewriteParseName,
} from '../wire/frontend.js';
import { BACKEND, FRONTEND } from '../wire/message-types.js';
import { BatchReader, type Bound, type Item, type Message, sqlOf, syncOf } from './batch.js';
import type { ClientSession } from './client-session.js';
import { checkAgain, FAILED, IDLE, type Prepared, RefusedError } from './lease.js';
import { LARGE_MESSAGE_BYTES } from './message-budget.js';
import type { Execution, Placement } from './placement.js';
import { type ClientStatement, type PreparedContent, shapeOf } from './prepared.js';
import { type Own, SentText } from './sent-text.js';
import { AS_IT_IS, errorAsWritten, errorShifted, ownPrepare, type SqlStatements } from './sql-statements.js';
import { checkShapes } from './stale-plan.js';
import { type ClientStatements, protocolName } from './statements.js';
import type { Transaction } from './transaction.js';
import type { Units } from './units.js';

/** A batch is sent on, without waiting for its Sync, when it has grown to this size. */
const BATCH_BYTES = 256 * 1024;
/** Statements prepared on one server connection at most; the one unused for longest goes. */
const PREPARED_PER_BACKEND = 500;

/** No such statement: bound to make a server fail its transaction, so that the client's is really the state it was told. */
const FAILING_BIND = encodeBind({
  portal: '',
  statement: 'foreshard_refused',
  formats: [],
  values: [],
  resultFormats: [],
});

/** One statement from its Bind, or Parse, to the Sync. */
const ALONE = /^(parse )?bind (describe-portal )?execute sync$/;

/** The extended query protocol of one session: batches of messages, up to a Sync or Flush, run together on one shard. */
export class ExtendedProtocol {
  readonly #session: ClientSession;
  readonly #units: Units;
  readonly #statements: ClientStatements;
  readonly #reader: BatchReader;
  /** Messages of the batch not sent yet. */
  #batch: Message[] = [];
  #batchBytes = 0;
  /** After an error of our own, until the client's Sync. */
  #skipping = false;
  /** Messages were sent without a Flush or Sync behind them: the server keeps its replies. */
  #unflushed = false;

  constructor(session: ClientSession, units: Units, statements: ClientStatements) {
    this.#session = session;
    this.#units = units;
    this.#statements = statements;
    this.#reader = new BatchReader(statements, session.lookup, (error) => units.fieldsOf(error));
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

  /** Another kind of message follows: sends what waits for a Sync or Flush, so that its replies come. Null: nothing does. */
  sendOpenBatch(): Promise<void> | null {
    if (this.#batch.length === 0 && !this.#unflushed) return null;
    this.#unflushed = false;
    return this.#dispatch([...this.#takeBatch(), { type: FRONTEND.Flush, frame: FLUSH }], performance.now(), 0);
  }

  /** A batch has begun whose Sync has not come. */
  get open(): boolean {
    return this.#batch.length > 0 || this.#unflushed || this.#skipping;
  }

  /** An error has everything up to the next Sync ignored, ours or the server's. */
  get skipping(): boolean {
    return this.#skipping || (this.#session.lease.backend?.skipping ?? false);
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

  async #dispatch(batch: readonly Message[], since: number, times: number): Promise<void> {
    const session = this.#session;
    const { lease } = session;
    const { items, executions, error, sync, rest } = this.#reader.read(batch);
    if (error === null && rest.length === 0 && lease.backend === null && this.#answerLocally(items)) return;
    const again = () => {
      this.#reader.undo(items);
      return this.#dispatch(batch, since, times + 1);
    };
    let placement: Prepared;
    const open = lease.unsynced;
    try {
      checkAgain(times);
      placement = await lease.prepare(executions, session.wait);
      if (open && !lease.unsynced && this.#units.unitFailed) {
        // The batch was ended where it began, to go on elsewhere, and there its Parse or Describe had failed: the rest is skipped.
        this.#reader.undo(items);
        this.#units.unitFailed = false;
        this.#skipRest(sync ?? syncOf(items));
        lease.releaseIfIdle();
        return;
      }
      if (placement.kind === 'fanout') {
        if (!(await this.#fanOut(items, placement, error))) await again();
        return;
      }
    } catch (e) {
      this.#reader.undo(items);
      await this.#fail(this.#units.fieldsOf(e), sync ?? syncOf(items));
      return;
    }
    if (placement.kind === 'again') return again();
    const backend = lease.backend as Backend;
    if (!lease.unsynced) {
      if (backend.status === IDLE) backend.prepareFor(session.services.contents.version);
      try {
        await checkShapes(backend, items, session.services.contents.version);
      } catch (e) {
        this.#reader.undo(items);
        await this.#fail(this.#units.fieldsOf(e), sync ?? syncOf(items));
        return;
      }
      if (lease.backend !== backend) return;
    }
    const transaction = lease.transaction as Transaction | null;
    const first = !lease.unsynced;
    if (first) this.#units.beginUnit(backend);
    const large = batch.some((message) => message.frame.length > LARGE_MESSAGE_BYTES);
    // A large batch without its Sync is let go of once it is sent: it could not be sent again.
    const kept = first && sync === null && (!large || items.at(-1)?.type === 'sync');
    session.ifStale(kept && rest.length === 0 && times === 0 ? again : null);
    session.ifUnseen(kept ? again : null);
    const whole = first && items.at(-1)?.type === 'sync';
    if (whole && placement.writes && transaction?.clean) {
      const prelude = backend.status === IDLE ? [] : transaction.prelude;
      this.#units.closeGate(prelude, since, () => {
        this.#reader.undo(items);
        return this.#dispatch(batch, since, 0);
      });
    } else if (
      whole &&
      !placement.writes &&
      times === 0 &&
      backend.status === IDLE &&
      this.#answersEarly(backend, items)
    )
      session.gate.close(again);
    this.#assignParts(items, placement.parts);
    this.#emit(backend, items);
    if (rest.length > 0) {
      await answered(backend);
      if (lease.backend === backend) await this.#dispatch(rest, since, 0);
      return;
    }
    if (error === null) return;
    this.#sendPoison(backend, error);
    if (sync === null) this.#skipping = true;
    else this.#emit(backend, [sync]);
  }

  /** Whether a Parse is answered by the proxy, before the server has said whether what follows can be done. */
  #answersEarly(backend: Backend, items: readonly Item[]): boolean {
    return items.some((i) => i.type === 'parse' && i.name !== '' && backend.prepared.has(i.statement.content));
  }

  #noteShape(backend: Backend, statement: ClientStatement | null): (type: number, frame: Buffer) => void {
    return (type, frame) => {
      if (type === BACKEND.ParameterDescription || statement === null) return;
      const shape = shapeOf(type, frame);
      statement.told = { shape, version: this.#session.services.contents.version };
      if (backend.prepared.has(statement.content)) backend.shapes.set(statement.content, shape);
    };
  }

  #assignParts(items: readonly Item[], parts: readonly (readonly Touch[])[]): void {
    let i = 0;
    for (const item of items) if (item.type === 'bind') item.part = parts[i++] ?? [];
  }

  /** A batch that only closes statements, or begins a transaction, or is empty, needs no server. */
  #answerLocally(items: readonly Item[]): boolean {
    if (items.some((item) => item.type === 'execute')) return this.#answerAlone(items);
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
    if (!ALONE.test(items.map((item) => item.type).join(' '))) return false;
    const bind = items.find((item) => item.type === 'bind');
    if (bind === undefined || bind.bind.portal !== '' || bind.bind.values.length > 0) return false;
    for (const item of items) {
      if (item.type === 'parse' && item.statement !== bind.statement) return false;
      if (item.type === 'describe-portal' && decodeDescribe(item.frame).name !== '') return false;
      if (item.type === 'execute' && item.bound?.statement !== bind.statement) return false;
    }
    const { analyzed } = bind.statement;
    const tag = analyzed.syntaxError ? null : this.#units.answerAlone(analyzed);
    if (tag === null) return false;
    this.#reader.forgetPortal('');
    const session = this.#session;
    for (const item of items)
      if (item.type === 'parse') session.write(PARSE_COMPLETE);
      else if (item.type === 'bind') session.write(BIND_COMPLETE);
      else if (item.type === 'describe-portal') session.write(NO_DATA);
      else if (item.type === 'execute') session.write(encodeCommandComplete(tag));
    session.answerReady();
    return true;
  }

  #emit(backend: Backend, items: readonly Item[]): void {
    const session = this.#session;
    const { lease } = session;
    for (const item of items) {
      switch (item.type) {
        case 'parse':
          this.#emitParse(backend, item);
          lease.unsynced = true;
          break;
        case 'bind': {
          const { portal } = item.bind;
          const name = this.#nameToBind(backend, item);
          const data = name === item.bind.statement ? item.frame : rewriteBindStatement(item.frame, name);
          backend.send(data, {
            kind: 'bind',
            internal: false,
            // Not the item: it has the values, which may be large.
            undo: () => this.#reader.forgetPortal(portal),
          });
          if (item.frame.length > LARGE_MESSAGE_BYTES) this.#reader.forgetValues(portal);
          lease.unsynced = true;
          lease.unsyncedDirty = true;
          // A portal with a name is there to be used later: the transaction can no longer begin again elsewhere.
          if (item.bind.portal !== '' && lease.transaction !== null) lease.transaction.clean = false;
          break;
        }
        case 'describe-statement': {
          const name = this.#nameToDescribe(backend, item);
          const replied = this.#noteShape(backend, item.statement);
          backend.send(encodeDescribe('statement', name), { kind: 'describe', internal: false, replied });
          lease.unsynced = true;
          break;
        }
        case 'describe-portal':
          backend.send(item.frame, {
            kind: 'describe',
            internal: false,
            replied: this.#noteShape(backend, item.statement),
          });
          lease.unsynced = true;
          break;
        case 'execute':
          this.#emitExecute(backend, item.frame, item.bound);
          lease.unsynced = true;
          lease.unsyncedDirty = true;
          // Suspended, it has no CommandComplete that would say that something was done.
          if (item.maxRows !== 0 && lease.transaction !== null) lease.transaction.clean = false;
          break;
        case 'close-statement':
          if (backend.byName) lease.unsynced = true;
          backend.send(backend.byName ? encodeClose('statement', item.name) : null, {
            ...(backend.byName ? { kind: 'close' } : { kind: 'local', bytes: CLOSE_COMPLETE }),
            internal: false,
            done: () => item.statement !== null && this.#statements.release(item.statement),
            undo: () => this.#statements.restore(item.name, item.statement),
          });
          break;
        case 'close-portal':
          this.#reader.forgetPortal(item.name);
          backend.send(item.frame, { kind: 'close', internal: false });
          lease.unsynced = true;
          break;
        case 'flush':
          backend.sendRaw(item.frame);
          break;
        case 'sync':
          lease.unsynced = false;
          lease.unsyncedDirty = false;
          session.expectReady();
          this.#closeUnused(backend);
          backend.send(item.frame, { kind: 'sync', internal: false });
          break;
      }
    }
  }

  /** Portals end with their transaction; the unnamed one may stay inside a block. */
  ready(status: number): void {
    if (status === IDLE) this.#reader.forgetPortals();
  }

  #emitParse(backend: Backend, item: Item & { type: 'parse' }): void {
    const { content } = item.statement;
    const undo = () => {
      if (this.#statements.is(item.name, item.statement)) this.#statements.forget(item.name);
    };
    if (item.name === '') {
      backend.unnamed = content;
      this.#session.activity.serverParses += 1;
      backend.send(item.frame, {
        kind: 'parse',
        internal: false,
        undo: () => {
          backend.unnamed = null;
          undo();
        },
      });
      return;
    }
    item.statement.made = true;
    if (backend.byName) {
      this.#session.activity.serverParses += 1;
      backend.send(item.frame, { kind: 'parse', internal: false, undo });
      return;
    }
    const known = backend.prepared.get(content);
    // In a failed transaction only the server knows what it still takes.
    if (known !== undefined && backend.status === FAILED) backend.toClose.push(known);
    else if (known !== undefined) {
      backend.send(null, { kind: 'local', internal: false, bytes: PARSE_COMPLETE, undo });
      return;
    }
    const name = this.#newName(backend, content);
    this.#session.activity.serverParses += 1;
    backend.send(rewriteParseName(item.frame, name), {
      kind: 'parse',
      internal: false,
      undo: () => {
        backend.prepared.delete(content);
        undo();
      },
    });
  }

  /** The name under which the statement of a Bind is prepared there. */
  #nameToBind(backend: Backend, { sql, statement, bound, bind }: Item & { type: 'bind' }): string {
    if (backend.byName) {
      if (sql !== null) bound.spoken = AS_IT_IS;
      return bind.statement === '' ? this.#ensurePrepared(backend, statement, true) : bind.statement;
    }
    if (sql === null) return this.#ensurePrepared(backend, statement, bind.statement === '');
    return this.#speak(backend, sql, statement, bound);
  }

  #nameToDescribe(backend: Backend, { frame, statement }: Item & { type: 'describe-statement' }): string {
    if (backend.byName) return decodeDescribe(frame).name || this.#ensurePrepared(backend, statement, true);
    const sql = sqlOf(statement.analyzed, this.#statements);
    if (sql === null) return this.#ensurePrepared(backend, statement, false);
    const name = this.#speak(backend, sql, statement, null);
    sql.release();
    return name;
  }

  /**
   * Prepares PREPARE or EXECUTE as it has to be said on this connection now, and what it uses. @returns its name there, which is good
   * for this batch.
   */
  #speak(backend: Backend, sql: SqlStatements, { content, analyzed }: ClientStatement, bound: Bound | null): string {
    const spoken = sql.spoken(backend);
    if (bound !== null) bound.spoken = spoken;
    for (const { content: used, name } of spoken.missing) this.#prepare(backend, used, name);
    for (const own of spoken.rewrites[0]?.before ?? []) this.#sayQuietly(backend, own);
    const sent = new SentText(
      content.sql,
      analyzed.statements,
      spoken.rewrites.map(({ index, replace }) => ({ index, ...(replace && { replace }) })),
    );
    spoken.sent = sent;
    const name = backend.newStatementName();
    backend.send(encodeParse(name, sent.sql, content.oids), {
      kind: 'parse',
      internal: true,
      done: () => backend.toClose.push(name),
      tell: (_type, frame) => errorAsWritten(frame, sent, spoken),
    });
    return name;
  }

  #prepare(backend: Backend, content: PreparedContent, name: string): void {
    backend.prepared.set(content, name);
    this.#session.activity.serverParses += 1;
    backend.send(encodeParse(name, content.sql, content.oids), {
      kind: 'parse',
      internal: true,
      undo: () => backend.prepared.delete(content),
    });
  }

  /** Statements that were good for one batch, or that others have replaced. */
  #closeUnused(backend: Backend): void {
    for (const name of backend.toClose.splice(0))
      backend.send(encodeClose('statement', name), {
        kind: 'close',
        internal: true,
        undo: () => backend.toClose.push(name),
      });
  }

  /** The name under which the statement is prepared on this connection; prepares it there if it is not. */
  #ensurePrepared(backend: Backend, statement: ClientStatement, unnamed: boolean): string {
    const { content } = statement;
    if (unnamed && backend.unnamed === content) return '';
    const known = backend.prepared.get(content);
    if (known !== undefined) {
      // Last used last: the first is the one to go.
      backend.prepared.delete(content);
      backend.prepared.set(content, known);
      return known;
    }
    if (unnamed) {
      backend.unnamed = content;
      this.#session.activity.serverParses += 1;
      backend.send(encodeParse('', content.sql, content.oids), {
        kind: 'parse',
        internal: true,
        undo: () => {
          backend.unnamed = null;
        },
      });
      return '';
    }
    if (backend.unnamed === content && this.#statements.is('', statement)) return '';
    const name = this.#newName(backend, content);
    if (content.definition === null) this.#prepare(backend, content, name);
    else this.#sayQuietly(backend, ownPrepare(name, statement), { undo: () => backend.prepared.delete(content) });
    return name;
  }

  #newName(backend: Backend, content: PreparedContent): string {
    if (backend.prepared.size >= PREPARED_PER_BACKEND) {
      const [oldest, name] = backend.prepared.entries().next().value as [PreparedContent, string];
      backend.prepared.delete(oldest);
      backend.shapes.delete(oldest);
      backend.send(encodeClose('statement', name), { kind: 'close', internal: true });
    }
    const name = backend.newStatementName();
    backend.prepared.set(content, name);
    backend.shapes.delete(content);
    return name;
  }

  #emitExecute(backend: Backend, frame: Buffer, bound: Bound | null): void {
    const session = this.#session;
    const effect = bound?.statement.analyzed.statements[0]?.plan.effect;
    const spoken = bound?.spoken ?? null;
    const deallocated = effect?.kind === 'deallocate' ? effect.name : null;
    if (deallocated !== null && !backend.byName && this.#statements.knows(deallocated)) {
      // The server knows it by another name, and other clients may use it there.
      const name = protocolName(deallocated);
      const done = () => this.#statements.forget(name);
      backend.send(null, { kind: 'local', internal: false, bytes: encodeCommandComplete('DEALLOCATE'), done });
      return;
    }
    this.#noteSent(bound);
    const { lookup } = session;
    if (bound !== null && lookup.mayChange(bound.execution.analyzed, 0)) lookup.sent();
    const started = performance.now();
    backend.send(frame, {
      kind: 'execute',
      internal: false,
      completed: (reply, empty) => {
        if (empty || bound === null) return;
        const { analyzed } = bound.execution;
        lookup.done(analyzed, 0);
        const statement = analyzed.statements[0];
        const tag = decodeCommandComplete(reply);
        const itself: Execution = { analyzed: bound.statement.analyzed, index: 0, params: null, lookup: null };
        this.#units.completed(effect?.kind === 'execute' && effect.form !== 'execute' ? itself : bound.execution, tag);
        if (spoken !== null) bound.sql?.done(0, backend, spoken);
        if (deallocated !== null) this.#statements.forget(protocolName(deallocated));
        session.services.load.record({
          template: analyzed.template,
          shard: backend.shard,
          touches: bound.touches(),
          write: statement?.plan.kind === 'write',
          rows: rowsOfTag(tag) ?? 0,
          bytes: session.bytesForwarded,
          ms: performance.now() - started,
        });
        session.bytesForwarded = 0;
      },
      tell: (type, reply) =>
        type === BACKEND.ErrorResponse && spoken !== null ? errorAsWritten(reply, spoken.sent, spoken) : reply,
    });
    for (const own of spoken?.rewrites[0]?.after ?? []) this.#sayQuietly(backend, own);
    if (effect?.kind === 'set' && effect.reset)
      for (const sql of session.settings.afterReset(effect.name, effect.local)) this.#sayQuietly(backend, { sql });
    if (effect?.kind === 'discard-all')
      for (const sql of session.settings.afterReset(null)) this.#sayQuietly(backend, { sql });
  }

  /** A statement of ours among the client's. */
  #sayQuietly(backend: Backend, { sql, done, shift }: Own, { undo }: { readonly undo?: () => void } = {}): void {
    const name = backend.newStatementName();
    const own = { formats: [], values: [], resultFormats: [] };
    const tell = (_type: number, frame: Buffer) => errorShifted(frame, shift);
    backend.send(encodeParse(name, Buffer.from(sql, 'latin1')), { kind: 'parse', internal: true });
    backend.send(encodeBind({ portal: name, statement: name, ...own }), { kind: 'bind', internal: true });
    backend.send(encodeExecute(name), {
      kind: 'execute',
      internal: true,
      tell,
      ...(done === undefined ? {} : { done }),
      ...(undo === undefined ? {} : { undo }),
    });
    backend.send(encodeClose('portal', name), { kind: 'close', internal: true });
    backend.send(encodeClose('statement', name), {
      kind: 'close',
      internal: true,
      undo: () => backend.toClose.push(name),
    });
  }

  #noteSent(bound: Bound | null): void {
    if (bound === null) this.#units.sent(null);
    else for (const { plan } of bound.statement.analyzed.statements) this.#units.sent(plan);
  }

  /** Makes the server fail where our error stands in the batch: what came before is undone, what follows is skipped. */
  #sendPoison(backend: Backend, error: ErrorFields): void {
    const { lease } = this.#session;
    lease.unsynced = true;
    lease.unsyncedDirty = true;
    backend.send(FAILING_BIND, { kind: 'bind', internal: false, replacement: encodeErrorResponse(error) });
  }

  /** Nothing of the batch was sent. */
  async #fail(error: ErrorFields, sync: Item | null): Promise<void> {
    const session = this.#session;
    try {
      if (await this.#units.openForFailure()) {
        this.#sendPoison(session.lease.backend as Backend, error);
        if (sync !== null) this.#emit(session.lease.backend as Backend, [sync]);
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
    this.#emit(backend, [{ type: 'sync', frame }]);
    return null;
  }

  async #fanOut(
    items: readonly Item[],
    placement: Placement & { kind: 'fanout' },
    error: ErrorFields | null,
  ): Promise<boolean> {
    const session = this.#session;
    const shape = items.map((i) => i.type).filter((t) => t !== 'flush');
    const bind = items.find((i) => i.type === 'bind');
    const execute = items.find((i) => i.type === 'execute');
    if (error !== null || bind === undefined || execute?.maxRows !== 0 || !FAN_OUT_SHAPE.test(shape.join(' ')))
      throw new RefusedError('0A000', 'a statement for several shards cannot be pipelined or fetched in parts yet', {
        hint: 'Give it a key, or send it with a Sync of its own and without a row limit.',
      });
    const { content, analyzed } = bind.statement;
    const done = await session.runFanOut(
      new FanOut(session, placement, analyzed.template, {
        kind: 'extended',
        parse: encodeParse('', content.sql, content.oids),
        parsed: shape.includes('parse'),
        describe: shape.includes('describe-statement')
          ? 'statement'
          : shape.includes('describe-portal')
            ? 'portal'
            : null,
        bind: rewriteBindStatement(bind.frame, ''),
        portal: bind.bind.portal,
        closePortal: shape.includes('close-portal'),
      }),
    );
    if (done) {
      this.#reader.forgetPortals();
      for (const item of items) if (item.type === 'parse') item.statement.made = true;
    }
    return done;
  }
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
