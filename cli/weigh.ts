import type { Carrier, Piece } from '../migrator/changes/balance.js';
import { HistoryStore } from '../planner/history-store.js';
import { segmentsIn } from '../planner/outlook.js';
import { measureInterval } from '../planner/sizes.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import type { Shard, Topology } from '../topology/topology.js';

const HOUR_MS = 3_600_000;
const WEEK_MS = 7 * 24 * HOUR_MS;

/** What the ranges of all keyspaces weigh, and what the shards can carry of that. */
export interface Weighed {
  /** `load`: milliseconds of busy backend per second, the mean of a week by segment. `bytes`: of rows, by range, where there is no history. */
  readonly unit: 'load' | 'bytes';
  readonly pieces: readonly Piece[];
  readonly carriers: readonly Carrier[];
}

/** @throws ForeshardError when sizes have to be measured and a shard cannot be asked */
export async function weigh(catalog: Catalog, topology: Topology): Promise<Weighed> {
  const loads = await loadPieces(catalog, topology);
  const unit = loads.some((p) => p.weight > 0) ? 'load' : 'bytes';
  const shards = [...topology.shards.values()];
  const areRated = unit === 'load' && shards.every((s) => s.capacityMsPerSecond !== null);
  return {
    unit,
    pieces: unit === 'load' ? loads : await bytePieces(topology),
    carriers: shards.map((s) => ({ name: s.name, capacity: areRated ? (s.capacityMsPerSecond as number) : 1 })),
  };
}

async function loadPieces(catalog: Catalog, topology: Topology): Promise<Piece[]> {
  const store = new HistoryStore(catalog.pool);
  const to = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  const pieces: Piece[] = [];
  for (const keyspace of topology.keyspaces.values()) {
    const segments = await store.series(keyspace, 3600, to - WEEK_MS, to);
    for (const range of keyspace.ranges) {
      const inside = segmentsIn(range, segments);
      // Segments may be missing where nothing was ever counted.
      const parts = inside.length === 0 ? [{ lo: range.lo, hi: range.hi, load: new Float64Array() }] : inside;
      for (const { lo, hi, load } of parts)
        pieces.push({
          keyspace: keyspace.name,
          shard: range.shard,
          range: range.id,
          lo,
          hi,
          weight: meanOfKnown(load),
        });
    }
  }
  return pieces;
}

function meanOfKnown(values: Float64Array): number {
  const known = values.filter((value) => !Number.isNaN(value));
  return known.length === 0 ? 0 : known.reduce((sum, value) => sum + value, 0) / known.length;
}

async function bytePieces(topology: Topology): Promise<Piece[]> {
  const pieces: Piece[] = [];
  for (const keyspace of topology.keyspaces.values())
    for (const range of keyspace.ranges) {
      const sizes = await measureInterval(topology.shards.get(range.shard) as Shard, keyspace, range);
      const weight = sizes.reduce((sum, size) => sum + size.bytes, 0);
      pieces.push({ keyspace: keyspace.name, shard: range.shard, range: range.id, lo: range.lo, hi: range.hi, weight });
    }
  return pieces;
}
