import { quoteLiteral } from '../../topology/quote.js';

/** One setting that must be in force on whatever server connection serves the client. */
interface Setting {
  /** The statement that makes it so, without a semicolon. */
  readonly sql: string;
}

type SettingMap = ReadonlyMap<string, Setting>;

/**
 * The settings (GUCs) of one client, kept as the statements that reproduce them. A server connection remembers the
 * signature of the settings it has; when a client with another signature takes it over, `syncSql` is run first.
 *
 * Maps are replaced, never changed, so that a transaction or savepoint remembers the state it began with by keeping a reference.
 */
export class SessionSettings {
  readonly #base: SettingMap;
  #current: SettingMap;
  #signature: string | null = null;
  /** States to go back to: the transaction's start first, then one per open savepoint. */
  #stack: { readonly savepoint: string | null; readonly settings: SettingMap }[] = [];

  /** @param startup settings from the start-up packet; RESET goes back to these. */
  constructor(startup: ReadonlyMap<string, string>) {
    const base = new Map<string, Setting>();
    for (const [name, value] of startup) {
      base.set(name.toLowerCase(), {
        // set_config takes the value as the start-up packet does: one string, lists not quoted once more.
        sql: `SELECT pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, false)`,
      });
    }
    this.#base = base;
    this.#current = base;
  }

  /** Equal signatures mean equal settings. The empty string is a connection as the server opened it. */
  get signature(): string {
    this.#signature ??= [...this.#current.values()].map((s) => s.sql).join('; ');
    return this.#signature;
  }

  /** SQL that takes a connection with any settings to this client's. */
  syncSql(): string {
    const reset = 'RESET SESSION AUTHORIZATION; RESET ALL';
    return this.#current.size === 0 ? reset : `${reset}; ${this.signature}`;
  }

  get(name: string): string | undefined {
    return this.#current.get(name)?.sql;
  }

  /** Whether the client's login gave this setting a value (null: any setting). RESET goes back to that. */
  hasLogin(name: string | null): boolean {
    return name === null ? this.#base.size > 0 : this.#base.has(name);
  }

  set(name: string, sql: string): void {
    const next = new Map(this.#current);
    // Deleted first, so that the order is that of the last change: SET ROLE after SET SESSION AUTHORIZATION stays after it.
    next.delete(name);
    next.set(name, { sql });
    this.#replace(next);
  }

  reset(name: string): void {
    const next = new Map(this.#current);
    const base = this.#base.get(name);
    if (base) next.set(name, base);
    else next.delete(name);
    this.#replace(next);
  }

  resetAll(): void {
    // RESET ALL leaves the role and the session's authorization alone, as PostgreSQL does (GUC_NO_RESET_ALL).
    const next = new Map(this.#base);
    for (const name of ['session_authorization', 'role']) {
      const kept = this.#current.get(name);
      if (kept) next.set(name, kept);
    }
    this.#replace(next);
  }

  /** DISCARD ALL: as after login. */
  discard(): void {
    this.#replace(this.#base);
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
    this.#replace((this.#stack[i] as { settings: SettingMap }).settings);
  }

  /** The transaction is over. Returns whether settings went back, so that the connection's are no longer known from ours. */
  end(committed: boolean): void {
    const first = this.#stack[0];
    this.#stack = [];
    if (!committed && first) this.#replace(first.settings);
  }

  #find(name: string): number {
    for (let i = this.#stack.length - 1; i > 0; i--) if (this.#stack[i]?.savepoint === name) return i;
    return -1;
  }

  #replace(next: SettingMap): void {
    this.#current = next;
    this.#signature = null;
  }
}
