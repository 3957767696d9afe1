import type { ShardSession } from './shard-session.js';

/** Something that stands in the way of a migration, or should be known before it. */
export interface Finding {
  readonly severity: 'blocker' | 'warning';
  readonly text: string;
  readonly remedy: string;
}

export type Report = (severity: Finding['severity'], text: string, remedy: string) => void;

/** The one row of a query that has one. */
export async function one<T extends object>(session: ShardSession, sql: string): Promise<T> {
  const rows = await session.query<T & Record<string, unknown>>(sql);
  return rows[0] as T;
}
