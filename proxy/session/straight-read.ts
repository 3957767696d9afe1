import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import type { LaneRoute } from '../router/route.js';
import { rewriteBindStatement, SYNC } from '../wire/frontend.js';
import { BACKEND, HEADER_BYTES } from '../wire/message-types.js';
import { ClientRead } from './client-read.js';
import type { ClientSession } from './client-session.js';
import type { LaneReads } from './lane-reads.js';
import { type ClientStatement, shapeFor } from './prepared.js';
import type { ServerStatements } from './server-statements.js';
import { hasShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';
import type { StraightBatch } from './straight-batch.js';

const NO_BYTES = Buffer.alloc(0);
const BACKSLASH = 0x5c;
/** By so much a name of ours is longer than the client's at most. */
const NAME_BYTES = 24;

/**
 * A read that came in one piece, and goes to the server and comes back in one: a Query, or the messages from a Parse or Bind to the
 * Sync. A client uses one such object for all of them, one after the other.
 */
export class StraightRead extends ClientRead implements Expectation {
  kind: 'query' | 'batch' = 'query';
  readonly internal = false;
  readonly hasPortal = false;
  readonly #session: ClientSession;
  readonly #statements: ClientStatements;
  readonly #names: ServerStatements;
  #messages: Buffer;
  /** The statement that is bound; null: a Query. */
  #statement: ClientStatement | null = null;
  /** It is prepared by the messages themselves, and the server has yet to say that it is. */
  #parses = false;
  /** The client is told the columns with the rows. */
  #described = false;
  /** Where the Bind begins, and the statement's name there. */
  #bindAt = 0;
  #name = '';

  constructor(
    reads: LaneReads,
    session: ClientSession,
    statements: ClientStatements,
    names: ServerStatements,
    route: LaneRoute,
    messages: Buffer,
  ) {
    super(reads, route);
    this.#session = session;
    this.#statements = statements;
    this.#names = names;
    this.#messages = messages;
  }

  /** @param messages nobody changes them */
  query(route: LaneRoute, messages: Buffer): void {
    this.#begin(route, messages);
    this.kind = 'query';
    this.#statement = null;
  }

  batch(route: LaneRoute, messages: Buffer, statement: ClientStatement, said: StraightBatch): void {
    const { parses, described, bindAt, name } = said;
    this.#begin(route, messages);
    this.kind = 'batch';
    this.#statement = statement;
    this.#parses = parses;
    this.#described = described;
    this.#bindAt = bindAt;
    this.#name = name;
  }

  #begin(route: LaneRoute, messages: Buffer): void {
    this.anew(route.pace);
    this.route = route;
    this.#messages = messages;
  }

  send(backend: Backend): void {
    const statement = this.#statement;
    if (statement === null) {
      backend.send(this.#messages, this);
      return;
    }
    if (backend.toClose.length > 0) this.#names.closeUnused(backend);
    if (this.#parses) {
      backend.unnamed = statement.content;
      this.#session.activity.serverParses += 1;
      backend.send(this.#messages, this);
      return;
    }
    const name = this.#names.nameOf(backend, statement, this.#name === '');
    if (name === this.#name) {
      backend.send(this.#messages, this);
      return;
    }
    const end = this.#bindAt + 1 + this.#messages.readInt32BE(this.#bindAt + 1);
    const bind = rewriteBindStatement(this.#messages.subarray(this.#bindAt, end), name);
    bind.push(this.#messages.subarray(end));
    backend.send(bind, this);
  }

  override fits(backend: Backend): boolean {
    const statement = this.#statement;
    if (statement === null || this.#parses || this.#described) return true;
    return hasShape(backend, statement, this.#name === '', this.#session.services.contents.version);
  }

  override joins(backend: Backend): 'query' | 'batch' | null {
    if (!this.pace.joins) return null;
    const statement = this.#statement;
    // Where it ends is not to depend on how anybody reads a backslash.
    if (statement === null) return this.#messages.includes(BACKSLASH, HEADER_BYTES) ? null : 'query';
    // What is to be closed or prepared before it is said by itself; the unnamed statement may be another's there.
    if (backend.toClose.length > 0) return null;
    return this.#parses || (this.#name !== '' && backend.prepared.has(statement.content)) ? 'batch' : null;
  }

  override get mostBytes(): number {
    return this.#messages.length + NAME_BYTES;
  }

  override put(backend: Backend, into: Buffer, at: number): number {
    const messages = this.#messages;
    const statement = this.#statement;
    if (statement === null) return messages.copy(into, at, HEADER_BYTES, messages.length - 1);
    const end = messages.length - SYNC.length;
    if (this.#parses) {
      backend.unnamed = statement.content;
      this.#session.activity.serverParses += 1;
      return messages.copy(into, at, 0, end);
    }
    const name = this.#names.nameOf(backend, statement, false);
    if (name === this.#name) return messages.copy(into, at, 0, end);
    let to = at;
    const bindEnd = this.#bindAt + 1 + messages.readInt32BE(this.#bindAt + 1);
    for (const piece of rewriteBindStatement(messages.subarray(this.#bindAt, bindEnd), name))
      to += piece.copy(into, to);
    to += messages.copy(into, to, bindEnd, end);
    return to - at;
  }

  protected override answered(bytes: Buffer, ms: number, ready: Buffer | null): void {
    // An idle client keeps nothing of what it sent.
    this.#messages = NO_BYTES;
    super.answered(bytes, ms, ready);
  }

  repeat(alone: boolean): void {
    this.reads.repeat(this.#messages, alone);
  }

  replied(type: number, frame: Buffer): void {
    if (type === BACKEND.ParseComplete) this.#parses = false;
    else if (type === BACKEND.RowDescription || type === BACKEND.NoData) this.described(type, frame);
  }

  failed(): void {
    // The server has given up the unnamed statement before.
    if (!this.#parses) return;
    this.lane.backend.unnamed = null;
    if (!this.dropped) this.#statements.forget('');
  }

  undo(): void {
    if (this.#parses) this.lane.backend.unnamed = null;
  }

  protected override described(type: number, frame: Buffer): void {
    const statement = this.#statement;
    if (statement === null) return;
    const { content, told } = statement;
    const { backend } = this.lane;
    const { version } = this.#session.services.contents;
    const shape = shapeFor(content, type, frame);
    if (!this.dropped && (told === null || told.shape !== shape || told.version !== version))
      statement.told = { shape, version };
    if (this.#name !== '' && backend.shapes.get(content) !== shape && backend.prepared.has(content))
      backend.shapes.set(content, shape);
  }
}
