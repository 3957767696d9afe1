import { HEAPS } from './heaps.js';
import { isReference, type Move } from './move.js';

/** Rows up to which they are counted rather than estimated. */
const COUNT_BELOW = 2_000_000;
/** Of a row in a table that has none, or none that anybody has counted. */
const ROW_BYTES = 128;

/** What of a table belongs to the interval, about. */
export interface Volume {
  readonly rows: number;
  readonly bytes: number;
}

/** Rows and bytes of each table's part of the interval at the source, in the order of `m.tables`. Counted when that is quick, else the planner's estimate. */
export async function measureVolumes(m: Move): Promise<(Volume & { readonly name: string })[]> {
  const volumes: (Volume & { name: string })[] = [];
  for (const t of m.tables) {
    const [facts] = await m.source.query<{ name: string | null; tuples: number; bytes: string }>(
      `SELECT to_regclass($1)::text AS name, coalesce(sum(greatest(heap.reltuples, 0)), 0)::float8 AS tuples,
              coalesce(sum(pg_table_size(heap.oid)), 0)::text AS bytes FROM ${HEAPS}`,
      [t.sql],
    );
    if (facts?.name == null) {
      volumes.push({ name: t.sql, rows: 0, bytes: 0 });
      continue;
    }
    let whole = facts.tuples;
    let rows: number;
    if (whole < COUNT_BELOW && Number(facts.bytes) < COUNT_BELOW * 100) {
      const [counted] = await m.source.query<{ n: number; all: number }>(
        `SELECT count(*) FILTER (WHERE ${t.predicate()})::float8 AS n, count(*)::float8 AS all FROM ${t.sql}`,
      );
      rows = counted?.n ?? 0;
      whole = counted?.all ?? 0;
    } else if (isReference(t)) rows = whole;
    else {
      const plan = await m.source.query<{ 'QUERY PLAN': { Plan: { 'Plan Rows': number } }[] }>(
        `EXPLAIN (FORMAT JSON) SELECT FROM ${t.sql} WHERE ${t.predicate()}`,
      );
      rows = plan[0]?.['QUERY PLAN'][0]?.Plan['Plan Rows'] ?? 0;
    }
    volumes.push({ name: facts.name, rows, bytes: whole > 0 ? Math.round((Number(facts.bytes) * rows) / whole) : 0 });
  }
  return volumes;
}

export function sumOf(volumes: readonly Volume[]): Volume {
  return volumes.reduce((a, v) => ({ rows: a.rows + v.rows, bytes: a.bytes + v.bytes }), { rows: 0, bytes: 0 });
}

/** Bytes of one row, about. */
export function rowBytes({ rows, bytes }: Volume): number {
  return rows > 0 ? Math.max(1, bytes / rows) : ROW_BYTES;
}
