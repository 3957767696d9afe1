import { HALVES_LOG, HALVES_SETTING, outboxTakeSql, sayHalvesSql } from '../../topology/halves-sql.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import type { Backend } from '../backend/backend.js';
import type { Halves } from '../router/route.js';
import { decodeCommandComplete, decodeDataRow, rowsOfTag } from '../wire/backend.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { allDone } from './all-done.js';
import { RefusedError } from './refusals.js';

// What is said to the two shards of a statement about both halves of rows. Values pass through here without being read.

/** Rows of which the halves are locked, brought or written by one statement at most, and the bytes of that. */
const MOST_ROWS = 10_000;
const MOST_BYTES = 16 * 1024 * 1024;

/** How long a row may be there by one of its halves only, ms: between the ends of a commit on the two shards. */
const HALF_MS = 5_000;
const FIRST_PAUSE_MS = 2;
const LONGEST_PAUSE_MS = 100;

const TEXT = 0;
const BINARY = 1;

/** Writes of the table are written down from here on. */
export const LOG = encodeQuery(sayHalvesSql(HALVES_LOG));
/** They are not. */
export const LOG_NOTHING = encodeQuery(`SET LOCAL ${HALVES_SETTING} = ''`);

/** Values of a row; null for SQL NULL. */
type Row = readonly (Buffer | null)[];

/** What was done to a row of the table, values as text. */
interface Written {
  readonly op: string;
  /** The primary key before; nulls of an insert. */
  readonly old: Row;
  /** After; nulls of a delete. */
  readonly now: Row;
  /** The hot columns after. */
  readonly hot: Row;
}

/** One execution of a statement of ours. */
interface Run {
  readonly sql: string;
  readonly values: Row;
}

/** The parameters of a statement as the client has bound them, with the types that they have. */
export interface Given {
  readonly oids: readonly number[];
  readonly formats: readonly number[];
  readonly values: Row;
}

/**
 * Locks the base half of the rows that a statement may be about.
 * @param text gives their primary keys
 * @returns these, in binary form
 * @throws RefusedError 54000 when they are too many
 */
export async function lockBase(backend: Backend, text: string, given: Given | null): Promise<readonly Row[]> {
  const { oids, formats, values } = given ?? { oids: [], formats: [], values: [] };
  return rowsOf(backend, [
    encodeParse('', text, oids),
    encodeBind({ portal: '', statement: '', formats, values, resultFormats: [BINARY] }),
    encodeExecute('', MOST_ROWS + 1),
    SYNC,
  ]);
}

/**
 * Locks the hot half of rows. One that is not there yet, because its insertion is just being committed, is waited for.
 * @param keys as `lockBase` has them @returns the hot columns of each, in binary form
 * @throws RefusedError 40001 when one has none
 */
export async function lockHot(
  backend: Backend,
  { split }: Halves,
  keys: readonly Row[],
  check: () => void,
): Promise<readonly Row[]> {
  const sql = `SELECT ${list(split.columns)} FROM ${quoteTable(split.hot)} WHERE ${isKey(split.primaryKey, 1)} FOR UPDATE`;
  return untilAllFound(check, keys, (left) =>
    executions(
      backend,
      left.map((values) => ({ sql, values })),
      BINARY,
    ),
  );
}

/**
 * Gives the table's hot columns the values that count.
 * @param keys as `lockBase` has them @param hot as `lockHot` has them
 * @returns what says of a row that was written since whether it is one of these
 */
export async function bring(
  backend: Backend,
  { table, split }: Halves,
  keys: readonly Row[],
  hot: readonly Row[],
): Promise<(written: Written) => boolean> {
  const { columns, primaryKey } = split;
  const sql = `UPDATE ${quoteTable(table)} SET ${assign(columns, 1)} WHERE ${isKey(primaryKey, columns.length + 1)}`;
  const runs = keys.map((key, i) => ({ sql, values: [...(hot[i] as Row), ...key] }));
  // The log says the keys in the form in which it will say those of the statement.
  const logging = backend.runInternal(LOG);
  const bringing = executions(backend, runs, BINARY);
  const taking = take(backend, table, split, []);
  const [, found, written] = await allDone([logging, bringing, taking]);
  if (found.some(({ count }) => count !== 1)) throw changed();
  const brought = new Set(written.map(({ old }) => idOf(old)));
  return ({ old }) => brought.has(idOf(old));
}

/**
 * Takes what the log has of this transaction, which leaves it empty.
 * @param assigned as for `ship`
 * @throws RefusedError 54000 when it is too much; it is lost then, with the transaction
 */
export async function take(
  backend: Backend,
  table: Halves['table'],
  split: Halves['split'],
  assigned: readonly string[],
): Promise<readonly Written[]> {
  const rows = await rowsOf(backend, [
    encodeParse('', outboxTakeSql(table, split, assigned)),
    encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [TEXT] }),
    encodeExecute('', MOST_ROWS + 1),
    SYNC,
  ]);
  const keys = split.primaryKey.length;
  return rows.map(([op, ...values]) => ({
    op: op?.toString('latin1') ?? '',
    old: values.slice(0, keys),
    now: values.slice(keys, 2 * keys),
    hot: values.slice(2 * keys),
  }));
}

/**
 * Does to the hot half what was done to the base half.
 * @param assigned hot columns that an UPDATE gives values; the others are only those that the base half had
 * @throws RefusedError 40001 when a row has no hot half
 */
export async function ship(
  backend: Backend,
  { split }: Halves,
  assigned: readonly string[],
  written: readonly Written[],
  check: () => void,
): Promise<void> {
  const runs = written.map((one) => runOf(one, split, assigned));
  await untilAllFound(check, runs, (left) => executions(backend, left, TEXT));
}

function runOf({ op, old, now, hot }: Written, split: Halves['split'], assigned: readonly string[]): Run {
  const { columns, primaryKey } = split;
  const name = quoteTable(split.hot);
  if (op === 'I') {
    const all = [...primaryKey, ...columns];
    const sql = `INSERT INTO ${name} (${list(all)}) VALUES (${all.map((_, i) => `$${i + 1}`).join(', ')})`;
    return { sql, values: [...now, ...hot] };
  }
  if (op === 'D') return { sql: `DELETE FROM ${name} WHERE ${isKey(primaryKey, 1)}`, values: old };
  const moves = idOf(old) !== idOf(now);
  const set = [...(moves ? primaryKey : []), ...assigned];
  if (set.length === 0)
    return { sql: `SELECT FROM ${name} WHERE ${isKey(primaryKey, 1)} FOR NO KEY UPDATE`, values: old };
  return {
    sql: `UPDATE ${name} SET ${assign(set, 1)} WHERE ${isKey(primaryKey, set.length + 1)}`,
    values: [...(moves ? now : []), ...assigned.map((column) => hot[columns.indexOf(column)] ?? null), ...old],
  };
}

/**
 * Carries `items` out, and again those that were about no row: their half is committed there in a moment, or somebody has deleted it.
 * @returns one row for each, in order
 */
async function untilAllFound<T>(
  check: () => void,
  items: readonly T[],
  carryOut: (items: readonly T[]) => Promise<readonly Found[]>,
): Promise<readonly Row[]> {
  const rows: Row[] = new Array(items.length);
  const deadline = performance.now() + HALF_MS;
  let left = items.map((item, at) => ({ item, at }));
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    const found = left.length === 0 ? [] : await carryOut(left.map(({ item }) => item));
    for (const [i, { at }] of left.entries()) rows[at] = found[i]?.rows[0] ?? [];
    left = left.filter((_, i) => found[i]?.count !== 1);
    if (left.length === 0) return rows;
    if (performance.now() > deadline) throw changed();
    check();
    await new Promise((resolve) => setTimeout(resolve, pause));
    check();
  }
}

/** What an execution has found or changed. */
interface Found {
  readonly count: number;
  readonly rows: readonly Row[];
}

/** Executes statements one behind the other. Parameters and results are in this form. */
async function executions(backend: Backend, runs: readonly Run[], format: number): Promise<readonly Found[]> {
  if (runs.length === 0) return [];
  const messages: Buffer[] = [];
  let prepared = '';
  for (const { sql, values } of runs) {
    if (sql !== prepared) messages.push(encodeParse('', sql));
    prepared = sql;
    messages.push(encodeBind({ portal: '', statement: '', formats: [format], values, resultFormats: [format] }));
    messages.push(encodeExecute(''));
  }
  const counts: number[] = [];
  const rows = await rowsOf(backend, [...messages, SYNC], counts);
  let at = 0;
  return counts.map((count) => {
    const own = rows.slice(at, at + count);
    // Only a query gives rows.
    if (rows.length > 0) at += count;
    return { count, rows: own };
  });
}

/** @param counts gets how many rows each statement was about */
async function rowsOf(backend: Backend, messages: readonly Buffer[], counts: number[] = []): Promise<readonly Row[]> {
  const slices: Buffer[] = [];
  let bytes = 0;
  backend.clock.since = performance.now();
  await backend.runBatchInternal([Buffer.concat(messages)], {
    rows: (slice) => {
      bytes += slice.length;
      if (bytes <= MOST_BYTES) slices.push(Buffer.from(slice));
    },
    replied: (type, frame) => {
      if (type === BACKEND.CommandComplete) counts.push(rowsOfTag(decodeCommandComplete(frame)) ?? 0);
    },
  });
  if (bytes > MOST_BYTES) throw tooMany();
  const all = Buffer.concat(slices);
  const rows: Row[] = [];
  for (let at = 0; at < all.length; ) {
    const end = at + 1 + all.readInt32BE(at + 1);
    rows.push(decodeDataRow(all.subarray(at, end)));
    at = end;
  }
  if (rows.length > MOST_ROWS) throw tooMany();
  return rows;
}

const list = (names: readonly string[]) => names.map(quoteIdent).join(', ');
const assign = (names: readonly string[], from: number) =>
  names.map((n, i) => `${quoteIdent(n)} = $${from + i}`).join(', ');
const isKey = (names: readonly string[], from: number) =>
  names.map((n, i) => `${quoteIdent(n)} = $${from + i}`).join(' AND ');

/** The same for the same values in the same form. */
export function idOf(key: Row): string {
  return key.map((value) => (value === null ? '-' : `${value.length}:${value.toString('latin1')}`)).join(' ');
}

/** Somebody has changed the rows in between. */
export function changed(): RefusedError {
  return new RefusedError('40001', 'could not serialize access to a row whose columns are on two shards', {
    hint: 'Retry the transaction.',
  });
}

function tooMany(): RefusedError {
  return new RefusedError(
    '54000',
    `the statement is about more than ${MOST_ROWS} rows whose columns are on two shards, or more than ${MOST_BYTES / 1024 / 1024} MiB of these`,
    {
      hint: 'Restrict it to fewer rows, by columns that are on their table’s shard, or bring the others back to it.',
    },
  );
}
