import type { Catalog } from '../../topology/catalog/catalog.js';
import { ConflictError } from '../../topology/errors.js';
import { contains, sameBound } from '../../topology/key.js';
import type { MigrationState, RecutSpec } from '../../topology/migration.js';
import type { Keyspace, Topology } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import type { Executor } from '../executor.js';
import { decodeSpec, type MigrationRow, OUT_OF_THE_WAY, type StoredRecut, type StoredSpec } from '../migration-row.js';
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

/** A replica's interval lies in one range, or it could not become the owner of it. */
async function refuseCutOfReplica(r: Recut, keyspace: Keyspace, spec: RecutSpec): Promise<void> {
  const { rows } = await r.catalog.pool.query<{ id: string; spec: StoredSpec }>(
    `SELECT id::text, spec FROM foreshard.migration WHERE id <> $1 AND spec->>'keyspace' = $2 AND spec->>'from' = $3
        AND state NOT IN (${OUT_OF_THE_WAY})`,
    [r.row.id.toString(), keyspace.name, spec.shard],
  );
  for (const { id, spec: stored } of rows) {
    if (stored.kind !== 'move') continue;
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
