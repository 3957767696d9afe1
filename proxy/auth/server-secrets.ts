import type { LoginSecret } from '../wire/login-secret.js';
import type { UserDirectory } from './user-directory.js';

export interface ServerSecretsOptions {
  /** By user: proxy.serverPasswords. */
  readonly passwords: ReadonlyMap<string, string>;
  readonly users: UserDirectory;
}

/** What the proxy shows to servers when it logs in there as a client's user. */
export class ServerSecrets {
  #options: ServerSecretsOptions;
  /** From the last good login of each user. */
  readonly #learned = new Map<string, LoginSecret>();

  constructor(options: ServerSecretsOptions) {
    this.#options = options;
  }

  reload(options: ServerSecretsOptions): void {
    this.#options = options;
  }

  /** After a login with a password: what it told us. */
  learned(user: string, secret: LoginSecret): void {
    this.#learned.set(user, secret);
  }

  /** How to log in to a server as `user`; null when nothing is known, which is enough where the server trusts us. */
  secretFor(user: string, shardUrl: string): LoginSecret | null {
    const own = new URL(shardUrl);
    const password = this.#options.passwords.get(user) ?? this.#options.users.passwordOf(user);
    if (password !== null && password !== undefined) return { password };
    if (decodeURIComponent(own.username) === user && own.password !== '')
      return { password: decodeURIComponent(own.password) };
    return this.#learned.get(user) ?? null;
  }
}
