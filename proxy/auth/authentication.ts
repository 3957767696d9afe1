import { createHash } from 'node:crypto';
import type { Logger } from 'pino';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { LoginUsers } from '../../topology/catalog/login-users.js';
import type { AuthenticationServices } from './authenticate.js';
import { CatalogUsers } from './catalog-users.js';
import { FailedLogins, type FailureLimits, type LoginEvent } from './failed-logins.js';
import type { AuthMethod } from './hba.js';
import { AuthPolicy } from './policy.js';
import { RefusalLog } from './refusal-log.js';
import { RoleQuery } from './role-query.js';
import { ServerSecrets } from './server-secrets.js';
import { type ConfiguredUser, UserDirectory } from './user-directory.js';

/** proxy.auth of the configuration, with its defaults; paths are absolute or relative to the working directory. */
export interface AuthOptions {
  readonly method: AuthMethod;
  readonly users: ReadonlyMap<string, ConfiguredUser>;
  readonly hba?: readonly string[] | null;
  readonly hbaFile?: string | null;
  readonly ident?: readonly string[] | null;
  readonly identFile?: string | null;
  readonly usersFile?: string | null;
  readonly cacheMs?: number;
  readonly query?: {
    readonly enabled: boolean;
    readonly sql: string | null;
    readonly user: string | null;
    readonly password: string | null;
    readonly timeoutMs: number;
  };
  readonly failures?: FailureLimits;
}

const DEFAULT_QUERY = { enabled: true, sql: null, user: null, password: null, timeoutMs: 5000 };
const DEFAULT_FAILURES: FailureLimits = { free: 5, delayMs: 250, maxDelayMs: 5000, forgetMs: 600_000 };

export interface AuthenticationParts {
  readonly catalog: Catalog;
  readonly logger: Logger;
  readonly serverPasswords: ReadonlyMap<string, string>;
  /** Tells the other processes on the port. */
  readonly tellLogin?: (event: LoginEvent) => void;
  /** See RoleQueryOptions. */
  readonly home: () => { readonly name: string; readonly url: string } | null;
}

/** Passwords in both directions: who may come in, and what servers are shown. */
export class Authentication {
  readonly secrets: ServerSecrets;
  readonly #parts: AuthenticationParts;
  readonly #stored: CatalogUsers;
  readonly #refusals: RefusalLog;
  readonly #mockSecret: Buffer;
  #services: AuthenticationServices;

  /** @throws UsageError with every mistake in rules and users' files; CatalogUnavailableError */
  static async start(options: AuthOptions, parts: AuthenticationParts): Promise<Authentication> {
    const policy = await loadPolicy(options, parts.logger);
    const stored = await CatalogUsers.load(new LoginUsers(parts.catalog), parts.logger);
    const { rows } = await parts.catalog.pool.query<{ cluster_id: string }>('SELECT cluster_id FROM foreshard.meta');
    // The same in all processes of an installation, and not to be known without reading its catalog.
    const mockSecret = createHash('sha256').update(`foreshard mock ${rows[0]?.cluster_id}`).digest();
    return new Authentication(options, parts, { policy, stored, mockSecret });
  }

  private constructor(
    options: AuthOptions,
    parts: AuthenticationParts,
    loaded: { readonly policy: AuthPolicy; readonly stored: CatalogUsers; readonly mockSecret: Buffer },
  ) {
    this.#parts = parts;
    this.#stored = loaded.stored;
    this.#mockSecret = loaded.mockSecret;
    this.#refusals = new RefusalLog(parts.logger, now);
    this.#services = this.#make(options, loaded.policy, null);
    this.secrets = new ServerSecrets({ passwords: parts.serverPasswords, users: this.#services.users });
  }

  /** For a login that begins now. */
  get services(): AuthenticationServices {
    return this.#services;
  }

  /**
   * New logins go by these options and by the files as they are now.
   * @throws what is wrong with any of them; then all stays as it was
   */
  async reload(options: AuthOptions, serverPasswords: ReadonlyMap<string, string>): Promise<void> {
    const policy = await loadPolicy(options, this.#parts.logger);
    const before = this.#services;
    this.#services = this.#make(options, policy, before);
    this.secrets.reload({ passwords: serverPasswords, users: this.#services.users });
    before.users.close();
    // Look-ups under way get their answers.
    void before.roles?.close();
  }

  /** What another process on the port tells. */
  hearLogin(event: LoginEvent): void {
    this.#services.failures.hear(event, now());
  }

  async close(): Promise<void> {
    this.#services.users.close();
    await this.#services.roles?.close();
  }

  #make(options: AuthOptions, policy: AuthPolicy, before: AuthenticationServices | null): AuthenticationServices {
    const query = options.query ?? DEFAULT_QUERY;
    const roles = query.enabled
      ? new RoleQuery({
          sql: query.sql,
          login: query.user === null ? null : { user: query.user, password: query.password },
          timeoutMs: query.timeoutMs,
          home: this.#parts.home,
        })
      : null;
    const users = new UserDirectory({
      configured: options.users,
      file: () => policy.users,
      sources: roles === null ? [this.#stored] : [this.#stored, roles],
      cacheMs: options.cacheMs ?? 0,
    });
    const limits = options.failures ?? DEFAULT_FAILURES;
    // What is held against whom outlasts a reload.
    const failures = before?.failures ?? new FailedLogins(limits, this.#parts.tellLogin);
    failures.reload(limits);
    return { policy, users, roles, failures, refusals: this.#refusals, mockSecret: this.#mockSecret, now };
  }
}

const now = (): number => performance.now();

function loadPolicy(options: AuthOptions, logger: Logger): Promise<AuthPolicy> {
  return AuthPolicy.load(
    {
      method: options.method,
      hba: options.hba ?? [],
      hbaFile: options.hbaFile ?? null,
      ident: options.ident ?? [],
      identFile: options.identFile ?? null,
      usersFile: options.usersFile ?? null,
    },
    logger,
  );
}
