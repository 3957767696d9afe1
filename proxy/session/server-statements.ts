import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import { decodeDescribe, encodeBind, encodeClose, encodeExecute, encodeParse } from '../wire/frontend.js';
import { type Bound, type Item, sqlOf } from './batch.js';
import type { ClientSession } from './client-session.js';
import { type HotStatement, tellOfTable } from './hot-statement.js';
import type { ClientStatement, PreparedContent } from './prepared.js';
import { type Own, SentText } from './sent-text.js';
import { AS_IT_IS, errorAsWritten, errorShifted, ownPrepare, type SqlStatements } from './sql-statements.js';
import type { ClientStatements } from './statements.js';

/** Statements prepared on one server connection at most; the one unused for longest goes. */
const PREPARED_PER_BACKEND = 500;

/** The client's statements on a server connection, in an extended batch: prepares there what it lacks, and knows the names there. */
export class ServerStatements {
  readonly #session: ClientSession;
  readonly #statements: ClientStatements;

  constructor(session: ClientSession, statements: ClientStatements) {
    this.#session = session;
    this.#statements = statements;
  }

  /** The name under which the statement of a Bind is prepared there. */
  toBind(backend: Backend, { sql, statement, bound, bind }: Item & { type: 'bind' }): string {
    if (bound.hot !== null) return this.hotName(backend, bound.hot);
    if (backend.byName) {
      if (sql !== null) bound.spoken = AS_IT_IS;
      return bind.statement === '' ? this.#ensurePrepared(backend, statement, true) : bind.statement;
    }
    if (sql === null) return this.#ensurePrepared(backend, statement, bind.statement === '');
    return this.#speak(backend, sql, statement, bound);
  }

  /** The name under which a statement to a hot table is prepared there; prepares it if it is not. */
  hotName(backend: Backend, { content, halves, text }: HotStatement): string {
    const known = backend.prepared.get(content);
    if (known !== undefined) return this.#used(backend, content, known);
    const name = this.newName(backend, content);
    this.#prepare(backend, content, name, tellOfTable(halves, text));
    return name;
  }

  toDescribe(backend: Backend, { frame, statement }: Item & { type: 'describe-statement' }): string {
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
    for (const own of spoken.rewrites[0]?.before ?? []) this.say(backend, own);
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

  #prepare(backend: Backend, content: PreparedContent, name: string, tell?: Expectation['tell']): void {
    backend.prepared.set(content, name);
    this.#session.activity.serverParses += 1;
    backend.send(encodeParse(name, content.sql, content.oids), {
      kind: 'parse',
      internal: true,
      undo: () => backend.prepared.delete(content),
      ...(tell === undefined ? {} : { tell }),
    });
  }

  /** Last used last: the first is the one to go. */
  #used(backend: Backend, content: PreparedContent, name: string): string {
    backend.prepared.delete(content);
    backend.prepared.set(content, name);
    return name;
  }

  /** Statements that were good for one batch, or that others have replaced. */
  closeUnused(backend: Backend): void {
    for (const name of backend.toClose.splice(0))
      backend.send(encodeClose('statement', name), {
        kind: 'close',
        internal: true,
        undo: () => backend.toClose.push(name),
      });
  }

  /** As `toBind`, of a statement that was prepared by Parse and is said as it is. @param unnamed it is the client's unnamed one */
  nameOf(backend: Backend, statement: ClientStatement, unnamed: boolean): string {
    return this.#ensurePrepared(backend, statement, unnamed);
  }

  /** The name under which the statement is prepared on this connection; prepares it there if it is not. */
  #ensurePrepared(backend: Backend, statement: ClientStatement, unnamed: boolean): string {
    const { content } = statement;
    if (unnamed && backend.unnamed === content) return '';
    const known = backend.prepared.get(content);
    if (known !== undefined) return this.#used(backend, content, known);
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
    const name = this.newName(backend, content);
    if (content.definition === null) this.#prepare(backend, content, name);
    else this.say(backend, ownPrepare(name, statement), { undo: () => backend.prepared.delete(content) });
    return name;
  }

  newName(backend: Backend, content: PreparedContent): string {
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

  /** A statement of ours among the client's. */
  say(backend: Backend, { sql, done, shift }: Own, { undo }: { readonly undo?: () => void } = {}): void {
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
}
