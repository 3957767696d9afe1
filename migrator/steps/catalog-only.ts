import type { Catalog } from '../../topology/catalog/catalog.js';
import type { MigrationState, SeparateSpec } from '../../topology/migration.js';
import type { Topology } from '../../topology/topology.js';
import type { Executor } from '../executor.js';
import type { MigrationRow, StoredRecut } from '../migration-row.js';
import { recut } from './recut.js';
import { separate } from './separate.js';

/** A migration that has to do with the catalog alone, in the hands of its driver. */
export interface CatalogOnly<Spec = StoredRecut | SeparateSpec> {
  /** As of the last transition; steps replace it. */
  row: MigrationRow;
  readonly spec: Spec;
  readonly exec: Executor;
  readonly catalog: Catalog;
  /** Of a dry run: as it will be then. */
  readonly topology?: Topology;
}

/** Like `STEPS` of the driver; approved → done is one transaction of the catalog. */
export const CATALOG_STEPS: Partial<Record<MigrationState, (c: CatalogOnly) => Promise<void>>> = {
  approved: async (c) => {
    c.row = c.spec.kind === 'recut' ? await recut({ ...c, spec: c.spec }) : await separate({ ...c, spec: c.spec });
  },
  aborting: async (c) => {
    c.row = await c.exec.transition(c.row, 'aborted'); // nothing was made
  },
};
