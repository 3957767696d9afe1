import type pg from 'pg';
import { ConflictError } from '../errors.js';
import type { Epoch } from '../topology.js';

/** A connection to the catalog inside a transaction. */
export type CatalogClient = Pick<pg.ClientBase, 'query'>;

const BEGIN = 'BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE';

/** Runs `work` in one transaction: all of it happens, or nothing. `begin`: what it is begun with. */
export async function inCatalogTransaction<T>(
  pool: pg.Pool,
  work: (client: CatalogClient) => Promise<T>,
  begin = BEGIN,
): Promise<T> {
  const client = await pool.connect();
  try {
    await client.query(begin);
    const result = await work(client);
    await client.query('COMMIT');
    client.release();
    return result;
  } catch (error) {
    // Closing the connection rolls back, also when the connection itself is what failed.
    client.release(true);
    throw error;
  }
}

/** The same over a connection that is at hand, and goes on to be of use. */
export async function inTransactionOf<T>(
  client: CatalogClient,
  work: (client: CatalogClient) => Promise<T>,
  begin = BEGIN,
): Promise<T> {
  try {
    await client.query(begin);
    const result = await work(client);
    await client.query('COMMIT');
    return result;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined); // the first error says more
    throw error;
  }
}

/**
 * Raises the epoch by one if it still is `expected`: the compare-and-set under every change of routing. The row lock it
 * takes makes concurrent changes wait, and then fail.
 * @throws ConflictError when the catalog has moved on
 */
export async function raiseEpoch(client: CatalogClient, expected: Epoch): Promise<Epoch> {
  const { rows } = await client.query<{ epoch: string }>(
    'UPDATE foreshard.meta SET epoch = epoch + 1 WHERE epoch = $1 RETURNING epoch',
    [expected.toString()],
  );
  const row = rows[0];
  if (row === undefined)
    throw new ConflictError(
      `the topology has changed since epoch ${expected}`,
      'Look at it again, then repeat the command.',
    );
  return BigInt(row.epoch) as Epoch;
}

export interface AuditEntry {
  /** Who did it. */
  readonly actor: string;
  /** What was done: `shard add`, `migration flip` … */
  readonly action: string;
  /** To what. */
  readonly object: string;
  /** Facts worth keeping; no secrets. */
  readonly detail?: Readonly<Record<string, unknown>>;
}

/** Writes to the audit trail, in the transaction of the change it tells of. */
export async function audit(client: CatalogClient, entry: AuditEntry): Promise<void> {
  await client.query('INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ($1, $2, $3, $4)', [
    entry.actor,
    entry.action,
    entry.object,
    JSON.stringify(entry.detail ?? {}),
  ]);
}
