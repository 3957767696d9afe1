import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import {
  CLOSE_COMPLETE,
  decodeCommandComplete,
  encodeCommandComplete,
  PARSE_COMPLETE,
  rowsOfTag,
} from '../wire/backend.js';
import { type ErrorFields, encodeErrorResponse } from '../wire/error-response.js';
import { encodeClose, encodeDescribe, encodeParse, rewriteBindStatement, rewriteParseName } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { FAILED } from '../wire/transaction-status.js';
import type { BatchReader, Bound, Item } from './batch.js';
import type { ClientSession } from './client-session.js';
import { FAILING_BIND } from './failing-bind.js';
import { type HotStatement, tellOfTable } from './hot-statement.js';
import { LARGE_MESSAGE_BYTES } from './message-budget.js';
import type { Execution } from './placement.js';
import { type ClientStatement, shapeFor } from './prepared.js';
import { ServerStatements } from './server-statements.js';
import { errorAsWritten } from './sql-statements.js';
import { type ClientStatements, protocolName } from './statements.js';
import type { Units } from './units.js';

/** Says a batch to a server connection, and follows what it does to the session. */
export class BatchSender {
  readonly #session: ClientSession;
  readonly #units: Units;
  readonly #statements: ClientStatements;
  readonly #reader: BatchReader;
  readonly #names: ServerStatements;
  /** The batch has a COPY, into which nothing of ours may come. */
  #copies = false;

  constructor(session: ClientSession, units: Units, statements: ClientStatements, reader: BatchReader) {
    this.#session = session;
    this.#units = units;
    this.#statements = statements;
    this.#reader = reader;
    this.#names = new ServerStatements(session, statements);
  }

  send(backend: Backend, items: readonly Item[]): void {
    const session = this.#session;
    const { lease } = session;
    const hot = hotOf(items);
    for (const item of items) {
      switch (item.type) {
        case 'parse':
          this.#parse(backend, item, backend.byName ? null : (hot?.get(item.statement) ?? null));
          lease.unsynced = true;
          break;
        case 'bind': {
          const { frame, following } = item;
          const { portal } = item.bind;
          const name = this.#names.toBind(backend, item);
          const data = name === item.bind.statement ? frame : rewriteBindStatement(frame, name, following);
          backend.send(data, {
            kind: 'bind',
            internal: false,
            // Not the item: it has the values, which may be large.
            undo: () => this.#reader.forgetPortal(portal),
            ...tellOf(item.bound),
          });
          if (frame.length > LARGE_MESSAGE_BYTES || following > 0) this.#reader.forgetValues(portal);
          lease.unsynced = true;
          lease.unsyncedDirty = true;
          // A portal with a name is there to be used later: the transaction can no longer begin again elsewhere.
          if (item.bind.portal !== '') lease.transaction?.keepPortal();
          break;
        }
        case 'describe-statement': {
          const said = hot?.get(item.statement);
          const name = said === undefined ? this.#names.toDescribe(backend, item) : this.#names.hotName(backend, said);
          const replied = this.#noteShape(backend, item.statement, said);
          backend.send(encodeDescribe('statement', name), { kind: 'describe', internal: false, replied });
          lease.unsynced = true;
          break;
        }
        case 'describe-portal':
          backend.send(item.frame, {
            kind: 'describe',
            internal: false,
            replied: this.#noteShape(
              backend,
              item.statement,
              item.statement === null ? undefined : hot?.get(item.statement),
            ),
          });
          lease.unsynced = true;
          break;
        case 'execute':
          this.#execute(backend, item.frame, item.bound);
          lease.unsynced = true;
          lease.unsyncedDirty = true;
          // Suspended, it has no CommandComplete that would say that something was done.
          if (item.maxRows !== 0) lease.transaction?.keepPortal();
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
          if (!this.#copies) this.#names.closeUnused(backend);
          this.#copies = false;
          backend.send(item.frame, { kind: 'sync', internal: false });
          break;
      }
    }
  }

  /** @param hot what the statement is said as to a hot table, in this batch; null: it is not */
  #parse(backend: Backend, item: Item & { type: 'parse' }, hot: HotStatement | null): void {
    const undo = () => this.#statements.undo(item.name, item.statement, false);
    if (hot !== null) {
      this.#parseHot(backend, item, hot, undo);
      return;
    }
    const { content } = item.statement;
    if (item.name === '') {
      backend.unnamed = content;
      this.#session.activity.serverParses += 1;
      backend.send(item.frame, {
        kind: 'parse',
        internal: false,
        done: () => this.#statements.parsed(item.statement),
        failed: () => this.#statements.undo('', item.statement, true),
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
    // In a failed transaction only the server knows what it still takes; after DDL in a transaction, what the columns are now.
    const asks = backend.status === FAILED || !backend.isPreparedFor(this.#session.services.contents.version);
    if (known !== undefined && asks) backend.toClose.push(known);
    else if (known !== undefined) {
      backend.send(null, { kind: 'local', internal: false, bytes: PARSE_COMPLETE, undo });
      return;
    }
    const name = this.#names.newName(backend, content);
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

  /** Under a name, also what the client has as the unnamed one: that is the text as it came, if it is anything. */
  #parseHot(
    backend: Backend,
    item: Item & { type: 'parse' },
    { content, halves, text }: HotStatement,
    undo: () => void,
  ): void {
    const unnamed = item.name === '';
    if (!unnamed) item.statement.made = true;
    const done = () => unnamed && this.#statements.parsed(item.statement);
    if (backend.prepared.has(content)) {
      backend.send(null, { kind: 'local', internal: false, bytes: PARSE_COMPLETE, done, undo });
      return;
    }
    const name = this.#names.newName(backend, content);
    this.#session.activity.serverParses += 1;
    backend.send(encodeParse(name, content.sql, content.oids), {
      kind: 'parse',
      internal: false,
      done,
      failed: () => unnamed && this.#statements.undo('', item.statement, true),
      undo: () => {
        backend.prepared.delete(content);
        undo();
      },
      tell: tellOfTable(halves, text),
    });
  }

  #execute(backend: Backend, frame: Buffer, bound: Bound | null): void {
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
    if (bound?.execution.analyzed.statements[0]?.plan.command === 'COPY') this.#copies = true;
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
        const ms = performance.now() - started;
        session.lanes.ranOnLease(analyzed, backend, ms, session.bytesForwarded);
        session.services.load.record({
          template: analyzed.template,
          shard: backend.shard,
          touches: bound.touches(),
          write: statement?.plan.kind === 'write',
          rows: rowsOfTag(tag) ?? 0,
          bytes: session.bytesForwarded,
          ms,
        });
        session.bytesForwarded = 0;
      },
      tell: (type, reply) =>
        type === BACKEND.ErrorResponse && spoken !== null ? errorAsWritten(reply, spoken.sent, spoken) : reply,
      ...(bound === null ? {} : tellOf(bound)),
    });
    for (const own of spoken?.rewrites[0]?.after ?? []) this.#names.say(backend, own);
    if (effect?.kind === 'set' && effect.reset)
      for (const sql of session.settings.afterReset(effect.name, effect.local)) this.#names.say(backend, { sql });
    if (effect?.kind === 'discard-all')
      for (const sql of session.settings.afterReset(null)) this.#names.say(backend, { sql });
  }

  #noteShape(
    backend: Backend,
    statement: ClientStatement | null,
    hot?: HotStatement,
  ): (type: number, frame: Buffer) => void {
    return (type, frame) => {
      if (type === BACKEND.ParameterDescription || statement === null) return;
      const shape = shapeFor(statement.content, type, frame);
      statement.told = { shape, version: this.#session.services.contents.version };
      const content = hot?.content ?? statement.content;
      if (backend.prepared.has(content)) backend.shapes.set(content, shape);
    };
  }

  #noteSent(bound: Bound | null): void {
    if (bound === null) this.#units.sent(null);
    else for (const { plan } of bound.statement.analyzed.statements) this.#units.sent(plan);
  }

  /** Makes the server fail where our error stands in the batch: what came before is undone, what follows is skipped. */
  poison(backend: Backend, error: ErrorFields): void {
    const { lease } = this.#session;
    lease.unsynced = true;
    lease.unsyncedDirty = true;
    backend.send(FAILING_BIND, { kind: 'bind', internal: false, replacement: encodeErrorResponse(error) });
  }
}

/** Of the statements that are bound in a batch, those that are said to a hot table; null: none is. */
function hotOf(items: readonly Item[]): ReadonlyMap<ClientStatement, HotStatement> | null {
  let found: Map<ClientStatement, HotStatement> | null = null;
  for (const item of items) {
    if (item.type !== 'bind' || item.bound.hot === null) continue;
    found ??= new Map();
    found.set(item.statement, item.bound.hot);
  }
  return found;
}

function tellOf({ hot }: Bound): Pick<Expectation, 'tell'> {
  return hot === null ? {} : { tell: tellOfTable(hot.halves, hot.text) };
}
