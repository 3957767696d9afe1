import type { CatalogClient } from '../../topology/catalog/change.js';
import { readTopology } from '../../topology/catalog/topology-reader.js';
import { positionToJson } from '../../topology/key-codec.js';
import type { Epoch } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import { isReference, type Move } from '../move.js';
import { raiseEpochStatement, rangeStatements, rangesAfter, readSegments, segmentStatements } from '../ranges.js';
import { replacedByOwner } from '../replica.js';
import { refuseNewTables } from './verify.js';

/** What the flip will write, made before anybody is held. */
export interface FlipPlan {
  /** The epoch that the ranges were read at; the flip happens only at this one. */
  readonly epoch: Epoch;
  readonly statements: readonly CatalogStatement[];
}

/** Reads ranges and segments and makes the flip's statements. @throws ConflictError when the interval is no longer the source's */
export async function planFlip(m: Move, catalog: CatalogClient = m.catalog.pool): Promise<FlipPlan> {
  const topology = m.exec.dry ? m.topology : await readTopology(catalog);
  if (m.row.state === 'fencing') refuseNewTables(m, topology);
  const keyspace = topology.keyspaces.get(m.keyspace.name) ?? m.keyspace;
  const segments = await readSegments(catalog, keyspace);
  const current: Move = { ...m, topology, keyspace };
  const cuts = segmentStatements(keyspace, [m.spec.lo, m.spec.hi], segments);
  return { epoch: topology.epoch, statements: [...flipStatements(current), ...cuts] };
}

/**
 * fencing → flipped, and on the way back rolling_back → flipped_back: the point of no return, one transaction of the catalog. It commits only while the hold is alive, every
 * proxy that lives has acknowledged it, and the epoch is the one that the ranges were read at.
 */
export async function flip(m: Move, plan: FlipPlan, catalog?: CatalogClient): Promise<void> {
  m.exec.at('before:flip');
  const epoch = (plan.epoch + 1n).toString();
  const to = flippedState(m);
  const change = { facts: to === 'flipped' ? { flipEpoch: epoch } : { backEpoch: epoch }, detail: { epoch } };
  m.row = await m.exec.flip(m.row, statementsOf(m, plan), to, change, catalog);
  m.exec.at('after:flip');
}

/** Spares the flip what a connection takes longer for the first time. */
export async function foreseeFlip(m: Move, plan: FlipPlan, catalog: CatalogClient): Promise<void> {
  await m.exec.foresee(m.row, statementsOf(m, plan), flippedState(m), catalog);
}

function flippedState(m: Move): 'flipped' | 'flipped_back' {
  return m.row.state === 'rolling_back' ? 'flipped_back' : 'flipped';
}

function statementsOf(m: Move, plan: FlipPlan): CatalogStatement[] {
  return [...plan.statements, ...replacedByOwner(m)];
}

/** What the flip changes in the catalog, in order; data, so that the dry run can show it. */
function flipStatements(m: Move): CatalogStatement[] {
  const { spec, keyspace } = m;
  const id = m.row.id.toString();
  const statements: CatalogStatement[] = [
    raiseEpochStatement(m.topology.epoch),
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

  statements.push(...rangeStatements(keyspace, rangesAfter(keyspace, spec)));
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
