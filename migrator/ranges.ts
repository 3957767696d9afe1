import type pg from 'pg';
import { ConflictError } from '../topology/errors.js';
import { contains, type Interval, type Position, sameBound } from '../topology/key.js';
import { positionFromJson, positionToJson } from '../topology/key-codec.js';
import type { MoveSpec, RangeSpec, RecutSpec } from '../topology/migration.js';
import { type Epoch, isKeyless, type Keyspace, type Range, rangeOf, rangesIn } from '../topology/topology.js';
import type { CatalogStatement } from './action.js';
import type { Db } from './migration-row.js';

/** A range as a migration leaves it; `id` null: a new one. */
type RangeAfter = Omit<Range, 'id'> & { readonly id: bigint | null };

/**
 * The ranges of a keyspace as a migration leaves them, in order. A row keeps its id for the part on the left, so that it goes on meaning the
 * range that operators know.
 * @throws ConflictError when the ranges are not (any more) such that it can be carried out
 */
export function rangesAfter(keyspace: Keyspace, spec: RangeSpec): RangeAfter[] {
  return spec.kind === 'move' ? afterMove(keyspace, spec) : afterRecut(keyspace, spec);
}

/** The keyspace with these ranges: what a later migration will find. New ranges have ids that no range has. */
export function withRanges(keyspace: Keyspace, ranges: readonly RangeAfter[]): Keyspace {
  return { ...keyspace, ranges: ranges.map((range, i) => ({ ...range, id: range.id ?? BigInt(-1 - i) })) };
}

function afterMove(keyspace: Keyspace, spec: MoveSpec): RangeAfter[] {
  const [range, second] = rangesIn(keyspace, spec);
  if (range === undefined || range.shard !== spec.from || second !== undefined)
    throw new ConflictError(`the interval no longer lies in one range of shard "${spec.from}"`);
  const staysBelow = !sameBound(range.lo, spec.lo);
  const staysAbove = !sameBound(range.hi, spec.hi);
  const moved = { ...range, lo: spec.lo, hi: spec.hi, shard: spec.to };
  // The row stays with what stays.
  const parts: RangeAfter[] = [{ ...moved, id: staysBelow || staysAbove ? null : range.id }];
  if (staysBelow) parts.unshift({ ...range, hi: spec.lo });
  if (staysAbove) parts.push({ ...range, lo: spec.hi, id: staysBelow ? null : range.id });
  return keyspace.ranges.flatMap((r) => (r === range ? parts : [r]));
}

function afterRecut(keyspace: Keyspace, spec: RecutSpec): RangeAfter[] {
  const ours = (range: Pick<Range, 'shard'>, at: Position) => {
    if (range.shard === spec.shard) return;
    const where = `(${positionToJson(keyspace, at).join(', ')})`;
    throw new ConflictError(`position ${where} belongs to shard "${range.shard}", not "${spec.shard}"`);
  };
  if (isKeyless(keyspace))
    throw new ConflictError(`keyspace "${keyspace.name}" has no key by which its range could be cut`);
  let ranges: RangeAfter[] = [...keyspace.ranges];
  for (const at of spec.cut) {
    ours(rangeOf(keyspace, at), at);
    ranges = ranges.flatMap((r): RangeAfter[] =>
      contains(r, at) && !sameBound(r.lo, at)
        ? [
            { ...r, hi: at },
            { ...r, lo: at, id: null },
          ]
        : [r],
    );
  }
  for (const at of spec.join) {
    const i = ranges.findIndex((r) => sameBound(r.lo, at));
    const [left, right] = [ranges[i - 1], ranges[i]];
    ours(right ?? rangeOf(keyspace, at), at);
    if (left === undefined || right === undefined) continue; // no bound is there (any more)
    ours(left, at);
    ranges = ranges.toSpliced(i - 1, 2, { ...left, hi: right.hi });
  }
  return ranges;
}

/** Every change of ranges begins with this. */
export function raiseEpochStatement(epoch: Epoch): CatalogStatement {
  return {
    text: 'raise the epoch, if nothing else has',
    sql: 'UPDATE foreshard.meta SET epoch = epoch + 1 WHERE epoch = $1',
    values: [epoch.toString()],
    elseConflict: 'the topology changed meanwhile',
    conflict: 'epoch',
  };
}

/** What turns the catalog's rows of a keyspace into `after`. */
export function rangeStatements(keyspace: Keyspace, after: readonly RangeAfter[]): CatalogStatement[] {
  const kept = new Map(after.flatMap((r) => (r.id === null ? [] : [[r.id, r] as const])));
  const bound = (p: Position | null) => boundToSql(keyspace, p);
  const statements: CatalogStatement[] = [];
  const act = (text: string, sql: string, values: unknown[]) =>
    statements.push({ text, sql, values, elseConflict: 'the range is gone' });
  for (const r of keyspace.ranges)
    if (!kept.has(r.id))
      act(`range ${r.id} becomes one with its neighbour`, 'DELETE FROM foreshard.range WHERE id = $1', [
        r.id.toString(),
      ]);
  for (const r of keyspace.ranges) {
    const now = kept.get(r.id);
    if (now === undefined || (sameBound(now.lo, r.lo) && sameBound(now.hi, r.hi) && now.shard === r.shard)) continue;
    act(
      now.shard === r.shard ? `range ${r.id} has other bounds` : 'the range goes to the destination',
      'UPDATE foreshard.range SET lo = $2, hi = $3, shard = $4 WHERE id = $1',
      [r.id.toString(), bound(now.lo), bound(now.hi), now.shard],
    );
  }
  for (const r of after)
    if (r.id === null)
      act(
        `a new range on shard "${r.shard}"`,
        'INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ($1, $2, $3, $4)',
        [keyspace.name, bound(r.lo), bound(r.hi), r.shard],
      );
  return statements;
}

/** The segments of a keyspace, in no order. */
export async function readSegments(db: Db, keyspace: Keyspace): Promise<Interval[]> {
  const { rows } = await (db as pg.Pool).query<{ lo: unknown; hi: unknown }>(
    'SELECT lo, hi FROM foreshard.segment WHERE keyspace = $1',
    [keyspace.name],
  );
  return rows.map((s) => ({ lo: positionFromJson(keyspace, s.lo), hi: positionFromJson(keyspace, s.hi) }));
}

/** Cuts the segments that straddle a bound: the row stays for the left part, a new one begins at the bound. */
export function segmentStatements(
  keyspace: Keyspace,
  bounds: readonly (Position | null)[],
  segments: readonly Interval[],
): CatalogStatement[] {
  const statements: CatalogStatement[] = [];
  let open = [...segments];
  for (const at of bounds) {
    if (at === null) continue;
    const straddling = open.find((s) => contains(s, at) && !sameBound(s.lo, at));
    if (straddling === undefined) continue;
    const [lo, mid, hi] = [straddling.lo, at, straddling.hi].map((p) => boundToSql(keyspace, p));
    statements.push({
      text: 'cut a segment at the new bound',
      sql: `WITH cut AS (UPDATE foreshard.segment SET hi = $3::jsonb WHERE keyspace = $1 AND lo IS NOT DISTINCT FROM $2::jsonb
                           AND hi IS NOT DISTINCT FROM $4::jsonb RETURNING 1)
            INSERT INTO foreshard.segment (keyspace, lo, hi) SELECT $1, $3::jsonb, $4::jsonb FROM cut`,
      values: [keyspace.name, lo, mid, hi],
      elseConflict: 'the segments have changed meanwhile',
    });
    open = open.flatMap((s) =>
      s === straddling
        ? [
            { lo: s.lo, hi: at },
            { lo: at, hi: s.hi },
          ]
        : [s],
    );
  }
  return statements;
}

/** A bound as jsonb; SQL NULL for infinity. */
function boundToSql(keyspace: Keyspace, position: Position | null): string | null {
  return position === null ? null : JSON.stringify(positionToJson(keyspace, position));
}
