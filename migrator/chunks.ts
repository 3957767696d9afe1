import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import { identityColumns } from './hashing.js';
import type { MovingTable } from './move.js';
import type { ColumnInfo, TableInfo } from './schema-read.js';
import type { ShardSession } from './shard-session.js';

/** PostgreSQL's (BLCKSZ), as it is built nearly everywhere; only how well chunks fit depends on it. */
const PAGE_BYTES = 8192;
/** So many pages of each chunk are looked at to see where it ends: chunks that lie together are right by a quarter then, others by a few rows in a hundred. */
const PAGES_OF_CHUNK = 16;
/** No more is looked at than this part of what is compared, and than so many pages at once (512 MB). */
const PART = 1 / 8;
const MAX_PAGES = 65_536;

/** Values of a row's identity as text, in the order of its index. */
export type Identity = readonly string[];

/**
 * The rows behind `after`, up to and with `to`, in the order of the identity's index; null: no bound. Where two servers order a type differently
 * (another version of a collation), the chunks between the same bounds still have each row of either server in at least one.
 */
export interface Chunk {
  readonly after: Identity | null;
  readonly to: Identity | null;
}

/** What a chunk is read by: an index, page after page of it. */
export interface Chunked {
  readonly table: MovingTable;
  readonly columns: readonly ColumnInfo[];
}

export function chunked(table: MovingTable, info: TableInfo): Chunked {
  const columns = identityColumns(info).map((name) => info.columns.find((c) => c.name === name) as ColumnInfo);
  return { table, columns };
}

/** True for the interval's rows of a chunk. */
export function chunkPredicate({ table, columns }: Chunked, { after, to }: Chunk): string {
  const left = `(${columns.map((c) => quoteIdent(c.name)).join(', ')})`;
  const compared = (operator: string, bound: Identity) =>
    `${left} ${operator} (${columns.map((c, i) => `${quoteLiteral(bound[i] as string)}::${c.type}`).join(', ')})`;
  return [
    table.predicate(),
    ...(after === null ? [] : [compared('>', after)]),
    ...(to === null ? [] : [compared('<=', to)]),
  ].join(' AND ');
}

/** Where the rows of a table lie. */
export interface Layout {
  /** Of all of the table. */
  readonly pages: number;
  /** Of the interval's rows, about. */
  readonly bytes: number;
  /** Of one of them, about. */
  readonly rowBytes: number;
}

/**
 * The chunks of a table, one behind another. Where they end, a sample of the table's pages says for many of them at once: each row would else be passed in
 * the index once more, and looked up in the table where somebody has written lately.
 */
export class Chunks {
  readonly #session: ShardSession;
  readonly #of: Chunked;
  readonly #layout: Layout;
  readonly #check: () => void;
  /** Names of the identity's columns, in the order of its index; and their values. */
  readonly #names: string;
  readonly #values: string;
  #ends: Identity[] = [];
  /** Rows of the chunks whose ends are known; null: nobody has looked. */
  #rows: number | null = null;

  constructor(session: ShardSession, of: Chunked, layout: Layout, check: () => void) {
    this.#session = session;
    this.#of = of;
    this.#layout = layout;
    this.#check = check;
    const names = of.columns.map((c) => quoteIdent(c.name));
    this.#names = names.join(', ');
    this.#values = names.map((name) => `${name}::text`).join(', ');
  }

  /** Of about so many rows; the last chunk has no upper bound. */
  async next(after: Identity | null, rows: number): Promise<Chunk> {
    if (this.#rows === null || rows > 2 * this.#rows || rows < this.#rows / 2) {
      this.#ends = await this.#sample(after, rows);
      this.#rows = rows;
    }
    const to = this.#ends.shift();
    return { after, to: to ?? (await this.#passed(after, rows)) };
  }

  /** The end of the next so many rows as they are now; null: there are no more. */
  async #passed(after: Identity | null, rows: number): Promise<Identity | null> {
    const [bound] = await this.#session.interruptible<{ bound: string[] }>(
      `SELECT ARRAY[${this.#values}] AS bound FROM ${this.#of.table.sql} WHERE ${chunkPredicate(this.#of, { after, to: null })}
        ORDER BY ${this.#names} OFFSET ${rows - 1} LIMIT 1`,
      [],
      this.#check,
    );
    return bound?.bound ?? null;
  }

  /** Ends of chunks, but for the last ones; none where looking for each costs less. */
  async #sample(after: Identity | null, rows: number): Promise<Identity[]> {
    const { pages, bytes, rowBytes } = this.#layout;
    const part = PAGES_OF_CHUNK / ((rows * rowBytes) / PAGE_BYTES);
    const most = Math.min(MAX_PAGES, (bytes / PAGE_BYTES) * PART);
    if (pages * part > most || rows * rowBytes * 2 > bytes) return [];
    const ends = await this.#session.interruptible<{ bound: string[] }>(
      `SELECT ARRAY[${this.#values}] AS bound FROM (SELECT ${this.#names}, row_number() OVER (ORDER BY ${this.#names}) AS foreshard_n FROM ${this.#of.table.sql} TABLESAMPLE SYSTEM (${part * 100})
        WHERE ${chunkPredicate(this.#of, { after, to: null })}) s WHERE foreshard_n % ${Math.max(1, Math.round(rows * part))} = 0 ORDER BY foreshard_n`,
      [],
      this.#check,
    );
    return ends.map(({ bound }) => bound);
  }
}
