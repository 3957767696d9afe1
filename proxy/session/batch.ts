import type { Analyzed, BoundParams, Touch } from '../router/route.js';
import type { ErrorFields } from '../wire/error-response.js';
import {
  type BindMessage,
  checkEmpty,
  decodeBind,
  decodeBindHead,
  decodeClose,
  decodeDescribe,
  decodeExecute,
  decodeParse,
} from '../wire/frontend.js';
import { FRONTEND } from '../wire/message-types.js';
import type { HotStatement } from './hot-statement.js';
import type { NameLookup } from './name-lookup.js';
import type { Execution } from './placement.js';
import type { ClientStatement } from './prepared.js';
import { unread } from './refusals.js';
import { type Spoken, SqlStatements } from './sql-statements.js';
import type { ClientStatements } from './statements.js';
import type { Units } from './units.js';

/** A message of a batch, read. */
export type Item =
  | { readonly type: 'parse'; readonly frame: Buffer; readonly name: string; readonly statement: ClientStatement }
  | {
      readonly type: 'bind';
      readonly frame: Buffer;
      /** Bytes of it that come behind `frame`, and are sent on as they come. */
      readonly following: number;
      readonly bind: BindMessage;
      readonly statement: ClientStatement;
      readonly execution: Execution;
      /** PREPARE or EXECUTE: what their names stand for. */
      readonly sql: SqlStatements | null;
      readonly bound: Bound;
      part: readonly Touch[];
    }
  | { readonly type: 'describe-statement'; readonly frame: Buffer; readonly statement: ClientStatement }
  | { readonly type: 'describe-portal'; readonly frame: Buffer; readonly statement: ClientStatement | null }
  | { readonly type: 'execute'; readonly frame: Buffer; readonly bound: Bound | null; readonly maxRows: number }
  | { readonly type: 'close-statement'; readonly name: string; readonly statement: ClientStatement | null }
  | { readonly type: 'close-portal'; readonly frame: Buffer; readonly name: string }
  | { readonly type: 'flush'; readonly frame: Buffer }
  | { readonly type: 'sync'; readonly frame: Buffer };

export interface Message {
  readonly type: number;
  readonly frame: Buffer;
  /** Bytes of it that come behind `frame`; absent: none. Only of the last Bind of a batch. */
  readonly following?: number;
  /** Why it cannot be carried out; `frame` is empty then. */
  readonly error?: Error;
}

/** A batch, read up to the first message that cannot be: `error` says why, `sync` is the Sync behind it, if there is one. */
export interface Reading {
  readonly items: Item[];
  readonly executions: Execution[];
  readonly error: ErrorFields | null;
  readonly sync: Item | null;
  /** To be read when all before it has been answered: the last Execute changes what names stand for. */
  readonly rest: readonly Message[];
}

export interface Bound {
  readonly statement: ClientStatement;
  execution: Execution;
  readonly touches: () => readonly Touch[];
  readonly sql: SqlStatements | null;
  /** As it was bound on the server. */
  spoken: Spoken | null;
  /** It is about hot columns alone, and said where these are; null: it is said as it came. */
  hot: HotStatement | null;
}

/** Reads batches, and remembers which portals the client has bound. */
export class BatchReader {
  /** null: it has bound none yet. */
  #portals: Map<string, Bound> | null = null;
  readonly #statements: ClientStatements;
  readonly #lookup: NameLookup;
  readonly #units: Pick<Units, 'fieldsOf'>;
  readonly #isSpread: () => boolean;

  /** @param isSpread whether rows are on several shards */
  constructor(
    statements: ClientStatements,
    lookup: NameLookup,
    units: Pick<Units, 'fieldsOf'>,
    isSpread: () => boolean,
  ) {
    this.#statements = statements;
    this.#lookup = lookup;
    this.#units = units;
    this.#isSpread = isSpread;
  }

  /** Decodes a batch and finds what its names mean, as the server will when it gets there. */
  read(batch: readonly Message[]): Reading {
    const items: Item[] = [];
    const executions: Execution[] = [];
    const lookup = this.#lookup;
    // What an earlier statement of the batch does to search_path is reported at its end.
    let changing = lookup.pending;
    for (const [i, { type, frame, following, error }] of batch.entries()) {
      try {
        if (error !== undefined) throw error;
        const item = this.#readOne(type, frame, following ?? 0, changing);
        if (item.type === 'bind') executions.push(item.execution);
        if (item.type === 'execute' && item.bound) changing ||= lookup.mayChange(item.bound.statement.analyzed, 0);
        items.push(item);
        if (item.type !== 'execute' || !changesNames(item.bound)) continue;
        const rest = batch.slice(i + 1);
        if (rest.some((m) => m.type !== FRONTEND.Sync && m.type !== FRONTEND.Flush))
          return { items, executions, error: null, sync: null, rest };
      } catch (e) {
        const error = this.#units.fieldsOf(e);
        const last = batch.at(-1);
        const sync: Item | null = last?.type === FRONTEND.Sync ? { type: 'sync', frame: last.frame } : null;
        return { items, executions, error, sync, rest: [] };
      }
    }
    return { items, executions, error: null, sync: null, rest: [] };
  }

  /** The portal's values were large and have been sent: they are not kept as long as it is. */
  forgetValues(portal: string): void {
    const bound = this.#portals?.get(portal);
    if (bound === undefined || bound.execution.params === null) return;
    const { params } = bound.execution;
    bound.execution = { ...bound.execution, params: { ...params, values: new Array(params.values.length) } };
  }

  #readOne(type: number, frame: Buffer, following: number, changing: boolean): Item {
    switch (type) {
      case FRONTEND.Parse: {
        const { name, sql, oids } = decodeParse(frame);
        const statement = this.#statements.add(name, sql, oids);
        return { type: 'parse', frame, name, statement };
      }
      case FRONTEND.Bind: {
        const bind = (following > 0 ? decodeBindHead(frame) : null) ?? decodeBind(frame);
        const statement = this.#statements.get(bind.statement);
        const params: BoundParams = { oids: statement.content.oids, formats: bind.formats, values: bind.values };
        const { analyzed } = statement;
        // Its Parse has gone to a server, which has said what is wrong with it, or takes it.
        if (analyzed.syntaxError && this.#isSpread()) throw unread();
        const sql = sqlOf(analyzed, this.#statements);
        const execution: Execution = sql?.execution(0, !changing) ?? {
          analyzed,
          index: 0,
          params,
          lookup: changing ? null : statement.lookup,
        };
        const bound: Bound = { statement, execution, touches: () => item.part, sql, spoken: null, hot: null };
        const item: Item & { type: 'bind' } = {
          type: 'bind',
          frame,
          following,
          bind,
          statement,
          execution,
          sql,
          bound,
          part: [],
        };
        this.forgetPortal(bind.portal);
        this.#portals ??= new Map();
        this.#portals.set(bind.portal, bound);
        return item;
      }
      case FRONTEND.Describe: {
        const { kind, name } = decodeDescribe(frame);
        if (kind === 'portal')
          return { type: 'describe-portal', frame, statement: this.#portals?.get(name)?.statement ?? null };
        return { type: 'describe-statement', frame, statement: this.#statements.get(name) };
      }
      case FRONTEND.Execute: {
        const { portal, maxRows } = decodeExecute(frame);
        return { type: 'execute', frame, bound: this.#portals?.get(portal) ?? null, maxRows };
      }
      case FRONTEND.Close: {
        const { kind, name } = decodeClose(frame);
        if (kind === 'statement') return { type: 'close-statement', name, statement: this.#statements.take(name) };
        return { type: 'close-portal', frame, name };
      }
      case FRONTEND.Flush:
        checkEmpty(frame);
        return { type: 'flush', frame };
      default:
        return { type: 'sync', frame };
    }
  }

  forgetPortal(name: string): void {
    this.#portals?.get(name)?.sql?.release();
    this.#portals?.delete(name);
  }

  forgetPortals(): void {
    if (this.#portals === null || this.#portals.size === 0) return;
    for (const name of [...this.#portals.keys()]) this.forgetPortal(name);
  }

  /** Takes back what reading the batch did. */
  undo(items: readonly Item[]): void {
    for (const item of [...items].reverse()) {
      if (item.type === 'close-statement') this.#statements.restore(item.name, item.statement);
      else if (item.type === 'parse') this.#statements.undo(item.name, item.statement, false);
    }
  }
}

/** PREPARE, and EXECUTE of something that is prepared. */
export function sqlOf(analyzed: Analyzed, statements: ClientStatements): SqlStatements | null {
  const effect = analyzed.statements[0]?.plan.effect;
  return effect?.kind === 'prepare' || effect?.kind === 'execute' ? new SqlStatements(analyzed, statements) : null;
}

function changesNames(bound: Bound | null): boolean {
  switch (bound?.statement.analyzed.statements[0]?.plan.effect?.kind) {
    case 'prepare':
    case 'deallocate':
    case 'discard-all':
      return true;
    default:
      return false;
  }
}

/** The Sync that ends the batch. */
export function syncOf(items: readonly Item[]): Item | null {
  const last = items.at(-1);
  return last?.type === 'sync' ? last : null;
}
