import { quoteIdent, quoteLiteral } from '../../topology/quote.js';

/** One setting that must be in force on whatever server connection serves the client. */
interface Setting {
  /** The statement that makes it so, without a semicolon; a byte string, as the client sent it. */
  readonly sql: string;
  /** What it is, where that is known without a server. */
  readonly value?: string;
}

/** Settings by lower-case name, the one changed last at the end. Maps are replaced, never changed. */
export type SettingMap = ReadonlyMap<string, Setting>;

/** A connection as the server opened it. */
export const NO_SETTINGS: SettingMap = new Map();

/** They decide what the others may be set to, and RESET ALL leaves them alone (GUC_NO_RESET_ALL). */
const IDENTITY: readonly string[] = ['session_authorization', 'role'];

/** It would cut the exchange of settings itself: no longer in force before, and in force again last. */
const STATEMENT_TIMEOUT = 'statement_timeout';

/** They bound what a server process may do, or how long it may do nothing: not to be left behind on a connection that nobody has. */
const BOUNDS: readonly string[] = ['idle_session_timeout', 'transaction_timeout'];

/**
 * How old what is read may be, for reads that a replica can answer. PostgreSQL knows nothing of it, and keeps it as it keeps any setting with a
 * prefix.
 */
export const MAX_STALENESS = 'foreshard.max_staleness';

/** Time-outs that the proxy carries out while the client has no server connection. */
export const TIMEOUTS = ['idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'] as const;

/** map_old_guc_names in PostgreSQL's guc.c */
const OLD_NAMES: ReadonlyMap<string, string> = new Map([
  ['sort_mem', 'work_mem'],
  ['vacuum_mem', 'maintenance_work_mem'],
]);

/** A setting's name as it is kept: PostgreSQL compares names without regard to case. */
function settingName(name: string): string {
  const lower = name.replace(/[A-Z]/g, (c) => c.toLowerCase());
  return OLD_NAMES.get(lower) ?? lower;
}

/** Whether what a value makes of the setting depends on what it was before: DateStyle is a style and an order, given together or alone. */
function isRelative(name: string): boolean {
  return settingName(name) === 'datestyle';
}

/** Whether the value is needed here, in the server's words, whichever way it was set. */
export function isAsked(name: string): boolean {
  const key = settingName(name);
  return isRelative(name) || key === MAX_STALENESS || (TIMEOUTS as readonly string[]).includes(key);
}

/** A statement, as a byte string, that gives a setting a value as the start-up packet does: one string, lists not quoted once more. */
function setConfig(name: string, value: string, local = false): string {
  return bytes(`SELECT pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, ${local})`);
}

/** Statements that take a connection from settings that may be anything to `to`. */
export function fromScratch(to: SettingMap): string[] {
  return ['RESET SESSION AUTHORIZATION', 'RESET ROLE', 'RESET ALL', ...timeoutLast(to).map(([, s]) => s.sql)];
}

/** A statement to be said alone, before those that take a connection from the settings `from` to others; null: none. */
export function ahead(from: SettingMap | null): string | null {
  return from === null || from.has(STATEMENT_TIMEOUT) ? 'RESET statement_timeout' : null;
}

function timeoutLast(settings: SettingMap): (readonly [string, Setting])[] {
  const isTimeout = ([name]: readonly [string, Setting]) => name === STATEMENT_TIMEOUT;
  const all = [...settings];
  return [...all.filter((s) => !isTimeout(s)), ...all.filter(isTimeout)];
}

/**
 * Statements that take a connection with the settings `from` to `to`; none when they are equal. What both have alike is not touched.
 *
 * Identities are taken back first and given again in their order, so that a value which only a role may set is set by that role. Taking
 * back such a value may need more than the login may do: then the server refuses, and `fromScratch`, which needs no privilege, is left.
 */
export function difference(from: SettingMap, to: SettingMap): string[] {
  if (from === to) return [];
  const gone = [...from.keys()].filter((name) => !to.has(name) && !IDENTITY.includes(name));
  const asIdentity = IDENTITY.some((name) => from.has(name) || to.has(name));
  // What was said ahead has taken it back.
  const timeout = to.get(STATEMENT_TIMEOUT);
  const again = from.has(STATEMENT_TIMEOUT) && timeout !== undefined ? [STATEMENT_TIMEOUT] : [];
  const changed = [...to].filter(([name, { sql }]) => from.get(name)?.sql !== sql);
  if (gone.length === 0 && changed.length === 0 && IDENTITY.every((name) => from.get(name)?.sql === to.get(name)?.sql))
    return [];
  const sql = asIdentity ? ['RESET SESSION AUTHORIZATION', 'RESET ROLE'] : [];
  for (const name of gone) sql.push(`RESET ${quotedName(name)}`);
  for (const [name] of changed) if (isRelative(name) && from.has(name)) sql.push(`RESET ${quotedName(name)}`);
  for (const [name, setting] of timeoutLast(to))
    if (IDENTITY.includes(name) || again.includes(name) || from.get(name)?.sql !== setting.sql) sql.push(setting.sql);
  return sql;
}

/**
 * How a connection with the settings `from` (null: not known) is made fit to be nobody's: the statements, and the settings that it has then. Null:
 * it is. What the next client would change anyway is left as it is.
 */
export function forNobody(
  from: SettingMap | null,
): { readonly sql: readonly string[]; readonly to: SettingMap } | null {
  if (from === null) return { sql: fromScratch(NO_SETTINGS), to: NO_SETTINGS };
  const left = BOUNDS.filter((name) => from.has(name));
  if (left.length === 0) return null;
  const to = new Map(from);
  for (const name of left) to.delete(name);
  return { sql: left.map((name) => `RESET ${name}`), to };
}

/** Transactions change nothing unless they say that they do. */
const READ_ONLY = 'default_transaction_read_only';
/** What makes other settings those of `readOnly`. */
export const SET_READ_ONLY = `SET ${READ_ONLY} TO on`;

/** These settings, for statements that are not to change anything. */
export function readOnly(settings: SettingMap): SettingMap {
  const all = new Map(settings);
  all.delete(READ_ONLY);
  all.set(READ_ONLY, { sql: SET_READ_ONLY });
  return all;
}

/** Whether two have the same settings in the same order. */
export function areAlike(a: SettingMap, b: SettingMap): boolean {
  if (a === b) return true;
  if (a.size !== b.size) return false;
  const others = b.entries();
  for (const [name, { sql }] of a) {
    const [otherName, other] = others.next().value as [string, Setting];
    if (name !== otherName || sql !== other.sql) return false;
  }
  return true;
}

/** `my.setting` is two identifiers. */
function quotedName(name: string): string {
  return name.split('.').map(quoteIdent).join('.');
}

/**
 * The settings (GUCs) of one client, kept as the statements that reproduce them. A server connection remembers the settings it has;
 * when a client with others takes it over, the difference is made up first.
 *
 * Maps are replaced, never changed, so that a transaction or savepoint remembers the state it began with by keeping a reference.
 */
export class SessionSettings {
  /** What the client's login gave. */
  readonly #base: SettingMap = NO_SETTINGS;
  #current: SettingMap = NO_SETTINGS;
  /** States to go back to: the transaction's start first, then one per open savepoint. */
  #stack: { readonly savepoint: string | null; readonly settings: SettingMap }[] = [];

  /** @param startup settings from the start-up packet; RESET goes back to these. */
  constructor(startup: ReadonlyMap<string, string>) {
    if (startup.size > 0) {
      const base = new Map<string, Setting>();
      for (const [name, value] of startup) base.set(settingName(name), { sql: setConfig(name, value), value });
      this.#base = base;
      this.#current = base;
    }
  }

  get current(): SettingMap {
    return this.#current;
  }

  /** Those in force outside of the transaction that is open; without one the same. A rollback leaves these, wherever it comes. */
  get outside(): SettingMap {
    return this.#stack[0]?.settings ?? this.#current;
  }

  get(name: string): string | undefined {
    const sql = this.#current.get(name)?.sql;
    return sql === undefined ? undefined : Buffer.from(sql, 'latin1').toString('utf8');
  }

  /** What it is, as far as that is known without a server. */
  value(name: string): string | undefined {
    return this.#current.get(name)?.value;
  }

  /**
   * What has to follow RESET on a server connection, which goes back to the server's own value: statements that bring the value of
   * the client's login back. `name` null: RESET ALL.
   */
  afterReset(name: string | null, local = false): string[] {
    const names = name === null ? [...this.#base.keys()] : [settingName(name)];
    return names.flatMap((n) => {
      const value = this.#base.get(n)?.value;
      if (value === undefined || (name === null && IDENTITY.includes(n))) return [];
      return [setConfig(n, value, local)];
    });
  }

  /** Gives it this value, of which the server has said or will say that it takes it. */
  setValue(name: string, value: string): void {
    this.#set(name, { sql: setConfig(name, value), value });
  }

  /** It is what this statement, a byte string, makes of it. */
  set(name: string, sql: string): void {
    this.#set(name, { sql });
  }

  #set(name: string, setting: Setting): void {
    const key = settingName(name);
    const next = new Map(this.#current);
    // Deleted first, so that the order is that of the last change: SET ROLE after SET SESSION AUTHORIZATION stays after it.
    next.delete(key);
    if (key === 'session_authorization') next.delete('role'); // which it takes back
    next.set(key, setting);
    this.#current = next;
  }

  reset(name: string): void {
    const key = settingName(name);
    const next = new Map(this.#current);
    next.delete(key);
    if (key === 'session_authorization') next.delete('role');
    const base = this.#base.get(key);
    if (base) next.set(key, base);
    this.#current = next;
  }

  resetAll(): void {
    const next = new Map(this.#base);
    for (const name of IDENTITY) {
      const kept = this.#current.get(name);
      if (kept) next.set(name, kept);
    }
    this.#current = next;
  }

  /** DISCARD ALL: as after login. */
  discard(): void {
    this.#current = this.#base;
  }

  begin(): void {
    if (this.#stack.length === 0) this.#stack.push({ savepoint: null, settings: this.#current });
  }

  savepoint(name: string): void {
    if (this.#stack.length > 0) this.#stack.push({ savepoint: name, settings: this.#current });
  }

  release(name: string): void {
    const i = this.#find(name);
    if (i > 0) this.#stack.length = i;
  }

  rollbackTo(name: string): void {
    const i = this.#find(name);
    if (i <= 0) return;
    this.#stack.length = i + 1;
    this.#current = (this.#stack[i] as { settings: SettingMap }).settings;
  }

  /** The transaction is over. */
  end(committed: boolean): void {
    const first = this.#stack[0];
    if (first !== undefined) this.#stack = [];
    if (!committed && first) this.#current = first.settings;
  }

  #find(name: string): number {
    for (let i = this.#stack.length - 1; i > 0; i--) if (this.#stack[i]?.savepoint === name) return i;
    return -1;
  }
}

/** UTF-8 as a byte string. */
function bytes(text: string): string {
  return Buffer.from(text).toString('latin1');
}
