import { setTimeout as delay } from 'node:timers/promises';
import { abortChange, approveChange, createChange } from '../../migrator/changes/change-requests.js';
import { loadChange } from '../../migrator/changes/change-row.js';
import { createMigration } from '../../migrator/migration-requests.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { joinKeyspaces, releaseTables, separateTables } from '../../topology/catalog/separate.js';
import { errorCode } from '../../topology/connection.js';
import { ConflictError, ForeshardError } from '../../topology/errors.js';
import type { RangeSpec, ReplicaTerms } from '../../topology/migration.js';
import type { MigrationControls } from '../../topology/migration-controls.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import type { Plan } from './kinds.js';

/** What is done to the map at once. */
type Regrouping = Extract<Plan, { as: 'separate' | 'join' }>;

const RETRY_MS = 200;
/** The catalog, or a shard that has to be asked, is not there for the moment. */
const OUTAGE = /^(08|57P0[123]|57014|53|55P03|40P01|E[A-Z]+$)/;

/** Tries until those that have to be asked are there. */
export async function persist<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      const said = (error as Error).message;
      const code = error instanceof ForeshardError ? error.sqlstate : errorCode(error);
      if (!OUTAGE.test(code) && !/^(Connection terminated|timeout|Client )/.test(said)) throw error;
      await delay(RETRY_MS);
    }
  }
}

/** Asks for something until somebody has heard of it. It may be too late for that, or have been heard of before (55000). */
export async function ask(work: () => Promise<unknown>): Promise<void> {
  await persist(async () => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ForeshardError) || error.sqlstate !== '55000') throw error;
    }
  });
}

/** Enters plans in the catalog, each once, also when it is not heard whether it was. */
export class Entry {
  readonly #catalog: Catalog;
  #n = 0;

  constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  /** Separates tables, or joins them again. */
  async regroup(plan: Regrouping): Promise<void> {
    const catalog = this.#catalog;
    await persist(async () => {
      const { keyspaces } = await catalog.loadTopology();
      const name = (plan.as === 'join' ? plan.keyspace : plan.separation.as) as KeyspaceName;
      if (keyspaces.has(name) === (plan.as === 'separate')) return; // a try before this one came through
      if (plan.as === 'separate') await separateTables(catalog, 'chaos', plan.separation);
      else if (plan.into === null) await releaseTables(catalog, 'chaos', name);
      else await joinKeyspaces(catalog, 'chaos', name, plan.into);
    });
  }

  /**
   * @param controls whether it goes to its flip by itself, and what becomes of transactions that are in its way
   * @returns the migrations; null when the map has changed since it was planned
   */
  async enter(
    plan: Exclude<Plan, Regrouping>,
    controls: Partial<MigrationControls>,
  ): Promise<readonly bigint[] | null> {
    if (plan.as === 'change') return this.#enterChange(plan, controls);
    if (plan.as === 'replica') return [await this.#enterMigration(plan.spec, controls, plan.terms)];
    const ids: bigint[] = [];
    for (const spec of plan.specs) ids.push(await this.#enterMigration(spec, controls));
    return ids;
  }

  #enterMigration(spec: RangeSpec, controls: Partial<MigrationControls>, replica?: ReplicaTerms): Promise<bigint> {
    const { pool } = this.#catalog;
    const actor = this.#name();
    return persist(async () => {
      const known = await this.#find(
        "SELECT migration_id AS id FROM foreshard.migration_event WHERE detail->>'by' = $1",
        actor,
      );
      if (known !== null) return known;
      const { keyspaces } = await this.#catalog.loadTopology();
      const terms = { actor, controls, ...(replica === undefined ? {} : { replica }) };
      return createMigration(pool, keyspaces.get(spec.keyspace) as Keyspace, spec, terms);
    });
  }

  async #enterChange(
    { kind, members }: Plan & { as: 'change' },
    controls: Partial<MigrationControls>,
  ): Promise<readonly bigint[] | null> {
    const { pool } = this.#catalog;
    const actor = this.#name();
    const id = await persist(async () => {
      const known = await this.#find('SELECT id FROM foreshard.change WHERE created_by = $1', actor);
      if (known !== null) return known;
      const concurrency = 1 + (this.#n % 3);
      const topology = await this.#catalog.loadTopology();
      return createChange(pool, topology, { kind, request: {}, members, concurrency }, actor);
    });
    const change = await persist(async () => {
      try {
        return await approveChange(pool, id, { actor, controls });
      } catch (error) {
        if (!(error instanceof ConflictError)) throw error;
        return loadChange(pool, id);
      }
    });
    if (change.startedBy !== null) return change.members.map((member) => member.id);
    await ask(() => abortChange(pool, id, actor));
    return null;
  }

  #name(): string {
    this.#n += 1;
    return `chaos ${this.#n}`;
  }

  async #find(sql: string, actor: string): Promise<bigint | null> {
    const { rows } = await this.#catalog.pool.query<{ id: string }>(sql, [actor]);
    return rows[0] === undefined ? null : BigInt(rows[0].id);
  }
}
