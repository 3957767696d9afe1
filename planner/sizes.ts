import pg from 'pg';
import { ForeshardError } from '../topology/errors.js';
import { intervalPredicate } from '../topology/interval-sql.js';
import type { Interval } from '../topology/key.js';
import { quoteIdent } from '../topology/quote.js';
import { type Keyspace, type Shard, tableId } from '../topology/topology.js';

/** What an interval of one table holds. */
export interface TableSize {
  /** `schema.table`. */
  readonly table: string;
  readonly rows: number;
  /** Bytes of rows with their TOASTed values, as they lie on disk; indexes are built anew and not moved. */
  readonly bytes: number;
  /** Counted; otherwise estimated from a sample of the table's pages. */
  readonly exact: boolean;
}

export interface MeasureOptions {
  /** Tables up to this size are counted, which takes a second or two; default 256 MiB. */
  readonly countUpToBytes?: number;
  /** Of larger ones about this much is read; default 64 MiB. */
  readonly sampleBytes?: number;
}

const MIB = 1024 * 1024;
/** Measuring must not hurt the shard it wants to relieve. */
const STATEMENT_TIMEOUT_MS = 30_000;

/**
 * Measures what an interval holds on its shard, per table of the keyspace, in one read-only transaction.
 * @throws ForeshardError when the shard cannot be asked
 */
export async function measureInterval(
  shard: Shard,
  keyspace: Keyspace,
  interval: Interval,
  options: MeasureOptions = {},
): Promise<TableSize[]> {
  const { countUpToBytes = 256 * MIB, sampleBytes = 64 * MIB } = options;
  const client = new pg.Client({
    connectionString: shard.url,
    application_name: 'foreshard planner',
    statement_timeout: STATEMENT_TIMEOUT_MS,
    connectionTimeoutMillis: 10_000,
  });
  // A connection lost between two queries: the next query reports it.
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('BEGIN TRANSACTION READ ONLY');
    const sizes: TableSize[] = [];
    for (const table of keyspace.tables) {
      const name = `${quoteIdent(table.schema)}.${quoteIdent(table.table)}`;
      const where = intervalPredicate(keyspace, table.keyColumns, interval, 't');
      const found = await client.query<{ bytes: string; tuples: number }>(
        `SELECT coalesce(sum(pg_table_size(i.relid)), 0)::text AS bytes,
                coalesce(sum(greatest(c.reltuples, 0)), 0)::float8 AS tuples
           FROM (SELECT relid FROM pg_partition_tree($1::regclass) UNION SELECT $1::regclass) AS i
           JOIN pg_class c ON c.oid = i.relid WHERE c.relkind = 'r'`,
        [name],
      );
      const whole = found.rows[0] as { bytes: string; tuples: number };
      const bytes = Number(whole.bytes);
      const exact = bytes <= countUpToBytes;
      const percent = exact ? 100 : Math.max(0.01, (100 * sampleBytes) / bytes);
      const sample = exact ? '' : `TABLESAMPLE SYSTEM (${percent.toFixed(4)})`;
      const counted = await client.query<{ inside: string; total: string }>(
        `SELECT count(*) FILTER (WHERE ${where})::text AS inside, count(*)::text AS total FROM ${name} AS t ${sample}`,
      );
      const { inside, total } = counted.rows[0] as { inside: string; total: string };
      const share = Number(total) === 0 ? 0 : Number(inside) / Number(total);
      const tuples = whole.tuples > 0 ? whole.tuples : (Number(total) * 100) / percent;
      sizes.push({
        table: tableId(table),
        rows: exact ? Number(inside) : Math.round(tuples * share),
        // Dead rows are not copied, but neither is known how wide the others are: the share of the table's size is an upper bound.
        bytes: Math.round(bytes * share),
        exact,
      });
    }
    return sizes;
  } catch (error) {
    if (error instanceof ForeshardError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new ForeshardError('08006', `cannot measure shard "${shard.name}": ${reason}`, {
      hint: 'Check that the shard is up and that its URL in the catalog is right.',
      cause: error,
    });
  } finally {
    await client.end();
  }
}
