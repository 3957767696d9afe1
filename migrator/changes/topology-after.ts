import { afterSplit, afterUnite } from '../../topology/column-split.js';
import type { MigrationSpec } from '../../topology/migration.js';
import { afterSeparation } from '../../topology/separation.js';
import type { Epoch, Topology } from '../../topology/topology.js';
import { findKeyspace } from '../move.js';
import { rangesAfter, withRanges } from '../ranges.js';

/** The topology when a migration is done. */
export function topologyAfter(topology: Topology, spec: MigrationSpec): Topology {
  const epoch = (topology.epoch + 1n) as Epoch;
  if (spec.kind === 'separate') return { ...afterSeparation(topology, spec), epoch };
  if (spec.kind === 'halve') return { ...afterSplit(topology, spec, spec.primaryKey), epoch };
  if (spec.kind === 'unite') return { ...afterUnite(topology, spec), epoch };
  const keyspace = findKeyspace(topology, spec.keyspace);
  const keyspaces = new Map(topology.keyspaces);
  keyspaces.set(keyspace.name, withRanges(keyspace, rangesAfter(keyspace, spec)));
  const referenceTables = new Map(topology.referenceTables);
  if (spec.kind === 'move')
    for (const [id, table] of topology.referenceTables)
      if (!table.shards.includes(spec.to)) referenceTables.set(id, { ...table, shards: [...table.shards, spec.to] });
  return { ...topology, epoch, keyspaces, referenceTables };
}
