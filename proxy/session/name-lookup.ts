import type { SessionNames } from '../router/analyzed-text.js';
import type { Analyzed, StatementPlan } from '../router/route.js';
import { checkClientEncoding } from '../wire/startup-options.js';
import { parseSearchPath } from './search-path.js';

/** Idle, in ReadyForQuery. */
const IDLE = 0x49;

/** What names in the client's SQL mean. The same object as long as nothing of it changes; others who look names up alike may have it, too. */
export interface Lookup {
  readonly names: SessionNames;
  /** search_path is certain; if not, the plan of a statement may be one for other tables. */
  readonly sure: boolean;
  /** The parameters of which it was made; and `namesOf` them. */
  readonly path: string | undefined;
  readonly encoding: string | undefined;
  readonly strings: string | undefined;
  readonly signature: string;
}

/** What names and texts mean by these parameter values, to be compared. */
export function namesOf(parameters: ReadonlyMap<string, string>): string {
  return signatureOf(
    parameters.get('search_path'),
    parameters.get('client_encoding'),
    parameters.get('standard_conforming_strings'),
  );
}

function signatureOf(path: string | undefined, encoding: string | undefined, strings: string | undefined): string {
  return `${path === undefined ? '' : `=${path}`}\0${encoding}\0${strings}`;
}

const NOTHING: ReadonlyMap<string, string> = new Map();

/** How many of what clients have alike are remembered to be shared: most clients of an application are told the same, and look names up alike. */
const SHARED = 16;

/** Those used for the first time last. */
const lookups: Lookup[] = [];
const told: ReadonlyMap<string, string>[] = [];

function remember<T>(shared: T[], one: T): T {
  if (shared.length === SHARED) shared.shift();
  shared.push(one);
  return one;
}

function lookupOf(user: string, parameters: Pick<Lookup, 'path' | 'encoding' | 'strings'>): Lookup {
  const { path, encoding, strings } = parameters;
  const like = lookups.find(
    (one) => one.path === path && one.encoding === encoding && one.strings === strings && one.names.user === user,
  );
  if (like !== undefined) return like;
  const searchPath = path === undefined ? null : parseSearchPath(path);
  return remember(lookups, {
    names: {
      searchPath: searchPath ?? [],
      user,
      ...(encoding === undefined || encoding === 'UTF8' ? {} : { encoding }),
      ...(strings === 'off' ? { conforming: false } : {}),
    },
    sure: searchPath !== null,
    ...parameters,
    signature: signatureOf(path, encoding, strings),
  });
}

function areEqual(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  if (a.size !== b.size) return false;
  for (const [name, value] of a) if (b.get(name) !== value) return false;
  return true;
}

/** Settings on which it depends what a text means. */
const SETTINGS: ReadonlySet<string> = new Set(['search_path', 'client_encoding', 'standard_conforming_strings']);

/**
 * The parameter values the client was told last, and what follows from them for reading its SQL: search_path, client_encoding
 * and standard_conforming_strings.
 *
 * PostgreSQL 18 reports search_path, so that whatever changed it (SET LOCAL, set_config, ALTER ROLE … SET, ROLLBACK TO) is known
 * by the time it is ready for the next Query or batch. Older servers are asked: at the login, and after what may have changed it.
 */
export class NameLookup {
  #known: ReadonlyMap<string, string> = NOTHING;
  /** The same, if nobody else has it. */
  #own: Map<string, string> | null = null;
  readonly #user: string;
  /** The path was changed in the transaction at hand, so that its end, and ROLLBACK TO, change it again. */
  #touched = false;
  /** Something was sent that may change the path; what it has become is known when the server is ready. */
  #pending = false;
  /** A statement that may have changed the path is done. */
  #changed = false;
  #last: Lookup | null = null;

  constructor(user: string) {
    this.#user = user;
  }

  /** The server reports what the client's statements have made of a parameter; `learn` follows when it is ready. */
  reported(name: string): void {
    if (name === 'search_path' || name === 'standard_conforming_strings') this.#touched = true;
  }

  /** The client is told a parameter's value. @throws ForeshardError for an encoding that the lexer cannot read. */
  learn(name: string, value: string): void {
    if (name === 'client_encoding') checkClientEncoding(value);
    this.#own ??= new Map(this.#known);
    this.#own.set(name, value);
    this.#known = this.#own;
  }

  /** Parameter values the client has been told. */
  get known(): ReadonlyMap<string, string> {
    return this.#known;
  }

  /** The client has been told what all are told at first: it shares that with others until it is told something else. */
  share(): void {
    const { known } = this;
    this.#known = told.find((one) => areEqual(one, known)) ?? remember(told, known);
    this.#own = null;
  }

  /** Whether a server connection looks names up as this says. */
  agrees(parameters: ReadonlyMap<string, string>): boolean {
    const { known } = this;
    return (
      parameters.get('search_path') === known.get('search_path') &&
      parameters.get('client_encoding') === known.get('client_encoding') &&
      parameters.get('standard_conforming_strings') === known.get('standard_conforming_strings')
    );
  }

  /** client_encoding, as the client was told it. */
  get encoding(): string {
    return this.known.get('client_encoding') ?? 'UTF8';
  }

  get current(): Lookup {
    const known = this.#known;
    const path = known.get('search_path');
    const encoding = known.get('client_encoding');
    const strings = known.get('standard_conforming_strings');
    const last = this.#last;
    if (last !== null && last.path === path && last.encoding === encoding && last.strings === strings) return last;
    this.#last = lookupOf(this.#user, { path, encoding, strings });
    return this.#last;
  }

  /** Whether what was sent since the server was ready may have changed the lookup. */
  get pending(): boolean {
    return this.#pending;
  }

  /** A statement that may change it has been sent. */
  sent(): void {
    this.#pending = true;
  }

  /** Whether statements behind this one may look names up in another way. */
  mayChange(analyzed: Analyzed, index: number): boolean {
    const statement = analyzed.statements[index];
    if (statement === undefined) return false;
    const { effect, kind, target, unsureOfState } = statement.plan;
    switch (effect?.kind) {
      case undefined:
      case 'set-config':
        // A call of set_config is always planned as a write.
        return (
          target.kind === 'sole' || unsureOfState === true || (kind === 'write' && this.#setsByCall(analyzed, index))
        );
      case 'set':
        return (
          effect.name === null || (SETTINGS.has(effect.name.toLowerCase()) && !this.#keepsStrings(analyzed, index))
        );
      case 'discard-all':
        return true;
      case 'commit':
      case 'rollback':
      case 'rollback-to':
        return this.#touched;
      default:
        return false;
    }
  }

  /** Whether standard_conforming_strings is set to on, as many drivers and pg_dump do, while it is on. */
  #keepsStrings(analyzed: Analyzed, index: number): boolean {
    const { start, end } = analyzed.statements[index] as Analyzed['statements'][number];
    return (
      end - start < 100 &&
      this.current.names.conforming === undefined &&
      /^set\s+(session\s+)?standard_conforming_strings\s*(=|to)\s*'?(on|true)'?$/i.test(
        analyzed.text.toString('latin1', start, end),
      )
    );
  }

  /** A statement has been done by the server. */
  done(analyzed: Analyzed, index: number): void {
    if (!this.mayChange(analyzed, index)) return;
    this.#touched = true;
    this.#changed = true;
  }

  /** Whether the path may be another one by now. To be asked before `ready`. */
  unsure(status: number): boolean {
    return this.#pending || this.#changed || (status === IDLE && this.#touched);
  }

  /** The server is ready for the next Query or batch; what it had to report it has. */
  ready(status: number): void {
    this.#pending = false;
    this.#changed = false;
    if (status === IDLE) this.#touched = false;
  }

  /** Whether the statement calls set_config for one of our settings, or for one that is not written there. */
  #setsByCall(analyzed: Analyzed, index: number): boolean {
    const { plan, start, end } = analyzed.statements[index] as Analyzed['statements'][number];
    let calls = callsSetConfig.get(plan);
    if (calls === false) return false;
    const text = analyzed.text.toString('latin1', start, end);
    calls = /set_config/i.test(text);
    callsSetConfig.set(plan, calls);
    for (const m of text.matchAll(/set_config"?(?:\s*\(\s*'([^']*)'\s*,)?/gi))
      if (m[1] === undefined || SETTINGS.has(m[1].toLowerCase())) return true;
    return false;
  }
}

/** By plan, that is by template: which function is called is the same for all of its texts. */
const callsSetConfig = new WeakMap<StatementPlan, boolean>();
