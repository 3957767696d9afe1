import { randomBytes } from 'node:crypto';

/** "FS": the upper 16 bits of every key, by which keys are told from advisory locks of applications. It leaves the sign alone. */
export const KEY_MARK = 0x4653;

/** The key of what has written nothing. In a circle of those that wait for one another the largest key is ended: such a one first. */
const READS = 1n << 47n;

/**
 * As what a session has a key: as a branch of a transaction on several shards; on a connection of its own of a statement over several shards; or as the block that
 * this statement is part of. Said by the lowest two bits of its lock, so that no two sessions of one database ever lock the same.
 */
export type KeyRole = 'branch' | 'statement' | 'block';
const ROLES: readonly KeyRole[] = ['branch', 'statement', 'block'];
const ROLE_BITS = 3n;

/** A key for what is on several shards: no other has the same while it lasts. */
export function newKey(of: 'transaction' | 'query' = 'transaction'): bigint {
  const random = BigInt(`0x${randomBytes(6).toString('hex')}`) & ~(READS | ROLE_BITS);
  return (BigInt(KEY_MARK) << 48n) | (of === 'query' ? READS : 0n) | random;
}

/**
 * What a session runs to be known by `key`. It goes with the transaction, prepared ones keep it; but `ROLLBACK TO` a savepoint that was there before takes
 * it away, as it does with everything. Asked for once more it does no harm.
 */
export function markSql(key: bigint, role: KeyRole = 'branch'): string {
  return `SELECT ${lockCall(lockOf(key, role))}`;
}

/** What a block is known by as long as it has written nothing. */
export function readingKey(key: bigint): bigint {
  return key | READS;
}

/** The call by which a block is known: by `key`, or the one of before it has written anything. That goes on to be locked when it has, and the smaller one holds. */
export function blockCall(key: bigint): string {
  const written = 'pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL';
  return lockCall(`CASE WHEN ${written} THEN ${lockOf(key, 'block')} ELSE ${lockOf(readingKey(key), 'block')} END`);
}

function lockOf(key: bigint, role: KeyRole): bigint {
  return key | BigInt(ROLES.indexOf(role));
}

function lockCall(lock: bigint | string): string {
  return `pg_catalog.pg_advisory_xact_lock_shared(${lock})`;
}

/** Whose lock this is; null: an application's, which looks like one of ours. */
export function keyOfLock(lock: bigint): { readonly key: bigint; readonly role: KeyRole } | null {
  const role = ROLES[Number(lock & ROLE_BITS)];
  return role === undefined ? null : { key: lock & ~ROLE_BITS, role };
}
