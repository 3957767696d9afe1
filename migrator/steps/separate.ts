import { checkSeparation, findTies, separationStatements } from '../../topology/catalog/separate.js';
import { UsageError } from '../../topology/errors.js';
import type { SeparateSpec } from '../../topology/migration.js';
import { type Topology, tableId } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import type { MigrationRow } from '../migration-row.js';
import type { Finding } from '../preflight-finding.js';
import { raiseEpochStatement } from '../ranges.js';
import { beginStatements } from '../turn.js';
import type { CatalogOnly } from './catalog-only.js';
import { PreflightRefusal } from './prepare.js';

/**
 * approved → done: one transaction of the catalog. Every row stays where it is, so that nobody needs to be held.
 * @returns the row as it is then
 */
export async function separate(s: CatalogOnly<SeparateSpec>): Promise<MigrationRow> {
  s.exec.at('before:separate');
  const topology = s.topology ?? (await s.catalog.loadTopology());
  const findings = await blockers(s, topology);
  if (findings.length > 0) throw new PreflightRefusal(findings);
  const epoch = (topology.epoch + 1n).toString();
  const { keyspace, tables, as } = s.spec;
  const audit: CatalogStatement = {
    text: 'audit',
    sql: `INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ('migrator', 'migration.separate', $1, $2)`,
    values: [`migration ${s.row.id}`, JSON.stringify({ keyspace, as, tables: tables.map(tableId) })],
    elseConflict: null,
  };
  const statements: CatalogStatement[] = [
    ...beginStatements(s.row.id),
    ...(keyspace === null ? [] : [nothingLeft(keyspace)]),
    raiseEpochStatement(topology.epoch),
    ...separationStatements(s.spec).map((one) => ({ ...one, elseConflict: 'the topology changed meanwhile' })),
    audit,
  ];
  const row = await s.exec.commit(s.row, statements, 'done', { facts: { epoch }, detail: { epoch } });
  s.exec.at('after:separate');
  return row;
}

/** Migrations that know the keyspace as it was, and go on with it some time: those at work are waited for. */
const IN_THE_WAY = `SELECT id::text, state FROM foreshard.migration o WHERE spec->>'keyspace' = $1 AND (state = 'following'
  OR (state = 'failed' AND EXISTS (SELECT FROM foreshard.migration_cleanup c WHERE c.migration_id = o.id AND c.done_at IS NULL)))`;

const nothingLeft = (keyspace: string): CatalogStatement => ({
  text: 'no migration of the keyspace has left anything',
  sql: `SELECT WHERE NOT EXISTS (${IN_THE_WAY})`,
  values: [keyspace],
  elseConflict: 'another migration of the keyspace has left something',
});

async function blockers(s: CatalogOnly<SeparateSpec>, topology: Topology): Promise<Finding[]> {
  try {
    checkSeparation(topology, s.spec);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return [
      { severity: 'blocker', text: error.message, remedy: error.hint ?? 'The topology has changed: plan again.' },
    ];
  }
  const { rows } = await s.catalog.pool.query<{ id: string; state: string }>(IN_THE_WAY, [s.spec.keyspace]);
  const ties = await findTies(topology, s.spec);
  return [
    ...rows.map(
      ({ id, state }): Finding =>
        state === 'following'
          ? {
              severity: 'blocker',
              text: `migration ${id} keeps a replica of keyspace "${s.spec.keyspace}"`,
              remedy: `Have it promoted ("foreshard migrate promote ${id}") or dropped ("foreshard migrate abort ${id}") first.`,
            }
          : {
              severity: 'blocker',
              text: `migration ${id} of keyspace "${s.spec.keyspace}" is ${state}, and has left things on its shards`,
              remedy: `See "foreshard migrate show ${id}"; then abort it, or accept the difference it has found.`,
            },
    ),
    ...ties.map((tie): Finding => ({ severity: 'blocker', ...tie })),
  ];
}
