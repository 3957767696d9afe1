import type { Catalog } from '../../topology/catalog/catalog.js';
import type { MigrationSpec } from '../../topology/migration.js';
import { type TableName, type Topology, tableId } from '../../topology/topology.js';
import { type DryRun, dryRun } from '../dry-run.js';
import type { StoredSpec } from '../migration-row.js';
import { storedIn } from '../move.js';
import type { MigratorOptions } from '../options.js';
import { topologyAfter } from './topology-after.js';

export interface MemberDryRun extends DryRun {
  readonly spec: StoredSpec;
  /** What could not be looked at now, because earlier members will have changed it. */
  readonly notes: readonly string[];
}

/**
 * Walks the steps of all members: of each on the ranges as those before it leave them, and on the shards as they are now.
 * @param topology as it is
 */
export async function dryRunChange(
  catalog: Catalog,
  topology: Topology,
  members: readonly MigrationSpec[],
  options: Partial<MigratorOptions>,
): Promise<MemberDryRun[]> {
  const runs: MemberDryRun[] = [];
  const filled = new Map<string, number>();
  // By keyspace: hot tables that are made by a member.
  const unmade = new Map<string, TableName>();
  let then = topology;
  for (const [i, spec] of members.entries()) {
    const stored = storedIn(then, spec);
    const notes: string[] = [];
    if (spec.kind === 'move') {
      for (const shard of new Set([spec.from, spec.to])) {
        const earlier = filled.get(shard);
        if (earlier !== undefined)
          notes.push(
            `What migration ${earlier} will have made on shard "${shard}" by then is shown as if it were not there.`,
          );
      }
      if (!filled.has(spec.to)) filled.set(spec.to, i + 1);
      const hot = unmade.get(spec.keyspace);
      if (hot !== undefined) notes.push(`Its steps cannot be shown before table "${tableId(hot)}" is there.`);
    }
    const tables = new Set([...unmade.values()].map(tableId));
    runs.push({ spec: stored, notes, ...(await dryRun(catalog, spec, options, then, null, tables)) });
    if (spec.kind === 'halve') unmade.set(spec.as, spec.hot);
    then = topologyAfter(then, spec);
  }
  return runs;
}
