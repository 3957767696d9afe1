import type { Logger } from 'pino';
import type { LoginUsers, StoredUser } from '../../topology/catalog/login-users.js';
import type { UserRecord, UserSource } from './user-record.js';
import { parseSecret } from './user-secret.js';

/**
 * Users that live in the catalog (`foreshard user add`). The catalog is asked each time; while it is away, what it said last counts, so that
 * clients can log in for as long as the proxy may serve.
 */
export class CatalogUsers implements UserSource {
  readonly #store: LoginUsers;
  readonly #logger: Logger;
  readonly #known: Map<string, StoredUser>;

  /** @throws CatalogUnavailableError */
  static async load(store: LoginUsers, logger: Logger): Promise<CatalogUsers> {
    return new CatalogUsers(store, logger, new Map((await store.list()).map((user) => [user.name, user])));
  }

  private constructor(store: LoginUsers, logger: Logger, known: Map<string, StoredUser>) {
    this.#store = store;
    this.#logger = logger;
    this.#known = known;
  }

  async find(user: string): Promise<UserRecord | null> {
    const stored = await this.#ask(user);
    if (stored === null) return null;
    const { verifier, validUntil } = stored;
    return {
      source: 'catalog',
      secret: parseSecret(verifier),
      expired: validUntil !== null && validUntil.getTime() < Date.now(),
      canLogin: true,
    };
  }

  async #ask(user: string): Promise<StoredUser | null> {
    if (user.includes('\0')) return null;
    try {
      const found = await this.#store.find(user);
      if (found === null) this.#known.delete(user);
      else this.#known.set(user, found);
      return found;
    } catch (error) {
      this.#logger.warn({ err: error, user }, 'catalog away: logging in by what it said last');
      return this.#known.get(user) ?? null;
    }
  }
}
