import { ConflictError } from '../../topology/errors.js';
import { contains, sameBound } from '../../topology/key.js';
import type { RecutSpec } from '../../topology/migration.js';
import type { Keyspace } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import { decodeSpec, type MigrationRow, otherMoves, type StoredRecut } from '../migration-row.js';
import { findKeyspace } from '../move.js';
import { raiseEpochStatement, rangeStatements, rangesAfter, readSegments, segmentStatements } from '../ranges.js';
import { beginStatements } from '../turn.js';
import type { CatalogOnly } from './catalog-only.js';
import { PreflightRefusal } from './prepare.js';

type Recut = CatalogOnly<StoredRecut>;

/**
 * approved → done: one transaction of the catalog. Every key stays where it is, so that nobody needs to be held.
 * @returns the row as it is then
 */
export async function recut(r: Recut): Promise<MigrationRow> {
  r.exec.at('before:recut');
  const { epoch, statements } = await planRecut(r);
  const row = await r.exec.commit(r.row, [...beginStatements(r.row.id), ...statements], 'done', {
    facts: { epoch },
    detail: { epoch },
  });
  r.exec.at('after:recut');
  return row;
}

/** A replica's interval lies in one range, or it could not become the owner of it. */
async function refuseCutOfReplica(r: Recut, keyspace: Keyspace, spec: RecutSpec): Promise<void> {
  for (const { id, spec: stored } of await otherMoves(r.catalog.pool, r.row.id)) {
    if (stored.keyspace !== keyspace.name || stored.from !== spec.shard) continue;
    const interval = decodeSpec(keyspace, stored);
    if (!spec.cut.some((at) => contains(interval, at) && !sameBound(interval.lo, at))) continue;
    const text = `migration ${id} keeps an interval up to date elsewhere that would be cut`;
    throw new PreflightRefusal([{ severity: 'blocker', text, remedy: 'Promote or abort it first.' }]);
  }
}

async function planRecut(r: Recut): Promise<{ epoch: string; statements: CatalogStatement[] }> {
  const topology = r.topology ?? (await r.catalog.loadTopology());
  const keyspace = findKeyspace(topology, r.spec.keyspace);
  const spec = decodeSpec(keyspace, r.spec);
  let after: ReturnType<typeof rangesAfter>;
  try {
    after = rangesAfter(keyspace, spec);
  } catch (error) {
    if (!(error instanceof ConflictError)) throw error;
    const remedy = 'The topology has changed: plan again.';
    throw new PreflightRefusal([{ severity: 'blocker', text: error.message, remedy }]);
  }
  await refuseCutOfReplica(r, keyspace, spec);
  const { keyspace: name, shard, cut, join } = r.spec;
  const audit: CatalogStatement = {
    text: 'audit',
    sql: `INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ('migrator', 'migration.recut', $1, $2)`,
    values: [`migration ${r.row.id}`, JSON.stringify({ keyspace: name, shard, cut, join })],
    elseConflict: null,
  };
  return {
    epoch: (topology.epoch + 1n).toString(),
    statements: [
      raiseEpochStatement(topology.epoch),
      ...rangeStatements(keyspace, after),
      ...segmentStatements(keyspace, spec.cut, await readSegments(r.catalog.pool, keyspace)),
      audit,
    ],
  };
}
