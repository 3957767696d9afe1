import pg from 'pg';
import { UsageError } from './errors.js';

/** Refuses what is not a postgres:// URL before a driver guesses what it might mean. */
export function checkUrl(url: string, what: string): void {
  if (!/^postgres(ql)?:\/\//i.test(url))
    throw new UsageError(
      `the URL of ${what} is not a PostgreSQL URL`,
      'Write it as postgres://user:password@host:port/database.',
    );
  try {
    new pg.Client({ connectionString: url });
  } catch (error) {
    throw new UsageError(
      `the URL of ${what} cannot be read: ${(error as Error).message}`,
      'Write it as postgres://user:password@host:port/database; characters such as @ : / # in the password are written %40 %3A %2F %23.',
    );
  }
}
