import { RefusedError } from '../session/refusals.js';

/**
 * Whether all tables that the transaction has locked so far are where its snapshot has them. Who waits for a table that is being rewritten, emptied or replaced has taken the snapshot before, and then sees none of the
 * new rows: they are of a transaction that is later (ALTER TABLE is not MVCC-safe). A statement that is a transaction of its own never sees that, because its snapshot is of after the wait. pg_class
 * is read as of the snapshot, pg_relation_filenode as of now; what has no file of its own there has 0. What the transaction itself has made or dropped is locked as no reader locks. A snapshot that
 * some index is too new for, or that VACUUM FULL has passed, is told to be one of these, too.
 */
export const IS_AS_SEEN = `SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_locks l
  WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation'
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c
                    WHERE c.oid = l.relation AND (c.relfilenode = 0 OR c.relfilenode = pg_catalog.pg_relation_filenode(c.oid)))
  GROUP BY l.relation HAVING NOT pg_catalog.bool_or(l.mode = 'AccessExclusiveLock'))`;

/** A table was rewritten while it was waited for: what has been read of it is nothing. */
export class RewrittenError extends Error {
  constructor(shard: string) {
    super(`a table of shard "${shard}" has been rewritten while it was to be read`);
    this.name = 'RewrittenError';
  }
}

export function stillRewritten(error: RewrittenError): RefusedError {
  return new RefusedError('40001', `${error.message}, again and again`, { hint: 'Retry the query.' });
}
