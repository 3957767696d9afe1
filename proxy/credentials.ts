import NodeCache from 'node-cache';
import pg from 'pg';
import { ForeshardError } from '../topology/errors.js';
import type { CredentialSource } from './auth/authenticate.js';
import type { LiveTopology } from './live-topology.js';
import { makeVerifier, type ScramKeys, type ScramSecret } from './wire/scram.js';

/** A verifier read from a shard is used for so long: a changed password is noticed after it at the latest. */
const VERIFIER_SECONDS = 15;

export interface ConfiguredUser {
  readonly password?: string;
  readonly verifier?: string;
}

/**
 * Passwords in both directions: what clients' passwords are checked against, and what the proxy shows to servers when it
 * logs in there as the client's user.
 */
export class Credentials implements CredentialSource {
  #users: ReadonlyMap<string, ConfiguredUser>;
  #serverPasswords: ReadonlyMap<string, string>;
  readonly #live: () => LiveTopology;
  readonly #cache = new NodeCache({ stdTTL: VERIFIER_SECONDS, checkperiod: VERIFIER_SECONDS, useClones: false });
  /** Recovered from the last good login: good for every server that holds the same verifier. */
  readonly #keys = new Map<string, ScramKeys>();

  constructor(options: {
    readonly users: ReadonlyMap<string, ConfiguredUser>;
    readonly serverPasswords: ReadonlyMap<string, string>;
    readonly live: () => LiveTopology;
  }) {
    this.#users = options.users;
    this.#serverPasswords = options.serverPasswords;
    this.#live = options.live;
  }

  /** What was learned of passwords before counts no more. */
  reload(users: ReadonlyMap<string, ConfiguredUser>, serverPasswords: ReadonlyMap<string, string>): void {
    this.#users = users;
    this.#serverPasswords = serverPasswords;
    this.#cache.flushAll();
  }

  async verifierFor(user: string): Promise<{ readonly verifier: string } | null> {
    const cached = this.#cache.get<{ verifier: string } | null>(user);
    if (cached !== undefined) return cached;
    const configured = this.#users.get(user);
    let verifier: string | null;
    if (configured?.verifier !== undefined) verifier = configured.verifier;
    else if (configured?.password !== undefined) verifier = await makeVerifier(configured.password);
    else verifier = await this.#readVerifier(user);
    const found = verifier === null ? null : { verifier };
    this.#cache.set(user, found);
    return found;
  }

  /** After a login with a password. */
  learned(user: string, keys: ScramKeys): void {
    this.#keys.set(user, keys);
  }

  /** How to log in to a server as `user`; null when nothing is known, which is enough where the server trusts us. */
  secretFor(user: string, shardUrl: string): ScramSecret | null {
    const own = new URL(shardUrl);
    const password = this.#serverPasswords.get(user) ?? this.#users.get(user)?.password;
    if (password !== undefined) return { password };
    if (decodeURIComponent(own.username) === user && own.password !== '')
      return { password: decodeURIComponent(own.password) };
    const keys = this.#keys.get(user);
    return keys === undefined ? null : { keys };
  }

  close(): void {
    this.#cache.close();
  }

  /** As the home shard has it. A role that may not log in, or whose password has ended, has none. */
  async #readVerifier(user: string): Promise<string | null> {
    const topology = this.#live().current;
    const home = topology.shards.get(topology.home);
    if (home === undefined) return null;
    const client = new pg.Client({
      connectionString: home.url,
      connectionTimeoutMillis: 5000,
      application_name: 'foreshard auth',
    });
    // A connection that breaks fails the query in flight; there is nothing else to tell.
    client.on('error', () => undefined);
    try {
      await client.connect();
      const { rows } = await client.query<{ rolpassword: string | null }>(
        `SELECT rolpassword FROM pg_catalog.pg_authid
          WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())`,
        [user],
      );
      return rows[0]?.rolpassword ?? null;
    } catch (error) {
      const code = (error as { code?: string }).code;
      throw new ForeshardError('28000', `the proxy cannot look up the password of user "${user}"`, {
        detail: error instanceof Error ? error.message : String(error),
        hint:
          code === '42501'
            ? `Give the user of shard "${home.name}" SELECT on pg_authid (superuser), or list the user under proxy.auth.users.`
            : `Check that shard "${home.name}" is up.`,
        cause: error,
      });
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}
