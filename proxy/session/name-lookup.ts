import type { SessionNames } from '../router/analyzed-text.js';
import type { Analyzed, StatementPlan } from '../router/route.js';
import { checkClientEncoding } from '../wire/startup-options.js';
import { parseSearchPath } from './search-path.js';

/** Idle, in ReadyForQuery. */
const IDLE = 0x49;

/** What names in the client's SQL mean. The same object as long as nothing of it changes. */
export interface Lookup {
  readonly names: SessionNames;
  /** search_path is certain; if not, the plan of a statement may be one for other tables. */
  readonly sure: boolean;
}

/** What names and texts mean by these parameter values, to be compared. */
export function namesOf(parameters: ReadonlyMap<string, string>): string {
  const path = parameters.get('search_path');
  return `${path === undefined ? '' : `=${path}`}\0${parameters.get('client_encoding')}\0${parameters.get('standard_conforming_strings')}`;
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
  /** Parameter values the client has been told. */
  readonly known = new Map<string, string>();
  readonly #user: string;
  /** The path was changed in the transaction at hand, so that its end, and ROLLBACK TO, change it again. */
  #touched = false;
  /** Something was sent that may change the path; what it has become is known when the server is ready. */
  #pending = false;
  /** A statement that may have changed the path is done. */
  #changed = false;
  #last: {
    readonly path: string | undefined;
    readonly encoding: string | undefined;
    readonly conforming: boolean;
    readonly lookup: Lookup;
  } | null = null;

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
    this.known.set(name, value);
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
    const reported = this.known.get('search_path');
    const encoding = this.known.get('client_encoding');
    const conforming = this.known.get('standard_conforming_strings') !== 'off';
    const last = this.#last;
    if (last !== null && last.path === reported && last.encoding === encoding && last.conforming === conforming)
      return last.lookup;
    const path = reported === undefined ? null : parseSearchPath(reported);
    const lookup: Lookup = {
      names: {
        searchPath: path ?? [],
        user: this.#user,
        ...(encoding === undefined || encoding === 'UTF8' ? {} : { encoding }),
        ...(conforming ? {} : { conforming }),
      },
      sure: path !== null,
    };
    this.#last = { path: reported, encoding, conforming, lookup };
    return lookup;
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
