import { UsageError } from '../errors.js';
import type { Catalog } from './catalog.js';
import { audit, inCatalogTransaction } from './change.js';

/** A user of the proxy whose password is checked against the catalog, not against a role of the home shard. */
export interface StoredUser {
  readonly name: string;
  /** As in pg_authid.rolpassword, SCRAM-SHA-256. */
  readonly verifier: string;
  /** No password is right after it; null: for ever. */
  readonly validUntil: Date | null;
}

const COLUMNS = 'name, verifier, valid_until AS "validUntil"';

/** The table foreshard.login_user. */
export class LoginUsers {
  readonly #catalog: Catalog;

  constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  async find(name: string): Promise<StoredUser | null> {
    const { rows } = await this.#catalog.pool.query<StoredUser>(
      `SELECT ${COLUMNS} FROM foreshard.login_user WHERE name = $1`,
      [name],
    );
    return rows[0] ?? null;
  }

  /** By name. */
  async list(): Promise<StoredUser[]> {
    const { rows } = await this.#catalog.pool.query<StoredUser>(
      `SELECT ${COLUMNS} FROM foreshard.login_user ORDER BY name`,
    );
    return rows;
  }

  /** Adds a user, or gives one a new password. @returns what it did */
  async set(user: StoredUser, actor: string): Promise<'added' | 'changed'> {
    const { name, verifier, validUntil } = user;
    if (name === '' || name.includes('\0') || Buffer.byteLength(name) > 63)
      throw new UsageError(`"${name}" cannot be the name of a user`, 'Use a name of 1 to 63 bytes.');
    return inCatalogTransaction(this.#catalog.pool, async (client) => {
      const { rows } = await client.query<{ added: boolean }>(
        `INSERT INTO foreshard.login_user (name, verifier, valid_until) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET verifier = excluded.verifier, valid_until = excluded.valid_until, changed_at = now()
         RETURNING xmax = 0 AS added`,
        [name, verifier, validUntil],
      );
      const added = rows[0]?.added === true;
      await audit(client, {
        actor,
        action: added ? 'user add' : 'user change',
        object: name,
        detail: { validUntil: validUntil?.toISOString() ?? null },
      });
      return added ? 'added' : 'changed';
    });
  }

  /** @throws UsageError when there is no such user */
  async remove(name: string, actor: string): Promise<void> {
    await inCatalogTransaction(this.#catalog.pool, async (client) => {
      const { rowCount } = await client.query('DELETE FROM foreshard.login_user WHERE name = $1', [name]);
      if (rowCount === 0)
        throw new UsageError(`there is no user "${name}" in the catalog`, 'See "foreshard user list".');
      await audit(client, { actor, action: 'user remove', object: name });
    });
  }
}
