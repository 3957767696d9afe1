import { randomBytes } from 'node:crypto';

/** "FS": the upper 16 bits of every key, by which keys are told from advisory locks of applications. It leaves the sign alone. */
export const KEY_MARK = 0x4653;

/** A key for a spanning transaction: no other has the same while it lasts. */
export function newKey(): bigint {
  return (BigInt(KEY_MARK) << 48n) | BigInt(`0x${randomBytes(6).toString('hex')}`);
}

/**
 * What a branch runs to be known by `key`. It goes with the transaction, prepared ones keep it; but `ROLLBACK TO` a savepoint that was there before takes
 * it away, as it does with everything. Asked for once more it does no harm.
 */
export function markSql(key: bigint): string {
  return `SELECT pg_catalog.pg_advisory_xact_lock_shared(${key})`;
}
