import { quoteIdent, quoteTable } from '../topology/quote.js';
import type { ColumnSplit, TableName } from '../topology/topology.js';
import type { HalvesWork } from './halves.js';
import type { ShardSession } from './shard-session.js';
import { Throttle } from './throttle.js';

/** Of a row of a hot table, about. */
export const HALF_ROW_BYTES = 128;
/** Rows of either table that are compared by one statement. */
export const PORTION_ROWS = 5000;
/** Rows that people are told of. */
const SOME = 3;

/** What is done to one shard, kept within its limits: it is both sides of it. */
export function throttleOn(h: Pick<HalvesWork, 'exec' | 'options'>, shard: string, session: ShardSession): Throttle {
  const none = { schema: 'foreshard_shard', table: 'none' };
  return new Throttle({
    exec: h.exec,
    options: h.options,
    spec: { from: shard, to: shard },
    names: { pace: none },
    source: session,
    destination: session,
  });
}

/** A row whose halves are not the same on a shard that both are on. */
export interface UnlikeHalves {
  /** Values of the primary key as text, in the order of its columns' names: a JSON array, as `hashing` has it. */
  readonly key: string;
  /** By which half alone it is there; null: by both. */
  readonly only: 'base' | 'hot' | null;
}

/** Both halves of a row are written by one transaction, and compared by one statement, to the bit: what is not the same is wrong. */
export const unlikeSql = (columns: readonly string[], first: string) =>
  `((t.${first} IS NULL) <> (h.${first} IS NULL) OR record_image_ne(ROW(${of('t', columns)}), ROW(${of('h', columns)})))`;
const of = (alias: string, names: readonly string[]) => names.map((n) => `${alias}.${quoteIdent(n)}`).join(', ');
const matching = (names: readonly string[]) =>
  names.map((n) => `t.${quoteIdent(n)} = h.${quoteIdent(n)}`).join(' AND ');
/** In the order in which a key has them that is told. */
export const byName = (names: readonly string[]) => [...names].sort((a, b) => (a < b ? -1 : 1));

/** Goes through both halves of the rows that one shard has, in the order of the primary key, so many of each at a time. */
export class HalvesComparison {
  readonly #session: ShardSession;
  readonly #table: TableName;
  readonly #split: ColumnSplit;
  readonly #where: string;
  /** The last one that was compared. */
  #last: readonly string[] = [];

  /** @param where which rows are compared, by columns that both tables have */
  constructor(session: ShardSession, table: TableName, split: ColumnSplit, where = 'true') {
    this.#session = session;
    this.#table = table;
    this.#split = split;
    this.#where = where;
  }

  /**
   * Compares the next ones. When it fails, it can be called again.
   * @param rows of either table, at most @param most that are told @returns those that are not the same, and whether these were the last
   */
  async next(rows: number, most: number): Promise<{ unlike: readonly UnlikeHalves[]; isLast: boolean }> {
    const { hot, primaryKey, columns } = this.#split;
    const last = this.#last;
    const key = primaryKey.map(quoteIdent).join(', ');
    const param = (from: number) => primaryKey.map((_, i) => `$${from + i + 1}`).join(', ');
    const past = last.length === 0 ? 'true' : `(${key}) > (${param(0)})`;
    // Of both, or rows of the one behind the last of the other would be in no portion.
    const ends = [this.#table, hot].map(
      (t) => `(SELECT ${key} FROM ${quoteTable(t)} WHERE ${past} ORDER BY ${key} OFFSET ${rows} LIMIT 1)`,
    );
    const [end] = await this.#session.query<Record<string, string>>(
      `SELECT ${primaryKey.map((c, i) => `${quoteIdent(c)}::text AS k${i}`).join(', ')} FROM (${ends.join(' UNION ALL ')}) ends ORDER BY ${key} LIMIT 1`,
      last,
    );
    const until = end === undefined ? [] : Object.values(end);
    const within = `(${this.#where}) AND ${past}${end === undefined ? '' : ` AND (${key}) <= (${param(last.length)})`}`;
    const all = [...primaryKey, ...columns].map(quoteIdent).join(', ');
    const some = (t: TableName) => `(SELECT ${all} FROM ${quoteTable(t)} WHERE ${within})`;
    const first = quoteIdent(primaryKey[0] as string);
    const named = byName(primaryKey).map((c) => `coalesce(t.${quoteIdent(c)}, h.${quoteIdent(c)})::text`);
    const unlike = await this.#session.query<UnlikeHalves & Record<string, string | null>>(
      `SELECT jsonb_build_array(${named.join(', ')})::text AS key, CASE WHEN h.${first} IS NULL THEN 'base' WHEN t.${first} IS NULL THEN 'hot' END AS only
         FROM ${some(this.#table)} t FULL JOIN ${some(hot)} h ON ${matching(primaryKey)}
        WHERE ${unlikeSql([...primaryKey, ...columns], first)} ORDER BY ${primaryKey.map((c) => `coalesce(t.${quoteIdent(c)}, h.${quoteIdent(c)})`).join(', ')} LIMIT ${most}`,
      [...last, ...until],
    );
    this.#last = until;
    return { unlike, isLast: end === undefined };
  }
}

/** Some rows whose halves are not the same on a shard, for people. */
export async function differingHalves(
  h: HalvesWork,
  split: ColumnSplit,
  shard: string,
  session: ShardSession,
): Promise<string[]> {
  const throttle = throttleOn(h, shard, session);
  const comparison = new HalvesComparison(session, h.spec.table, split);
  for (;;) {
    h.exec.check();
    await h.exec.rest();
    const { unlike, isLast } = await comparison.next(PORTION_ROWS, SOME);
    if (unlike.length > 0) return unlike.map(textOf);
    if (isLast) return [];
    await throttle.pauseAfterRead(PORTION_ROWS * HALF_ROW_BYTES * 2);
  }
}

function textOf({ key, only }: UnlikeHalves): string {
  if (only === null) return `other values: ${key}`;
  return `${only === 'base' ? 'without its other half' : 'half a row'}: ${key}`;
}
