import type pg from 'pg';

/** How long an answer may take that somebody's right to serve depends on. */
const ANSWER_TIMEOUT_MS = 5000;

/**
 * A query that fails when no answer comes in time. A connection whose other end has vanished without a word would else
 * keep its caller waiting for as long as TCP does, which is minutes.
 * @param name by which it stays prepared on its connection: planning it takes more than carrying it out
 */
export function timedQuery(text: string, values: readonly unknown[] = [], name?: string): pg.QueryConfig {
  const query = { text, values: [...values], query_timeout: ANSWER_TIMEOUT_MS };
  return name === undefined ? query : { ...query, name };
}
