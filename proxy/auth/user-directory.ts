import NodeCache from 'node-cache';
import { SharedLookup } from './shared-lookup.js';
import type { UserRecord, UserSource } from './user-record.js';
import { parseSecret } from './user-secret.js';

export interface ConfiguredUser {
  readonly password?: string;
  readonly verifier?: string;
}

export interface UserDirectoryOptions {
  readonly configured: ReadonlyMap<string, ConfiguredUser>;
  /** Name and secret of the users' file, as it is now. */
  readonly file: () => ReadonlyMap<string, string>;
  /** Asked in this order after those two. */
  readonly sources: readonly UserSource[];
  /** How long what a source said may be used again, ms; 0: not at all. */
  readonly cacheMs: number;
}

export interface Found {
  readonly record: UserRecord | null;
  /** It was read before this login began: a password that does not fit may have been changed since. */
  readonly cached: boolean;
}

/** Users from all their sources: configuration, file, catalog, query on a shard. The first that knows a user counts. */
export class UserDirectory {
  readonly #options: UserDirectoryOptions;
  readonly #cache: NodeCache | null;
  readonly #lookup = new SharedLookup((user) => this.#ask(user));

  constructor(options: UserDirectoryOptions) {
    this.#options = options;
    const { cacheMs } = options;
    this.#cache =
      cacheMs === 0
        ? null
        : new NodeCache({ stdTTL: cacheMs / 1000, checkperiod: Math.max(1, cacheMs / 1000), useClones: false });
  }

  async find(user: string): Promise<Found> {
    const { configured, file } = this.#options;
    const own = configured.get(user);
    const text = own?.verifier ?? own?.password;
    if (text !== undefined)
      return {
        cached: false,
        record: known('configuration', own?.password === undefined ? text : null, own?.password ?? null),
      };
    const listed = file().get(user);
    if (listed !== undefined) return { cached: false, record: known('file', listed, null) };
    const cached = this.#cache?.get<UserRecord | null>(user);
    if (cached !== undefined) return { cached: true, record: cached };
    return { cached: false, record: await this.#lookup.find(user) };
  }

  /** As it is now, past the cache. */
  async findAgain(user: string): Promise<UserRecord | null> {
    this.#cache?.del(user);
    return (await this.find(user)).record;
  }

  /** Whether the configuration or the file name this user; such a user need not be a role that the home shard tells of. */
  isListed(user: string): boolean {
    return this.#options.configured.has(user) || this.#options.file().has(user);
  }

  /** What the configuration or the file have as this user's password itself; null when they do not have it. */
  passwordOf(user: string): string | null {
    const { configured, file } = this.#options;
    const own = configured.get(user);
    if (own !== undefined) return own.password ?? null;
    const secret = parseSecret(file().get(user) ?? '');
    return secret.kind === 'plain' && secret.password !== '' ? secret.password : null;
  }

  close(): void {
    this.#cache?.close();
  }

  async #ask(user: string): Promise<UserRecord | null> {
    let record: UserRecord | null = null;
    for (const source of this.#options.sources) {
      record = await source.find(user);
      if (record !== null) break;
    }
    this.#cache?.set(user, record);
    return record;
  }
}

/** `text` in the form of pg_authid.rolpassword, or a `password` that is one whatever it looks like. */
function known(source: 'configuration' | 'file', text: string | null, password: string | null): UserRecord {
  const secret =
    password !== null
      ? ({ kind: 'plain', password } as const)
      : text === null || text === ''
        ? null
        : parseSecret(text);
  return { source, secret, expired: false, canLogin: true };
}
