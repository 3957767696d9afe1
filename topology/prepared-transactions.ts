import type pg from 'pg';
import { errorCode } from './connection.js';
import { ForeshardError } from './errors.js';
import { quoteIdent, quoteLiteral } from './quote.js';

/** UUID of a coordinator: who decides over a transaction on several shards. */
export type CoordinatorId = string & { readonly __brand: 'CoordinatorId' };

/** A spanning transaction, everywhere. */
export interface TransactionName {
  readonly coordinator: CoordinatorId;
  /** Of its coordinator; never used again. */
  readonly number: bigint;
}

/** How a spanning transaction ends on all of its shards. */
export type Outcome = 'commit' | 'rollback';

/** A prepared transaction of ours on a shard. */
export interface PreparedTransaction extends TransactionName {
  readonly gid: string;
  /** How long ago it was prepared, by the server's clock. */
  readonly ageMs: number;
}

const GID = /^foreshard_([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})_([0-9]{1,18})_([0-9]{1,4})$/;

/**
 * Identifier of a branch. A server knows it in all of its databases, and two of them may be two shards: so the branch is part of it.
 * @param branch from 0, within the transaction
 */
export function gidOf({ coordinator, number }: TransactionName, branch: number): string {
  return `foreshard_${coordinator.replaceAll('-', '')}_${number}_${branch}`;
}

/** Null: it is none of ours. */
export function parseGid(gid: string): TransactionName | null {
  const found = GID.exec(gid);
  if (found === null) return null;
  return { coordinator: found.slice(1, 6).join('-') as CoordinatorId, number: BigInt(found[6] as string) };
}

/**
 * Those of ours that are in the shard's database.
 * @throws ForeshardError 25006 on a standby, which does not know
 */
export async function readPrepared(client: Pick<pg.ClientBase, 'query'>): Promise<PreparedTransaction[]> {
  const { rows } = await client.query<{ standby: boolean; prepared: { gid: string; ageMs: number }[] }>(
    `SELECT pg_catalog.pg_is_in_recovery() AS standby, (SELECT coalesce(pg_catalog.json_agg(p), '[]') FROM (
       SELECT gid, (EXTRACT(epoch FROM pg_catalog.clock_timestamp() - prepared) * 1000)::float8 AS "ageMs"
         FROM pg_catalog.pg_prepared_xacts
        WHERE database = pg_catalog.current_database() AND pg_catalog.starts_with(gid, 'foreshard_')
        ORDER BY prepared, gid) p) AS prepared`,
  );
  const row = rows[0];
  if (row === undefined || row.standby)
    throw new ForeshardError('25006', 'the server is a standby: it cannot tell which transactions are prepared', {
      hint: "Correct the shard's URL to the primary's.",
    });
  return row.prepared.flatMap((found) => {
    const name = parseGid(found.gid);
    return name === null ? [] : [{ ...found, ...name }];
  });
}

const UNDEFINED_OBJECT = '42704';
const INSUFFICIENT_PRIVILEGE = '42501';

export function endSql(gid: string, outcome: Outcome): string {
  return `${outcome === 'commit' ? 'COMMIT' : 'ROLLBACK'} PREPARED ${quoteLiteral(gid)}`;
}

/** The server says that there is no such prepared transaction: somebody has ended it before. */
export function isEnded(error: unknown): boolean {
  return (error instanceof ForeshardError ? error.sqlstate : errorCode(error)) === UNDEFINED_OBJECT;
}

/**
 * Ends one over a connection of the shard's own user, who is a superuser or may become its owner.
 * @returns false when there is none (any more)
 * @throws the server's error: 55000 while another session is about to end it, 42501 where the user may not, 25006 on a standby
 */
export async function endPrepared(
  client: Pick<pg.ClientBase, 'query'>,
  gid: string,
  outcome: Outcome,
): Promise<boolean> {
  try {
    await client.query(endSql(gid, outcome));
    return true;
  } catch (error) {
    if (isEnded(error)) return false;
    if (errorCode(error) !== INSUFFICIENT_PRIVILEGE) throw error;
  }
  const { rows } = await client.query<{ owner: string }>(
    'SELECT owner::text AS owner FROM pg_catalog.pg_prepared_xacts WHERE gid = $1',
    [gid],
  );
  const owner = rows[0]?.owner;
  if (owner === undefined) return false;
  await client.query(`SET ROLE ${quoteIdent(owner)}`);
  try {
    await client.query(endSql(gid, outcome));
    return true;
  } catch (error) {
    if (isEnded(error)) return false;
    throw error;
  } finally {
    await client.query('RESET ROLE');
  }
}
