import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import type { LaneRoute } from '../router/route.js';
import { PARSE_COMPLETE } from '../wire/backend.js';
import { rewriteBindStatement, rewriteParseName } from '../wire/frontend.js';
import { BACKEND, HEADER_BYTES } from '../wire/message-types.js';
import type { Item } from './batch.js';
import { ClientRead, type OnLease } from './client-read.js';
import type { ClientSession } from './client-session.js';
import type { LaneReads } from './lane-reads.js';
import { shapeFor } from './prepared.js';
import type { ServerStatements } from './server-statements.js';
import { hasShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';

type Of<T extends Item['type']> = Item & { type: T };

const BIND: Expectation = { kind: 'bind', internal: false };
const CLOSE: Expectation = { kind: 'close', internal: false };
const SYNC: Expectation = { kind: 'sync', internal: false };

/** One statement from its Bind, or Parse, to the Sync. */
interface LaneBatch {
  readonly items: readonly Item[];
  readonly parse: Of<'parse'> | null;
  readonly bind: Of<'bind'>;
  /** The client is told the columns, or has yet to ask for them. */
  readonly tells: boolean;
}

/** The batch as one that can run among others, or null. */
export function laneBatch(items: readonly Item[], longest: number): LaneBatch | null {
  let at = 0;
  const first = items[0];
  const parse = first?.type === 'parse' ? first : null;
  if (parse !== null) at += 1;
  const bind = items[at++];
  if (bind?.type !== 'bind' || bind.sql !== null || bind.bind.portal !== '') return null;
  if (parse !== null && parse.statement !== bind.statement) return null;
  const { statement } = bind;
  if (statement.content.definition !== null) return null;
  let bytes = bind.frame.length + (parse?.frame.length ?? 0);
  const describe = items[at];
  const described = describe?.type === 'describe-portal';
  if (described) {
    if (describe.statement !== statement || describe.frame.length > UNNAMED_BYTES) return null;
    at += 1;
  }
  const execute = items[at++];
  if (execute?.type !== 'execute' || execute.bound !== bind.bound || execute.maxRows !== 0) return null;
  const close = items[at];
  if (close?.type === 'close-portal') {
    if (close.name !== '') return null;
    at += 1;
  }
  const sync = items[at++];
  if (sync?.type !== 'sync' || sync.frame.length !== HEADER_BYTES || at !== items.length) return null;
  bytes += execute.frame.length;
  if (bytes > longest) return null;
  return { items, parse, bind, tells: described || parse !== null };
}

/** Describe of the unnamed portal. */
const UNNAMED_BYTES = HEADER_BYTES + 2;

/** A batch of the extended protocol in a lane. */
export class BatchRead extends ClientRead {
  readonly hasPortal = true;
  readonly #onLease: OnLease;
  readonly #batch: LaneBatch;
  readonly #session: ClientSession;
  readonly #statements: ClientStatements;
  readonly #names: ServerStatements;

  constructor(
    reads: LaneReads,
    route: LaneRoute,
    onLease: OnLease,
    batch: LaneBatch,
    session: ClientSession,
    statements: ClientStatements,
    names: ServerStatements,
  ) {
    super(reads, route);
    this.#onLease = onLease;
    this.#batch = batch;
    this.#session = session;
    this.#statements = statements;
    this.#names = names;
  }

  repeat(alone: boolean): void {
    this.reads.repeatBatch(this.#batch.items, this.#onLease, alone);
  }

  override fits(backend: Backend): boolean {
    const { tells, bind } = this.#batch;
    const { version } = this.#session.services.contents;
    return tells || hasShape(backend, bind.statement, bind.bind.statement === '', version);
  }

  send(backend: Backend): void {
    const { items, parse, bind } = this.#batch;
    const names = this.#names;
    if (parse !== null) this.#parse(backend, parse, names);
    for (const item of items) {
      switch (item.type) {
        case 'bind': {
          const name = names.toBind(backend, bind);
          backend.send(name === bind.bind.statement ? item.frame : rewriteBindStatement(item.frame, name), BIND);
          break;
        }
        case 'describe-portal':
          backend.send(item.frame, {
            kind: 'describe',
            internal: false,
            replied: (type, frame) => this.#noteShape(backend, type, frame),
          });
          break;
        case 'execute':
          backend.send(item.frame, {
            kind: 'execute',
            internal: false,
            completed: (frame, empty) => this.completed(frame, empty),
          });
          break;
        case 'close-portal':
          backend.send(item.frame, CLOSE);
          break;
        case 'sync':
          names.closeUnused(backend);
          backend.send(item.frame, SYNC);
          break;
      }
    }
  }

  #parse(backend: Backend, { frame, name, statement }: Of<'parse'>, names: ServerStatements): void {
    const { content } = statement;
    const done = () => {
      if (!this.dropped) this.#statements.parsed(statement);
    };
    // It comes first, so that it is never skipped: it fails, or is lost with the connection and said again.
    const failed = () => {
      if (!this.dropped) this.#statements.undo(name, statement, true);
    };
    if (name === '') {
      backend.unnamed = content;
      this.#session.activity.serverParses += 1;
      const undo = () => {
        backend.unnamed = null;
      };
      backend.send(frame, { kind: 'parse', internal: false, done, failed, undo });
      return;
    }
    statement.made = true;
    if (backend.prepared.has(content)) {
      this.take(PARSE_COMPLETE);
      return;
    }
    this.#session.activity.serverParses += 1;
    const undo = () => backend.prepared.delete(content);
    backend.send(rewriteParseName(frame, names.newName(backend, content)), {
      kind: 'parse',
      internal: false,
      failed,
      undo,
    });
  }

  #noteShape(backend: Backend, type: number, frame: Buffer): void {
    if (type === BACKEND.ParameterDescription) return;
    const { statement } = this.#batch.bind;
    const shape = shapeFor(statement.content, type, frame);
    if (!this.dropped) statement.told = { shape, version: this.#session.services.contents.version };
    if (backend.prepared.has(statement.content)) backend.shapes.set(statement.content, shape);
  }
}
