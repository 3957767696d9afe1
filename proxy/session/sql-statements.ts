import type { Backend } from '../backend/backend.js';
import { constantText } from '../router/keys.js';
import { deallocateName, executeName, type Place, prepareParts } from '../router/prepared-names.js';
import type { Analyzed, BoundParams, SessionEffect } from '../router/route.js';
import { decodeErrorFields, encodeErrorResponse } from '../wire/error-response.js';
import type { Execution } from './placement.js';
import type { ClientStatement, PreparedContent } from './prepared.js';
import { characters, type Own, type Rewrite, type SentText } from './sent-text.js';
import { type ClientStatements, protocolName } from './statements.js';

type ExecuteEffect = Extract<SessionEffect, { kind: 'execute' }>;

/** PREPARE, EXECUTE or DEALLOCATE in a text, with what its name stands for when its turn comes. */
type Use = {
  readonly index: number;
  /** As messages have it. */
  readonly name: string;
  readonly place: Place;
} & (
  | { readonly kind: 'prepare'; readonly existing: ClientStatement | null; readonly made: ClientStatement }
  | { readonly kind: 'execute'; readonly effect: ExecuteEffect; readonly statement: ClientStatement | null }
  | { readonly kind: 'deallocate'; readonly statement: ClientStatement | null }
  | { readonly kind: 'deallocate-all' }
);

/** What has to be said to a server so that it does what the text says with the client's names. */
export interface Spoken {
  readonly rewrites: readonly Rewrite[];
  /** The text as it was sent, if it is kept. */
  sent?: SentText;
  /** The client's names, by the names that stand for them on the server; both as text. */
  readonly names: ReadonlyMap<string, string>;
  /** Statements of the protocol's Parse that the connection lacks, with the names they shall have. */
  readonly missing: readonly { readonly content: PreparedContent; readonly name: string }[];
}

const NO_USES: readonly Use[] = [];

/** What is said where statements have the client's names. */
export const AS_IT_IS: Spoken = { rewrites: [], names: new Map(), missing: [] };

const NO_BYTES = Buffer.alloc(0);

/** A name that no server has. */
const NOWHERE = 'foreshard_nowhere';
/** Names that we give on servers. */
const OURS = /^fs_\d+$/;

/**
 * PREPARE, EXECUTE and DEALLOCATE in one text of the client's. Prepared statements are kept in the session: on servers they have
 * names of ours, and are made where they are used. To be given up by `release`.
 */
export class SqlStatements {
  readonly #uses: readonly Use[];
  readonly #statements: ClientStatements;
  readonly #analyzed: Analyzed;
  #defined: Set<ClientStatement> | null = null;
  #released = false;

  /** Reads the text statement by statement, each as if those before it had been done. */
  constructor(analyzed: Analyzed, statements: ClientStatements) {
    this.#statements = statements;
    this.#analyzed = analyzed;
    if (analyzed.statements.every(({ plan }) => plan.effect === null)) {
      this.#uses = NO_USES;
      return;
    }
    const uses: Use[] = [];
    const changed = new Map<string, ClientStatement | null>();
    let all = false;
    const find = (name: string) => {
      const found = changed.get(name);
      return found === undefined && !all ? statements.find(name) : (found ?? null);
    };
    analyzed.statements.forEach(({ plan: { effect }, start, end }, index) => {
      if (effect === null) return;
      const text = analyzed.text.subarray(start, end);
      const at = (place: Place) => ({ start: start + place.start, end: start + place.end });
      if (effect.kind === 'prepare') {
        const parts = prepareParts(text);
        if (parts === null) return;
        const name = protocolName(effect.name);
        const before = characters(analyzed.text.subarray(0, start + parts.name.end));
        // PostgreSQL keeps the whole text.
        const source = { text: analyzed.statements.length === 1 ? analyzed.text : text, before };
        const made = statements.make(source, text, text.subarray(parts.query), parts.name.end, effect.oids);
        uses.push({ kind: 'prepare', index, name, place: at(parts.name), existing: find(name), made });
        changed.set(name, made);
      } else if (effect.kind === 'execute') {
        const place = executeName(text);
        const name = protocolName(effect.name);
        if (place !== null)
          uses.push({ kind: 'execute', index, name, place: at(place), effect, statement: find(name) });
      } else if (effect.kind === 'deallocate' && effect.name === null) {
        all = true;
        changed.clear();
        if (analyzed.statements.length > 1)
          uses.push({ kind: 'deallocate-all', index, name: '', place: { start, end: start } });
      } else if (effect.kind === 'deallocate' && effect.name !== null) {
        const place = deallocateName(text);
        const name = protocolName(effect.name);
        if (place !== null) uses.push({ kind: 'deallocate', index, name, place: at(place), statement: find(name) });
        changed.set(name, null);
      }
    });
    this.#uses = uses;
  }

  get none(): boolean {
    return this.#uses.length === 0;
  }

  /** What really runs where the text says EXECUTE; null: the statement itself. `sure`: names mean what they meant when it was analysed. */
  execution(index: number, sure: boolean): Execution | null {
    const use = this.#uses.find((u) => u.index === index);
    if (use?.kind !== 'execute' || use.effect.form === 'create') return null;
    const { statement, effect } = use;
    // Any server says that there is no such statement.
    if (statement === null) return { analyzed: this.#analyzed, index: -1, params: null, lookup: null };
    const { analyzed, content, lookup } = statement;
    const within = effect.form === 'explain' ? 'EXPLAIN EXECUTE' : 'EXECUTE';
    return { analyzed, index: 0, params: this.#params(effect, content.oids), lookup: sure ? lookup : null, within };
  }

  #params(effect: ExecuteEffect, oids: readonly number[]): BoundParams {
    const analyzed = this.#analyzed;
    const given = { text: analyzed.text, params: null, literal: (ordinal: number) => analyzed.literals[ordinal] };
    // A value that is not known is of a type that no key has.
    const known = effect.args.map((arg) =>
      arg === 'null' ? null : arg === null ? undefined : constantText(arg, given),
    );
    return {
      oids: known.map((value, i) => (value === undefined ? 0xffffffff : (oids[i] ?? 0))),
      formats: known.map(() => 0),
      values: known.map((value) => value ?? (value === null ? null : Buffer.alloc(0))),
    };
  }

  /** For a server connection as it is now. */
  spoken(backend: Backend): Spoken {
    if (backend.byName) return AS_IT_IS;
    const rewrites: Rewrite[] = [];
    const names = new Map<string, string>();
    const missing: { content: PreparedContent; name: string }[] = [];
    /** Made or unmade by this very text. */
    const here = new Map<PreparedContent, string>();
    let all = false;
    const known = (content: PreparedContent) => here.get(content) ?? (all ? undefined : backend.prepared.get(content));
    const shown = (name: string) => Buffer.from(name, 'latin1').toString('utf8');
    /** The name of a statement on the server; `before`: what makes it there. */
    const named = (statement: ClientStatement, before: Own[]) => {
      const { content } = statement;
      const found = known(content);
      if (found !== undefined) return found;
      const name = backend.newStatementName();
      here.set(content, name);
      if (content.definition === null) missing.push({ content, name });
      else before.push({ ...ownPrepare(name, statement), done: () => backend.prepared.set(content, name) });
      return name;
    };
    const replace = (use: Use, by: string, before: readonly Own[], after: readonly Own[] = []) => {
      names.set(by, shown(use.name));
      rewrites.push({ index: use.index, replace: { ...use.place, by }, before, after });
    };
    for (const use of this.#uses) {
      const before: Own[] = [];
      if (use.kind === 'deallocate-all') {
        all = true;
        here.clear();
      } else if (use.kind === 'prepare') {
        const { content } = use.made;
        if (use.existing !== null) {
          // The server, too, is to find the name taken, after it has looked at the statement.
          replace(use, named(use.existing, before), before);
          continue;
        }
        const old = known(content);
        const name = backend.newStatementName();
        here.set(content, name);
        replace(use, name, [], old === undefined ? [] : [{ sql: `DEALLOCATE ${old}` }]);
      } else if (use.statement === null) {
        if (OURS.test(use.name)) replace(use, NOWHERE, []);
      } else if (use.kind === 'execute') {
        replace(use, named(use.statement, before), before);
      } else {
        const name = known(use.statement.content);
        const instead = name ?? backend.newStatementName();
        here.delete(use.statement.content);
        replace(use, instead, name === undefined ? [{ sql: prepareSql(instead, NOTHING) }] : []);
      }
    }
    return { rewrites, names, missing };
  }

  /** The server has done a statement of the text, which was rewritten as `spoken`. */
  done(index: number, backend: Backend, spoken: Spoken): void {
    const use = this.#uses.find((u) => u.index === index);
    if (use === undefined) return;
    if (spoken === AS_IT_IS) {
      if (use.kind === 'prepare' && !this.#released) this.#define(use);
      else if (use.kind === 'deallocate') this.#statements.forget(use.name);
      return;
    }
    const by = spoken.rewrites.find((r) => r.index === index)?.replace?.by;
    if (use.kind === 'prepare' && by !== undefined && !this.#released) {
      backend.prepared.set(use.made.content, by);
      backend.shapes.delete(use.made.content);
      this.#define(use);
    } else if (use.kind === 'deallocate' && use.statement !== null) {
      if (backend.prepared.get(use.statement.content) === by) backend.prepared.delete(use.statement.content);
      this.#statements.forget(use.name);
    }
  }

  #define({ name, made }: Use & { kind: 'prepare' }): void {
    this.#defined ??= new Set();
    this.#defined.add(made);
    this.#statements.define(name, made);
  }

  /** What was not defined is given up. To be called when the text is done with. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    for (const use of this.#uses)
      if (use.kind === 'prepare' && this.#defined?.has(use.made) !== true) this.#statements.release(use.made);
  }
}

const NOTHING = Buffer.from(' AS SELECT');

/** PREPARE under a name of ours. */
export function prepareSql(name: string, definition: Buffer): string {
  return `PREPARE ${name}${definition.toString('latin1')}`;
}

/** PREPARE of what the client has prepared by PREPARE, under a name of ours. */
export function ownPrepare(name: string, { content, source }: ClientStatement): Own {
  const sql = prepareSql(name, content.definition ?? NO_BYTES);
  // PostgreSQL, too, tells the position in the text of the PREPARE.
  return { sql, shift: (source?.before ?? 0) - prepareSql(name, NO_BYTES).length };
}

/** The server's error in a statement of ours, its position that in what the client has written. */
export function errorShifted(frame: Buffer, shift: number | undefined): Buffer {
  const fields = decodeErrorFields(frame);
  if (fields.position === undefined || shift === undefined) return frame;
  return encodeErrorResponse({ ...fields, position: fields.position + shift });
}

/** The server's error with the position in the client's own text, and the client's names. */
export function errorAsWritten(frame: Buffer, sent: SentText | undefined, spoken: Spoken | null): Buffer {
  const named = spoken === null ? frame : renamed(frame, spoken);
  const fields = decodeErrorFields(named);
  if (fields.position === undefined || sent === undefined) return named;
  return encodeErrorResponse({ ...fields, position: sent.position(fields.position) });
}

/** The server's error with the client's names. */
function renamed(frame: Buffer, { names }: Spoken): Buffer {
  const fields = decodeErrorFields(frame);
  if (!NAMES_STATEMENT.has(fields.sqlstate)) return frame;
  let { message } = fields;
  for (const [ours, name] of names) message = message.replace(`"${ours}"`, () => `"${name}"`);
  return message === fields.message ? frame : encodeErrorResponse({ ...fields, message });
}

/** invalid_sql_statement_name, duplicate_prepared_statement, and what EXECUTE says of wrong arguments. */
const NAMES_STATEMENT: ReadonlySet<string> = new Set(['26000', '42P05', '42601']);
