import pg from 'pg';
import { ForeshardError } from '../../topology/errors.js';
import { SharedLookup } from './shared-lookup.js';
import type { UserRecord, UserSource } from './user-record.js';
import { parseSecret } from './user-secret.js';

/** Reads what PostgreSQL itself would check a password against. */
const READ_AUTHID = `
SELECT rolname, rolpassword, rolcanlogin, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1::pg_catalog.text`;

/** What new passwords get there, and unknown users are shown (PostgreSQL 16). */
const READ_ITERATIONS = `SELECT pg_catalog.current_setting('scram_iterations', true) AS scram_iterations`;

/** pg_roles, which everybody may read: enough where no password is asked for. */
const READ_ROLE = 'SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE rolname = $1::pg_catalog.text';

const NAME_COLUMNS = ['rolname', 'usename', 'user_name'];
const SECRET_COLUMNS = ['rolpassword', 'passwd', 'password', 'verifier'];
const UNTIL_COLUMNS = ['rolvaliduntil', 'valuntil', 'valid_until'];

/** Connections kept for it; look-ups beyond wait for one. */
const CONNECTIONS = 2;
const IDLE_MS = 10_000;

/** A look-up that gave no answer. For the log: a client who is nobody yet is not told how the proxy is set up. */
export class LookupError extends ForeshardError {}

interface Role {
  readonly canLogin: boolean;
}

export interface RoleQueryOptions {
  /** One parameter, the user's name; gives no row, or one. null: the role in pg_authid. */
  readonly sql: string | null;
  /** Logs in to the shard; null: as the user of the shard's URL. */
  readonly login: { readonly user: string; readonly password: string | null } | null;
  readonly timeoutMs: number;
  /** URL of the home shard with its password, asked before each look-up; null: there is no home shard. */
  readonly home: () => { readonly name: string; readonly url: string } | null;
  /** Injected by tests. Default: the time of day, ms since 1970. */
  readonly now?: () => number;
}

/**
 * The auth query: asks the home shard about a user, on connections of its own that nothing of a client's start-up reaches. What runs
 * there has the search_path pinned to pg_catalog, is read only and limited in time; the name is a bound parameter.
 */
export class RoleQuery implements UserSource {
  readonly #options: RoleQueryOptions;
  readonly #now: () => number;
  #connections: Connections | null = null;
  #closed = false;
  #iterations: number | null = null;
  readonly #roles = new SharedLookup<Role | null>(async (user) => {
    const row = await this.#ask(READ_ROLE, [user]);
    return row === null ? null : { canLogin: row.rolcanlogin !== false };
  });

  constructor(options: RoleQueryOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
  }

  /** `scram_iterations` of the home shard, once it has been asked and if it has the setting (PostgreSQL 16). */
  get iterations(): number | null {
    return this.#iterations;
  }

  /** @throws LookupError when it cannot be found out */
  async find(user: string): Promise<UserRecord | null> {
    const [row, setting] = await Promise.all([
      this.#ask(this.#options.sql ?? READ_AUTHID, [user]),
      this.#ask(READ_ITERATIONS, []),
    ]);
    const iterations = Number(setting?.scram_iterations);
    if (Number.isInteger(iterations) && iterations > 0) this.#iterations = iterations;
    if (row === null) return null;
    const name = pick(row, NAME_COLUMNS);
    // A query that finds somebody else is as dangerous as one without a condition.
    if (name !== undefined && name !== user)
      throw new LookupError('28000', `the auth query for user "${user}" gave another user`, {
        hint: 'Compare the name with = $1 in proxy.auth.query.sql.',
      });
    const secret = pick(row, SECRET_COLUMNS);
    if (secret === undefined)
      throw new LookupError('28000', 'the auth query gives no password', {
        hint: `Name a column of it ${SECRET_COLUMNS.join(' or ')} (proxy.auth.query.sql).`,
      });
    return {
      source: 'query',
      secret: typeof secret === 'string' && secret !== '' ? parseSecret(secret) : null,
      expired: isPast(pick(row, UNTIL_COLUMNS), this.#now()),
      canLogin: row.rolcanlogin !== false,
    };
  }

  /** Whether there is such a role and whether it may log in, for methods that ask for no password. */
  role(user: string): Promise<Role | null> {
    return this.#roles.find(user);
  }

  /** Look-ups under way get their answer, and so does who comes later: a login may have begun before a reload. */
  async close(): Promise<void> {
    this.#closed = true;
    const connections = this.#connections;
    this.#connections = null;
    await connections?.retire();
  }

  async #ask(sql: string, values: readonly string[]): Promise<Record<string, unknown> | null> {
    const home = this.#options.home();
    if (home === null) return null;
    // No name in PostgreSQL holds a zero byte, and no parameter can.
    if (values.some((value) => value.includes('\0'))) return null;
    try {
      const { rows } = await this.#query(home.url, sql, values);
      if (rows.length > 1) throw new Error(`the auth query gave ${rows.length} rows`);
      return rows[0] ?? null;
    } catch (error) {
      const denied = (error as { code?: string }).code === '42501';
      throw new LookupError(denied ? '28000' : '57P03', `cannot look up a user on shard "${home.name}"`, {
        detail: error instanceof Error ? error.message : String(error),
        hint: denied
          ? `Give the user of shard "${home.name}" SELECT on pg_authid (superuser), set proxy.auth.query, or list the user elsewhere.`
          : `Check that shard "${home.name}" is up, and proxy.auth.query.`,
        cause: error,
      });
    }
  }

  #query(homeUrl: string, sql: string, values: readonly string[]): Promise<pg.QueryResult<Record<string, unknown>>> {
    if (this.#connections?.homeUrl !== homeUrl) {
      // The home shard has a new address or password: who still uses the old connections gets to the end.
      void this.#connections?.retire();
      this.#connections = new Connections(homeUrl, this.#options);
    }
    const connections = this.#connections;
    const answer = connections.use((pool) => pool.query<Record<string, unknown>>(sql, [...values]));
    if (this.#closed) void this.close();
    return answer;
  }
}

/** Connections to the home shard at one address, which are closed when they are no longer wanted and nobody waits for one or uses it. */
class Connections {
  readonly homeUrl: string;
  readonly #pool: pg.Pool;
  #uses = 0;
  #retired = false;
  #ended: Promise<void> | null = null;
  #onUnused: () => void = () => undefined;

  constructor(homeUrl: string, { login, timeoutMs }: Pick<RoleQueryOptions, 'login' | 'timeoutMs'>) {
    this.homeUrl = homeUrl;
    const url = new URL(homeUrl);
    // They would win over those below.
    url.searchParams.delete('options');
    if (login !== null) {
      url.username = encodeURIComponent(login.user);
      url.password = encodeURIComponent(login.password ?? '');
    }
    this.#pool = new pg.Pool({
      connectionString: url.href,
      max: CONNECTIONS,
      idleTimeoutMillis: IDLE_MS,
      connectionTimeoutMillis: timeoutMs,
      query_timeout: timeoutMs,
      application_name: 'foreshard auth',
      options: `-c search_path=pg_catalog -c default_transaction_read_only=on -c statement_timeout=${timeoutMs}`,
    });
    // A connection that breaks fails the query in flight; there is nothing else to tell.
    this.#pool.on('error', () => undefined);
    this.#pool.on('connect', (client) => client.on('error', () => undefined));
  }

  async use<T>(work: (pool: pg.Pool) => Promise<T>): Promise<T> {
    this.#uses += 1;
    try {
      return await work(this.#pool);
    } finally {
      this.#uses -= 1;
      if (this.#uses === 0 && this.#retired) this.#onUnused();
    }
  }

  /** Resolves when they are closed. A pool that is ended at once would never serve who waits for a connection. */
  retire(): Promise<void> {
    this.#ended ??= this.#end();
    return this.#ended;
  }

  async #end(): Promise<void> {
    this.#retired = true;
    if (this.#uses > 0)
      await new Promise<void>((resolve) => {
        this.#onUnused = resolve;
      });
    await this.#pool.end();
  }
}

function pick(row: Record<string, unknown>, names: readonly string[]): unknown {
  const name = names.find((n) => row[n] !== undefined);
  return name === undefined ? undefined : row[name];
}

function isPast(until: unknown, nowMs: number): boolean {
  if (until instanceof Date) return until.getTime() < nowMs;
  // 'infinity' and '-infinity' come as numbers.
  return typeof until === 'number' && until < nowMs;
}
