import type { Catalog } from '../../topology/catalog/catalog.js';
import { ConflictError } from '../../topology/errors.js';
import type { MigrationState } from '../../topology/migration.js';
import type { Topology } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import type { Executor } from '../executor.js';
import { decodeSpec, type MigrationRow, type StoredRecut } from '../migration-row.js';
import { findKeyspace } from '../move.js';
import { raiseEpochStatement, rangeStatements, rangesAfter, readSegments, segmentStatements } from '../ranges.js';
import { beginStatements } from '../turn.js';
import { PreflightRefusal } from './prepare.js';

/** A recut in the hands of its driver. It has to do with the catalog alone. */
export interface Recut {
  /** As of the last transition; steps replace it. */
  row: MigrationRow;
  readonly spec: StoredRecut;
  readonly exec: Executor;
  readonly catalog: Catalog;
  /** Of a dry run: as it will be then. */
  readonly topology?: Topology;
}

export const RECUT_STEPS: Partial<Record<MigrationState, (r: Recut) => Promise<void>>> = {
  approved: recut,
  aborting: async (r) => {
    r.row = await r.exec.transition(r.row, 'aborted'); // nothing was made
  },
};

/** approved → done: one transaction of the catalog. Every key stays where it is, so that nobody needs to be held. */
async function recut(r: Recut): Promise<void> {
  r.exec.at('before:recut');
  const { epoch, statements } = await planRecut(r);
  r.row = await r.exec.commit(r.row, [...beginStatements(r.row.id), ...statements], 'done', {
    facts: { epoch },
    detail: { epoch },
  });
  r.exec.at('after:recut');
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
