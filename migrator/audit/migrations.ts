import type { Catalog } from '../../topology/catalog/catalog.js';
import type { Interval } from '../../topology/key.js';
import type { Topology } from '../../topology/topology.js';
import { decodeSpec, listMigrations, type MigrationRow, OUT_OF_THE_WAY, RESTING_STATES } from '../migration-row.js';

/** What migrations under way have on the shards, and may have there. */
export class AtWork {
  readonly #rows: ReadonlyMap<string, MigrationRow>;
  readonly #topology: Topology;

  private constructor(rows: readonly MigrationRow[], topology: Topology) {
    this.#rows = new Map(rows.map((row) => [row.id.toString(), row]));
    this.#topology = topology;
  }

  static async load(catalog: Catalog, topology: Topology): Promise<AtWork> {
    return new AtWork(await listMigrations(catalog.pool), topology);
  }

  /** Whether the migration with this number has something to do yet, or keeps rows for a person to look at. */
  has(id: string): boolean {
    const row = this.#rows.get(id);
    return row !== undefined && isAtWork(row);
  }

  state(id: string): string {
    return this.#rows.get(id)?.state ?? 'unknown to the catalog';
  }

  /** Any in this keyspace. */
  any(keyspace: string): boolean {
    return [...this.#rows.values()].some((row) => row.spec.keyspace === keyspace && isAtWork(row));
  }

  /** Any that has to do with this shard. */
  onShard(shard: string): boolean {
    return [...this.#rows.values()].some(
      ({ spec, ...row }) =>
        spec.kind === 'move' && (spec.from === shard || spec.to === shard) && isAtWork({ spec, ...row }),
    );
  }

  /** Intervals of a keyspace of which a shard may have rows without owning them. */
  intervals(keyspace: string, shard: string): Interval[] {
    const found = this.#topology.keyspaces.get(keyspace as never);
    if (found === undefined) return [];
    return [...this.#rows.values()].filter(isAtWork).flatMap(({ spec }) => {
      if (spec.kind !== 'move' || spec.keyspace !== keyspace) return [];
      return spec.from === shard || spec.to === shard ? [decodeSpec(found, spec)] : [];
    });
  }
}

/** Whether a migration of the keyspace may be at work, asked in a transaction in which none can begin to be. */
export const NONE_AT_WORK = `SELECT NOT EXISTS (SELECT FROM foreshard.migration WHERE spec->>'keyspace' = $1
  AND (state NOT IN (${OUT_OF_THE_WAY}) OR (state = 'failed' AND facts ? 'flipEpoch'))) AS none`;

function isAtWork(row: MigrationRow): boolean {
  // One that has failed behind its flip keeps the rows at the source until somebody accepts that.
  return !RESTING_STATES.includes(row.state) || (row.state === 'failed' && row.facts.flipEpoch !== undefined);
}
