import type { Catalog } from '../topology/catalog/catalog.js';
import { redactUrl } from '../topology/connection.js';
import type { MigrationSpec, MigrationState, ReplicaTerms } from '../topology/migration.js';
import { DEFAULT_CONTROLS } from '../topology/migration-controls.js';
import { type Topology, tableId } from '../topology/topology.js';
import type { Action, CatalogStatement } from './action.js';
import { withLiterals } from './catalog-message.js';
import { STEPS } from './driver.js';
import type { Executor } from './executor.js';
import { type HalvesWork, openSites, sitesOf } from './halves.js';
import { endHold } from './hold-end.js';
import type { CleanupRecord, CleanupSpec, Facts, MigrationRow, StoredMove } from './migration-row.js';
import type { StateChange } from './migration-store.js';
import { type Move, movingTables, resolveTarget, storedIn } from './move.js';
import { DEFAULT_OPTIONS, type MigratorOptions } from './options.js';
import { preflight } from './preflight.js';
import type { Finding } from './preflight-finding.js';
import { ShardSession } from './shard-session.js';
import { SILENT } from './step-log.js';
import { CATALOG_STEPS, type CatalogOnly } from './steps/catalog-only.js';
import { halvesStep } from './steps/halves.js';
import { PreflightRefusal } from './steps/prepare.js';

/** One line of what a migration would do. */
export interface DryRunStep {
  readonly state: MigrationState;
  readonly kind: 'act' | 'wait' | 'commit';
  readonly on: string;
  readonly text: string;
  /** Without passwords. */
  readonly sql: readonly string[];
}

export interface DryRun {
  readonly findings: readonly Finding[];
  /** Empty when a finding is a blocker. */
  readonly steps: readonly DryRunStep[];
}

/**
 * Walks the very steps of a real migration with an executor that notes what each would do. Reads both shards, changes nothing.
 * The object names end in 0, where the real ones have the migration's id.
 * @param options those of the migrator that will carry it out
 * @param topology as it will be when the migration begins; default: as it is
 * @param replica it is to rest as a replica, and then to be promoted
 * @param unmade tables, by `tableId`, that are not there before other migrations of its change have made them: of a move of such a table it is only looked
 *   whether the servers, and the other tables, are ready for it, and no step is shown
 */
export async function dryRun(
  catalog: Catalog,
  spec: MigrationSpec,
  options: Partial<MigratorOptions> = {},
  topology?: Topology,
  replica: ReplicaTerms | null = null,
  unmade: ReadonlySet<string> = new Set(),
): Promise<DryRun> {
  const then = topology ?? (await catalog.loadTopology());
  const stored = storedIn(then, spec);
  const row: MigrationRow = {
    id: 0n,
    planId: null,
    changeId: null,
    position: null,
    spec: stored,
    state: 'approved',
    generation: 0n,
    facts: {},
    progress: {},
    abortRequested: false,
    paused: false,
    requested: null,
    controls: DEFAULT_CONTROLS,
    replica,
    error: null,
    createdAt: new Date(),
    updatedAt: new Date(),
  };
  try {
    return stored.kind === 'move'
      ? await dryMove(catalog, row, stored, { ...DEFAULT_OPTIONS, ...options }, then, unmade)
      : stored.kind === 'halve' || stored.kind === 'unite'
        ? await dryHalves(catalog, row, stored, { ...DEFAULT_OPTIONS, ...options }, then)
        : await dryCatalogOnly(catalog, row, stored, then);
  } catch (error) {
    if (!(error instanceof PreflightRefusal)) throw error;
    return { findings: error.findings, steps: [] };
  }
}

async function dryCatalogOnly(
  catalog: Catalog,
  row: MigrationRow,
  spec: CatalogOnly['spec'],
  topology: Topology,
): Promise<DryRun> {
  const exec = new DryExecutor(row, []);
  const c: CatalogOnly = { row, spec, exec, catalog, topology };
  for (;;) {
    const step = CATALOG_STEPS[c.row.state];
    if (step === undefined) return { findings: [], steps: exec.steps };
    await step(c);
  }
}

async function dryHalves(
  catalog: Catalog,
  row: MigrationRow,
  spec: HalvesWork['spec'],
  options: MigratorOptions,
  topology: Topology,
): Promise<DryRun> {
  const exec = new DryExecutor(row, []);
  const sites = await openSites(topology, sitesOf(topology, spec, row), null);
  const h: HalvesWork = { row, spec, exec, options, log: SILENT, catalog, topology, sites };
  try {
    for (;;) {
      const step = halvesStep(h);
      if (step === undefined) return { findings: (h.row.facts.warnings ?? []) as Finding[], steps: exec.steps };
      await step();
    }
  } finally {
    for (const session of sites.values()) await session.close();
  }
}

async function dryMove(
  catalog: Catalog,
  row: MigrationRow,
  spec: StoredMove,
  options: MigratorOptions,
  topology: Topology,
  unmade: ReadonlySet<string>,
): Promise<DryRun> {
  const meta = await catalog.pool.query<{ cluster_id: string }>('SELECT cluster_id FROM foreshard.meta');
  const target = resolveTarget(topology, row.id, meta.rows[0]?.cluster_id ?? '', spec);
  const source = await ShardSession.open(target.from, null);
  try {
    const destination = await ShardSession.open(target.to, null);
    const exec = new DryExecutor(row, [target.from.url, target.to.url]);
    const tables = movingTables(target, row);
    const there = tables.filter((table) => !unmade.has(tableId(table)));
    const m: Move = {
      row,
      exec,
      options,
      log: SILENT,
      catalog,
      topology,
      keyspace: target.keyspace,
      spec: target.spec,
      names: target.names,
      tables: there,
      source,
      destination,
      snapshot: null,
    };
    try {
      if (there.length < tables.length) return { findings: (await preflight(m, [])).findings, steps: [] };
      for (;;) {
        const step = STEPS[m.row.state];
        if (step === undefined) break;
        await step(m);
      }
    } finally {
      await destination.close();
    }
    return { findings: (m.row.facts.warnings ?? []) as Finding[], steps: exec.steps };
  } finally {
    await source.close();
  }
}

class DryExecutor implements Executor {
  readonly dry = true;
  readonly controls = DEFAULT_CONTROLS;
  readonly now = new Date();
  readonly steps: DryRunStep[] = [];
  readonly #urls: readonly string[];
  readonly #cleanup: CleanupRecord[] = [];
  readonly #done = new Set<bigint>();
  #row: MigrationRow;

  constructor(row: MigrationRow, urls: readonly string[]) {
    this.#row = row;
    this.#urls = urls;
  }

  async requested(): Promise<null> {
    return null;
  }

  async perform(action: Action): Promise<void> {
    for (const c of action.cleanup ?? []) await this.record(c);
    const sql = action.sql.map((s) => this.#urls.reduce((text, url) => text.replaceAll(url, redactUrl(url)), s));
    this.steps.push({
      state: this.#row.state,
      kind: 'act',
      on: typeof action.on === 'string' ? action.on : action.on.shard,
      text: action.text,
      sql,
    });
  }

  async record(cleanup: CleanupSpec): Promise<void> {
    this.#cleanup.push({ ...cleanup, id: BigInt(this.#cleanup.length), done: false });
  }

  async openCleanup(kind?: CleanupRecord['kind']): Promise<CleanupRecord[]> {
    return this.#cleanup.filter((c) => !this.#done.has(c.id) && (kind === undefined || c.kind === kind));
  }

  async markCleanupDone(record: CleanupRecord): Promise<void> {
    this.#done.add(record.id);
  }

  async wait(text: string): Promise<boolean> {
    this.steps.push({ state: this.#row.state, kind: 'wait', on: '', text, sql: [] });
    return true;
  }

  async transition(row: MigrationRow, to: MigrationState, change: StateChange = {}): Promise<MigrationRow> {
    this.#row = { ...row, state: to, facts: { ...row.facts, ...change.facts } };
    return this.#row;
  }

  async noteFacts(row: MigrationRow, facts: Facts): Promise<MigrationRow> {
    return { ...row, facts: { ...row.facts, ...facts } };
  }

  async foresee(): Promise<void> {}

  async inLease(): Promise<never> {
    throw new Error('a dry run changes nothing in the catalog');
  }

  async withdrawFlip(): Promise<void> {}

  async reload(): Promise<MigrationRow> {
    return this.#row;
  }

  async commit(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
  ): Promise<MigrationRow> {
    for (const { text, sql, values } of statements)
      this.steps.push({ state: row.state, kind: 'commit', on: 'catalog', text, sql: [withLiterals(sql, values)] });
    return this.transition(row, to, change);
  }

  async flip(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
  ): Promise<MigrationRow> {
    return this.commit(row, [...statements, endHold(row.id)], to, change);
  }

  async announceFlip(): Promise<void> {}

  async progress(): Promise<void> {}

  async rest(): Promise<number> {
    return 0;
  }

  check(): void {}

  at(): void {}
}
