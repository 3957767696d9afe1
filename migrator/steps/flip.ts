import { ConflictError } from '../../topology/errors.js';
import { contains, type Interval, type Position, sameBound } from '../../topology/key.js';
import { positionFromJson, positionToJson } from '../../topology/key-codec.js';
import { type Epoch, rangesIn } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import { COMMIT_MARGIN_MS } from '../hold-end.js';
import { isReference, type Move } from '../move.js';

/** What the flip will write, made before anybody is held. */
export interface FlipPlan {
  /** The epoch that the ranges were read at; the flip happens only at this one. */
  readonly epoch: Epoch;
  readonly statements: readonly CatalogStatement[];
}

/** Reads ranges and segments and makes the flip's statements. @throws ConflictError when the interval is no longer the source's */
export async function planFlip(m: Move): Promise<FlipPlan> {
  const topology = await m.catalog.loadTopology();
  const keyspace = topology.keyspaces.get(m.keyspace.name) ?? m.keyspace;
  const segments = await m.catalog.pool.query<{ lo: unknown; hi: unknown }>(
    'SELECT lo, hi FROM foreshard.segment WHERE keyspace = $1',
    [keyspace.name],
  );
  const decoded = segments.rows.map((s) => ({
    lo: positionFromJson(keyspace, s.lo),
    hi: positionFromJson(keyspace, s.hi),
  }));
  const current: Move = { ...m, topology, keyspace };
  return { epoch: topology.epoch, statements: [...flipStatements(current), ...segmentCuts(current, decoded)] };
}

/**
 * drained → flipped, and on the way back rolling_back → flipped_back: the point of no return, one transaction of the catalog. It commits only while the hold is alive, every
 * proxy that lives has acknowledged it, and the epoch is the one that the ranges were read at.
 */
export async function flip(m: Move, plan: FlipPlan): Promise<void> {
  m.exec.at('before:flip');
  const epoch = (plan.epoch + 1n).toString();
  const isBack = m.row.state === 'rolling_back';
  m.row = await m.exec.flip(m.row, plan.statements, isBack ? 'flipped_back' : 'flipped', {
    facts: isBack ? { backEpoch: epoch } : { flipEpoch: epoch },
    detail: { epoch },
  });
  m.exec.at('after:flip');
}

/** What the flip changes in the catalog, in order; data, so that the dry run can show it. */
function flipStatements(m: Move): CatalogStatement[] {
  const { spec, keyspace } = m;
  const bound = (p: Position | null) => json(positionToJson(keyspace, p));
  const range = rangesIn(keyspace, spec)[0];
  if (range === undefined || range.shard !== spec.from || rangesIn(keyspace, spec).length !== 1)
    throw new ConflictError(`the interval no longer lies in one range of shard "${spec.from}"`);
  const id = m.row.id.toString();
  const statements: CatalogStatement[] = [
    {
      text: 'raise the epoch, if nothing else has',
      sql: 'UPDATE foreshard.meta SET epoch = epoch + 1 WHERE epoch = $1',
      values: [m.topology.epoch.toString()],
      elseConflict: 'the topology changed while the migration was about to flip',
    },
    {
      text: 'the hold still stands',
      sql: `SELECT id FROM foreshard.hold WHERE migration_id = $1 AND deadline > clock_timestamp() + ${COMMIT_MARGIN_MS} * interval '1 ms' FOR UPDATE`,
      values: [id],
      elseConflict: 'the hold ran out before the flip',
    },
    {
      text: 'every live proxy has acknowledged it',
      sql: `SELECT 1 WHERE NOT EXISTS (
              SELECT FROM foreshard.proxy p WHERE p.lease_until > clock_timestamp() AND NOT EXISTS (
                SELECT FROM foreshard.hold_ack a JOIN foreshard.hold h ON h.id = a.hold_id
                 WHERE a.proxy_id = p.id AND h.migration_id = $1))`,
      values: [id],
      elseConflict: 'a proxy that has not acknowledged the hold appeared before the flip',
    },
  ];

  // The row is kept for what stays, so that its id goes on meaning the range that operators know.
  const leftStays = !sameBound(range.lo, spec.lo);
  const rightStays = !sameBound(range.hi, spec.hi);
  const update = (sql: string, values: unknown[], text: string) =>
    statements.push({ text, sql, values, elseConflict: 'the range is gone' });
  const insert = (lo: Position | null, hi: Position | null, shard: string, text: string) =>
    statements.push({
      text,
      sql: 'INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ($1, $2, $3, $4)',
      values: [keyspace.name, bound(lo), bound(hi), shard],
      elseConflict: null,
    });
  const rangeId = range.id.toString();
  if (leftStays) {
    update('UPDATE foreshard.range SET hi = $2 WHERE id = $1', [rangeId, bound(spec.lo)], 'what lies below stays');
    if (rightStays) insert(spec.hi, range.hi, spec.from, 'what lies above stays');
    insert(spec.lo, spec.hi, spec.to, 'the interval goes to the destination');
  } else if (rightStays) {
    update('UPDATE foreshard.range SET lo = $2 WHERE id = $1', [rangeId, bound(spec.hi)], 'what lies above stays');
    insert(spec.lo, spec.hi, spec.to, 'the interval goes to the destination');
  } else
    update(
      'UPDATE foreshard.range SET shard = $2 WHERE id = $1',
      [rangeId, spec.to],
      'the range goes to the destination',
    );

  for (const t of m.tables.filter(isReference))
    statements.push({
      text: `reference table ${t.schema}.${t.table} has a copy at the destination`,
      sql: 'INSERT INTO foreshard.reference_copy (schema_name, table_name, shard) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING',
      values: [t.schema, t.table, spec.to],
      elseConflict: null,
    });
  statements.push({
    text: 'audit',
    sql: `INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ('migrator', 'migration.flip', $1, $2)`,
    values: [
      `migration ${id}`,
      JSON.stringify({
        keyspace: keyspace.name,
        lo: positionToJson(keyspace, spec.lo),
        hi: positionToJson(keyspace, spec.hi),
        from: spec.from,
        to: spec.to,
      }),
    ],
    elseConflict: null,
  });
  return statements;
}

/** A bound as jsonb; SQL NULL for infinity. */
function json(position: readonly string[] | null): string | null {
  return position === null ? null : JSON.stringify(position);
}

/** Cuts the segments that straddle a new bound: the row stays for the left part, a new one begins at the bound. */
function segmentCuts(m: Pick<Move, 'keyspace' | 'spec'>, segments: readonly Interval[]): CatalogStatement[] {
  const { keyspace, spec } = m;
  const bound = (p: Position | null) => json(positionToJson(keyspace, p));
  const cuts: CatalogStatement[] = [];
  let open = [...segments];
  for (const at of [spec.lo, spec.hi]) {
    if (at === null) continue;
    const straddling = open.find((s) => contains(s, at) && !sameBound(s.lo, at));
    if (straddling === undefined) continue;
    cuts.push({
      text: 'cut a segment at the new bound',
      sql: `WITH cut AS (UPDATE foreshard.segment SET hi = $3::jsonb WHERE keyspace = $1 AND lo IS NOT DISTINCT FROM $2::jsonb
                           AND hi IS NOT DISTINCT FROM $4::jsonb RETURNING 1)
            INSERT INTO foreshard.segment (keyspace, lo, hi) SELECT $1, $3::jsonb, $4::jsonb FROM cut`,
      values: [keyspace.name, bound(straddling.lo), bound(at), bound(straddling.hi)],
      elseConflict: 'the segments changed while the migration was about to flip',
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
  return cuts;
}
