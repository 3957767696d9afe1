import { type ProcessState, totalActivity } from './process-state.js';
import { columns, groupRows, type Row, sumColumns, type View } from './view.js';

/** What PgBouncer's SHOW STATS counts, in its order (1.24); times in microseconds. */
const TOTALS = [
  'server_assignment_count',
  'xact_count',
  'query_count',
  'received',
  'sent',
  'xact_time',
  'query_time',
  'wait_time',
  'client_parse_count',
  'server_parse_count',
  'bind_count',
] as const;
type Total = (typeof TOTALS)[number];
export type Totals = Readonly<Record<Total, number>>;

/** Averages of times are per one of these, of everything else per second. */
const PER: Partial<Record<Total, Total>> = {
  xact_time: 'xact_count',
  query_time: 'query_count',
  wait_time: 'server_assignment_count',
};
/** As in PgBouncer's STATS_TOTALS and STATS_AVERAGES. */
const SUBSET_NAMES: Partial<Record<Total, string>> = { received: 'bytes_received', sent: 'bytes_sent' };
const AVERAGE_NAMES: Partial<Record<Total, string>> = { received: 'recv' };

/** PgBouncer's stats_period. */
const PERIOD_MS = 60_000;

/** Of one process, since it started. */
export function totalsOf(state: Pick<ProcessState, 'pools' | 'clients' | 'gone'>): Totals {
  const activity = totalActivity(state);
  const sum = { xactCount: 0, queryCount: 0, received: 0, sent: 0, xactTimeMs: 0, queryTimeMs: 0 };
  for (const pool of state.pools.all) {
    const { totals } = pool;
    for (const key of Object.keys(sum) as (keyof typeof sum)[]) sum[key] += totals[key];
  }
  return {
    server_assignment_count: activity.assignments,
    xact_count: sum.xactCount,
    query_count: sum.queryCount,
    received: activity.received,
    sent: activity.sent,
    xact_time: Math.round(sum.xactTimeMs * 1000),
    query_time: Math.round(sum.queryTimeMs * 1000),
    wait_time: Math.round(activity.waitMs * 1000),
    client_parse_count: activity.parses,
    server_parse_count: activity.serverParses,
    bind_count: activity.binds,
  };
}

interface Snapshot {
  readonly at: number;
  readonly totals: Totals;
}

/** Averages over the last whole period of a minute; before the first has passed, since the start. */
export class Averages {
  readonly #totals: () => Totals;
  readonly #timer: NodeJS.Timeout;
  #older: Snapshot;
  #newer: Snapshot | null = null;

  constructor(totals: () => Totals) {
    this.#totals = totals;
    this.#older = { at: performance.now(), totals: totals() };
    this.#timer = setInterval(() => {
      if (this.#newer !== null) this.#older = this.#newer;
      this.#newer = this.#snapshot();
    }, PERIOD_MS);
    this.#timer.unref();
  }

  /** In the order of `TOTALS`; whole numbers, as PgBouncer has them. */
  get current(): readonly number[] {
    const { at, totals } = this.#newer ?? this.#snapshot();
    const elapsed = (at - this.#older.at) / 1000;
    const grown = (name: Total) => totals[name] - this.#older.totals[name];
    return TOTALS.map((name) => {
      const per = PER[name];
      const by = per === undefined ? elapsed : grown(per);
      return by > 0 ? Math.round(grown(name) / by) : 0;
    });
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #snapshot(): Snapshot {
    return { at: performance.now(), totals: this.#totals() };
  }
}

const names = (prefix: string, special: Partial<Record<Total, string>>): string =>
  TOTALS.map((name) => `${prefix}${special[name] ?? name}:int8`).join(' ');

/** Raw rows: database, totals, averages, and, to weigh averages of times by, what they are per. */
function statsRows(state: ProcessState): Row[] {
  const totals = totalsOf(state);
  return [[state.live.current.database, ...TOTALS.map((name) => totals[name]), ...state.averages()]];
}

/** Of all processes: sums; of the averages of times, their mean weighted by what they are averages of. */
function finish(rows: readonly Row[]): Row[] {
  const averagesAt = 1 + TOTALS.length;
  const at = (name: Total) => averagesAt + TOTALS.indexOf(name);
  const weighted = rows.map((row) => {
    const copy = [...row];
    for (const [name, per] of Object.entries(PER) as [Total, Total][])
      copy[at(name)] = Number(copy[at(name)]) * Number(copy[at(per)]);
    return copy;
  });
  const summed = groupRows(weighted, 1, sumColumns(1, averagesAt + TOTALS.length));
  if (rows.length === summed.length) return [...rows];
  return summed.map((row) => {
    for (const [name, per] of Object.entries(PER) as [Total, Total][])
      row[at(name)] = Number(row[at(per)]) > 0 ? Math.round(Number(row[at(name)]) / Number(row[at(per)])) : 0;
    return row;
  });
}

export const STATS: View<ProcessState> = {
  name: 'stats',
  about: 'totals since the start, and averages of the last minute; times in microseconds',
  columns: columns(`database ${names('total_', {})} ${names('avg_', AVERAGE_NAMES)}`),
  rows: statsRows,
  finish,
};

export const STATS_TOTALS: View<ProcessState> = {
  name: 'stats_totals',
  about: 'the totals of SHOW STATS',
  columns: columns(`database ${names('', SUBSET_NAMES)}`),
  rows: statsRows,
  finish: (rows) => finish(rows).map((row) => row.slice(0, 1 + TOTALS.length)),
};

export const STATS_AVERAGES: View<ProcessState> = {
  name: 'stats_averages',
  about: 'the averages of SHOW STATS',
  columns: columns(`database ${names('', SUBSET_NAMES)}`),
  rows: statsRows,
  finish: (rows) => finish(rows).map((row) => [row[0] ?? null, ...row.slice(1 + TOTALS.length)]),
};

export const TOTALS_VIEW: View<ProcessState> = {
  name: 'totals',
  about: 'SHOW STATS as one row for each number',
  columns: columns('name value:int8'),
  rows: statsRows,
  finish: (rows) =>
    finish(rows).flatMap((row) => STATS.columns.slice(1).map(({ name }, i): Row => [name, row[i + 1] ?? null])),
};
