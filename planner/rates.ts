import type pg from 'pg';

/** What a migration's cost is computed from. */
export interface Rates {
  readonly copyBytesPerSecond: number;
  readonly applyRowsPerSecond: number;
  readonly pauseMs: number;
  /** `measured`: by migrations carried out on these shards; otherwise the defaults. */
  readonly source: 'measured' | 'default';
}

/**
 * Before any migration has been carried out here. Copy: 360,000 rows/s of 130 bytes, the slow end of one table's initial
 * synchronisation; apply: 26,000 small transactions/s; pause: 15 ms from the last commit at the source to the first at the
 * destination. Measured on PostgreSQL 15 and 18 with two processors shared with the clients.
 */
export const DEFAULT_RATES: Rates = {
  copyBytesPerSecond: 360_000 * 130,
  applyRowsPerSecond: 26_000,
  pauseMs: 15,
  source: 'default',
};

/** Migrations that count. */
const LAST = 5;
/** A smaller copy is over before its rate means anything. */
const MIN_BYTES = 1024 * 1024;

/**
 * Medians over the last finished migrations; defaults for what none of them recorded.
 * @param maxCopyRate what migrations are throttled to, bytes a second; null: they are not
 */
export async function measuredRates(pool: pg.Pool, maxCopyRate: number | null = null): Promise<Rates> {
  const result = await pool.query<{ copy: number | null; apply: number | null; pause: number | null }>(
    `SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY copy) FILTER (WHERE copy > 0 AND bytes >= $2) AS copy,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY apply) FILTER (WHERE apply > 0) AS apply,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY pause) FILTER (WHERE pause > 0) AS pause
       FROM (SELECT coalesce(facts ->> 'copyBytesPerSecond', progress ->> 'bytesPerSecond')::float8 AS copy,
                    coalesce(progress ->> 'bytesCopied', facts ->> 'bytesCopied')::float8 AS bytes,
                    (facts ->> 'applyRowsPerSecond')::float8 AS apply,
                    coalesce(progress ->> 'pauseMs', facts ->> 'pauseMs')::float8 AS pause
               FROM foreshard.migration WHERE state = 'done' ORDER BY id DESC LIMIT $1) m`,
    [LAST, MIN_BYTES],
  );
  const row = result.rows[0];
  return {
    copyBytesPerSecond: Math.min(
      row?.copy ?? DEFAULT_RATES.copyBytesPerSecond,
      maxCopyRate ?? Number.POSITIVE_INFINITY,
    ),
    applyRowsPerSecond: row?.apply ?? DEFAULT_RATES.applyRowsPerSecond,
    pauseMs: row?.pause ?? DEFAULT_RATES.pauseMs,
    source: row?.copy == null ? 'default' : 'measured',
  };
}
