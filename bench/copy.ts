/**
 * What a migration costs: how fast it copies beside a bare subscription, how fast it compares, and what is left for others meanwhile.
 *
 * Each round has fresh databases and does one after the other:
 * - bare: a publication and a subscription of the rows that move, as a person would type them; tables with their primary keys only;
 * - ours: a migration of the same rows without a throttle, to its end; then both sides are compared once more, with nothing else going on;
 * - impact: pgbench (TPC-B-like, half of the tenants moving) at the source, as fast as it goes, before and while a migration under the default
 *   throttle goes through its phases; the removal of rows with a load on the tenants that stay, against the same load after it. Beside it, what a
 *   bare subscription takes that only follows: no throttle makes that less.
 *
 * Source, destination and load share the machine, so that all processor time a migration takes anywhere is missing in the load: "processors taken" is that of both
 * servers beyond what so many transactions take without a migration. It depends far less than throughput does on what else the machine has to do. The source's
 * processor time for each transaction is what a source on a machine of its own would see.
 *
 * Run: npx tsc && node dist/bench/copy.js [--rounds 3] [--rows 1000000] [--only copy|impact] [--rate 2MB] [--clients 8] [--json FILE]
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import yargs from 'yargs';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { lastComparison } from '../migrator/comparison.js';
import { createMigration, requestComparison, requestFlip } from '../migrator/migration-requests.js';
import { loadMigration, type MigrationRow } from '../migrator/migration-row.js';
import { Migrator } from '../migrator/migrator.js';
import { DEFAULT_OPTIONS } from '../migrator/options.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import type { ThrottleLimits } from '../topology/migration-controls.js';
import type { Keyspace, KeyspaceName, ShardName } from '../topology/topology.js';
import { PgbenchLoad } from './copy/pgbench-load.js';
import { type Phase, PhaseLog, serverCpu } from './copy/phases.js';
import { CopySetting, connect, type Databases, MOVES_FROM, TENANTS } from './copy/setting.js';
import { spreadOf } from './results/statistics.js';
import { foreshardVersion, machine } from './suite/machine.js';
import { findProgram, versionOf } from './suite/programs.js';

const TARGETS = { copy: 0.8, rowsPerCoreSecond: 500_000, throughput: 0.9 };
const UNLIMITED: ThrottleLimits = { maxRate: null, maxLagMs: null, maxLatencyMs: null };
/** The table of orders has as many bytes for each row, and what moves of history a tenth of the rows. */
const ROW_BYTES = 120;
/** Rows of orders are made in such portions, so that each tenant has as many, and a whole tenth of them history. */
const PORTION = TENANTS * 10;
const WARM_MS = 2000;
const BASELINE_MS = 5000;
const FOLLOWING_MS = 4000;
/** What the load is told apart by. */
const BULK = ['copy', 'index build', 'catch-up', 'verification', 'following'] as const;

/** A migration of half of the tenants, with a migrator of its own. */
class Migration {
  readonly log: PhaseLog;
  readonly catalog: Catalog;
  readonly id: bigint;
  readonly #stop: AbortController;
  readonly #running: Promise<void>;

  private constructor(catalog: Catalog, id: bigint, log: PhaseLog, stop: AbortController, running: Promise<void>) {
    this.catalog = catalog;
    this.id = id;
    this.log = log;
    this.#stop = stop;
    this.#running = running;
  }

  /** It waits when it is ready. */
  static async start(catalog: Catalog, log: PhaseLog, throttle: ThrottleLimits): Promise<Migration> {
    const stop = new AbortController();
    const running = new Migrator({ catalog, logger: pino({ level: 'debug' }, log) }).run(stop.signal);
    const keyspace = (await catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
    const interval = { lo: [BigInt(MOVES_FROM)], hi: null };
    const shards = { from: 'source' as ShardName, to: 'destination' as ShardName };
    const id = await createMigration(
      catalog.pool,
      keyspace,
      { kind: 'move', keyspace: keyspace.name, ...interval, ...shards },
      { actor: 'bench', controls: { auto: false, throttle } },
    );
    return new Migration(catalog, id, log, stop, running);
  }

  async until(what: (row: MigrationRow) => boolean): Promise<MigrationRow> {
    for (;;) {
      const row = await loadMigration(this.catalog.pool, this.id);
      if (what(row)) return row;
      if (['failed', 'aborted', 'aborting'].includes(row.state))
        throw new Error(`the migration ${row.state}: ${row.error}`);
      await delay(50);
    }
  }

  async flip(): Promise<void> {
    await requestFlip(this.catalog.pool, this.id, 'bench');
    await this.until(({ state }) => state === 'done');
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}

type Figures = Record<string, number[]>;

function note(figures: Figures, name: string, value: number | null | undefined): void {
  if (value === null || value === undefined || !Number.isFinite(value)) return;
  figures[name] ??= [];
  figures[name].push(value);
}

interface Scene {
  readonly setting: CopySetting;
  readonly pids: [source: number, destination: number];
}

const moving = (rows: number) => (rows + rows / 10) / 2;
/** Of both servers, s. */
const cpuOf = (phase: Phase | undefined) => (phase?.sourceCpu ?? Number.NaN) + (phase?.destinationCpu ?? Number.NaN);
const seconds = (phase: Phase | undefined) => (phase === undefined ? null : (phase.to - phase.from) / 1000);

async function within<T>(setting: CopySetting, rows: number, work: (databases: Databases) => Promise<T>): Promise<T> {
  const databases = await setting.fresh(rows);
  try {
    return await work(databases);
  } finally {
    await databases.drop();
  }
}

/** @returns rows a second */
async function bare({ setting, pids }: Scene, rows: number, figures: Figures): Promise<number> {
  return within(setting, rows, async (databases) => {
    const cpu = pids.map(serverCpu);
    const ms = await databases.subscribe();
    await databases.unsubscribe();
    noteCpu(figures, 'bare copy', pids, cpu, moving(rows));
    const rate = (moving(rows) * 1000) / ms;
    note(figures, 'bare copy, k rows/s', rate / 1000);
    return rate;
  });
}

function noteCpu(
  figures: Figures,
  name: string,
  pids: readonly number[],
  before: readonly (number | null)[],
  rows: number,
): void {
  const sum = (values: readonly (number | null)[]) => values.reduce<number>((n, v) => n + (v ?? Number.NaN), 0);
  note(figures, `${name}, k rows/s a core`, rows / (sum(pids.map(serverCpu)) - sum(before)) / 1000);
}

/** @returns rows a second */
async function ours({ setting, pids }: Scene, rows: number, figures: Figures): Promise<number> {
  return within(setting, rows, async (databases) => {
    const log = new PhaseLog(pids);
    const migration = await Migration.start(await databases.catalog(), log, UNLIMITED);
    try {
      await migration.until(({ state }) => state === 'ready');
      const cpu = pids.map(serverCpu);
      const request = await requestComparison(migration.catalog.pool, migration.id, 'bench');
      const row = await migration.until((r) => lastComparison(r)?.request === request);
      noteCpu(figures, 'verification alone', pids, cpu, moving(rows));
      const ms = lastComparison(row)?.tables.reduce((n, t) => n + t.ms, 0);
      note(figures, 'verification alone, k rows/s', moving(rows) / (ms ?? Number.NaN));
      await migration.flip();
    } finally {
      await migration.stop();
    }
    const phases = log.phases();
    const { progress } = await loadMigration(migration.catalog.pool, migration.id);
    for (const name of ['copy', 'verification', 'removal'])
      note(
        figures,
        `ours: ${name}, ms of processor time a MB`,
        (cpuOf(phases.get(name)) * 1e9) / (progress.bytesTotal ?? 0),
      );
    for (const name of ['preparation', 'copy', 'index build', 'catch-up', 'verification', 'flip', 'removal'])
      note(figures, `ours: ${name}, s`, seconds(phases.get(name)));
    const [copy, following] = [phases.get('copy'), phases.get('following')];
    const rate = moving(rows) / (seconds(copy) ?? Number.NaN);
    note(figures, 'our copy, k rows/s', rate / 1000);
    note(figures, 'our copy, k rows/s a core', moving(rows) / cpuOf(copy) / 1000);
    note(
      figures,
      'ours: until ready, s',
      ((following?.from ?? Number.NaN) - (phases.get('preparation')?.from ?? 0)) / 1000,
    );
    return rate;
  });
}

interface ImpactOptions {
  readonly pgbench: string;
  readonly folder: string;
  readonly clients: number;
  readonly throttle: ThrottleLimits;
}

async function impact({ setting, pids }: Scene, rows: number, o: ImpactOptions, figures: Figures): Promise<void> {
  await within(setting, rows, async (databases) => {
    const catalog = await databases.catalog();
    const log = new PhaseLog(pids);
    const common = { ...o, url: databases.sourceUrl, orders: rows / TENANTS };
    let load = new PgbenchLoad({ ...common, tenants: [1, TENANTS] });
    let migration: Migration | null = null;
    try {
      await delay(WARM_MS);
      log.mark('before');
      await delay(BASELINE_MS);
      migration = await Migration.start(catalog, log, o.throttle);
      await migration.until(({ state }) => state === 'ready');
      await delay(FOLLOWING_MS);
      log.mark('end');
      await load.stop();
      const phases = log.phases();
      tellImpact(figures, load, phases, 'before', BULK);
      load = new PgbenchLoad({ ...common, tenants: [1, MOVES_FROM - 1] });
      await delay(WARM_MS);
      await migration.flip();
      await delay(BASELINE_MS);
      log.mark('after the end');
      await load.stop();
      tellImpact(figures, load, log.phases(), 'after it', ['removal']);
    } finally {
      await load.end();
      await migration?.stop();
    }
  });
}

/** What a subscription takes that a person would type, once it only follows. */
async function bareImpact({ setting, pids }: Scene, rows: number, o: ImpactOptions, figures: Figures): Promise<void> {
  await within(setting, rows, async (databases) => {
    const log = new PhaseLog(pids);
    const load = new PgbenchLoad({ ...o, url: databases.sourceUrl, orders: rows / TENANTS, tenants: [1, TENANTS] });
    try {
      await delay(WARM_MS);
      log.mark('bare: before');
      await delay(BASELINE_MS);
      log.mark('bare: copy');
      await databases.subscribe();
      log.mark('bare: following');
      await delay(FOLLOWING_MS);
      log.mark('end');
      await load.stop();
      tellImpact(figures, load, log.phases(), 'bare: before', ['bare: following']);
    } finally {
      await load.end();
      await databases.unsubscribe();
    }
  });
}

/** Against what the same load did without a migration. */
function tellImpact(
  figures: Figures,
  load: PgbenchLoad,
  phases: ReadonlyMap<string, Phase>,
  without: string,
  names: readonly string[],
): void {
  const perTransaction = (phase: Phase | undefined, transactions: number) =>
    ((phase?.sourceCpu ?? Number.NaN) * 1e6) / transactions;
  const baseline = phases.get(without);
  const alone = baseline === undefined ? null : load.figures(baseline);
  if (alone === null) return;
  const aloneCpu = perTransaction(baseline, alone.tps * alone.seconds);
  note(figures, `${without}: transactions/s`, alone.tps);
  note(figures, `${without}: p99, ms`, alone.p99);
  note(figures, `${without}: source, µs a transaction`, aloneCpu);
  for (const name of names) {
    const phase = phases.get(name);
    const then = phase === undefined ? null : load.figures(phase);
    note(figures, `${name}: s`, seconds(phase));
    if (then === null) continue;
    note(figures, `${name}: throughput`, then.tps / alone.tps);
    note(figures, `${name}: p99, ms`, then.p99);
    note(figures, `${name}: source, time a transaction`, perTransaction(phase, then.tps * then.seconds) / aloneCpu);
    const taken = cpuOf(phase) / (seconds(phase) ?? Number.NaN) - (then.tps * aloneCpu) / 1e6;
    note(figures, `${name}: processors taken`, taken);
  }
}

function print(figures: Figures): void {
  const width = Math.max(...Object.keys(figures).map((name) => name.length)) + 2;
  console.log(`${''.padEnd(width)}${['median', 'lowest', 'highest'].map((h) => h.padStart(10)).join('')}`);
  for (const [name, values] of Object.entries(figures)) {
    const spread = spreadOf(values);
    if (spread === null) continue;
    const digits = spread.median < 10 ? 2 : spread.median < 1000 ? 1 : 0;
    const columns = [spread.median, spread.low, spread.high].map((n) => n.toFixed(digits).padStart(10));
    console.log(`${name.padEnd(width)}${columns.join('')}`);
  }
}

function verdicts(figures: Figures): Map<string, boolean> {
  const met = new Map<string, boolean>();
  const median = (name: string) => spreadOf(figures[name] ?? [])?.median;
  const copy = median('copy, ours to bare');
  if (copy !== undefined) met.set(`copy ≥ ${TARGETS.copy * 100} % of a bare subscription's`, copy >= TARGETS.copy);
  const verification = median('verification alone, k rows/s a core');
  if (verification !== undefined)
    met.set(
      `verification ≥ ${TARGETS.rowsPerCoreSecond / 1000} k rows/s a core`,
      verification * 1000 >= TARGETS.rowsPerCoreSecond,
    );
  for (const name of [...BULK, 'removal']) {
    const throughput = median(`${name}: throughput`);
    if (throughput !== undefined)
      met.set(`${name}: ≥ ${TARGETS.throughput * 100} % of the throughput`, throughput >= TARGETS.throughput);
  }
  return met;
}

const RATE = /^(\d+(?:\.\d+)?)(k|M)?B$/;

function parseRate(text: string): number | null {
  if (text === 'off') return null;
  const [, number, unit] = RATE.exec(text) ?? [];
  if (number === undefined) throw new Error(`"${text}" is not a rate such as 2MB, or off`);
  return Number(number) * (unit === 'M' ? 1e6 : unit === 'k' ? 1e3 : 1);
}

async function run(): Promise<boolean> {
  const o = await yargs(process.argv.slice(2))
    .usage(
      'What a migration costs: its copy beside a bare subscription, its comparison, and what is left for a load meanwhile',
    )
    .option('rounds', { type: 'number', default: 3 })
    .option('rows', { type: 'number', default: 1_000_000, describe: 'Rows of the larger table; half of them move' })
    .option('only', { choices: ['copy', 'impact'] as const, describe: 'One part of it (default: both)' })
    .option('rate', { type: 'string', describe: 'Throttle of the impact, such as 4MB, or off (default: the default)' })
    .option('seconds', { type: 'number', default: 12, describe: 'How long the copy under the throttle is to take' })
    .option('clients', { type: 'number', default: 8, describe: 'Of the load' })
    .option('bin', { type: 'string', describe: "Directory of other servers' programs" })
    .option('json', { type: 'string', describe: 'File for the figures' })
    .strict()
    .version(false)
    .parseAsync();
  const throttle = { ...DEFAULT_OPTIONS.throttle, ...(o.rate === undefined ? {} : { maxRate: parseRate(o.rate) }) };
  const pgbench = findProgram('pgbench');
  if (pgbench === null && o.only !== 'copy') console.log('there is no pgbench: the impact is not measured');
  const folder = mkdtempSync(join(tmpdir(), 'foreshard-bench-'));
  const figures: Figures = {};
  let version = '';
  const options = o.bin === undefined ? {} : { binDir: o.bin };
  const clusters = await Promise.all([EmbeddedCluster.start(options), EmbeddedCluster.start(options)]);
  try {
    const [source, destination] = clusters;
    const scene: Scene = { setting: new CopySetting(source, destination), pids: [source.pid, destination.pid] };
    const client = await connect(source.url());
    version = (await client.query<{ server_version: string }>('SHOW server_version')).rows[0]?.server_version ?? '';
    await client.end();
    const inPortions = (rows: number) => Math.max(1, Math.round(rows / PORTION)) * PORTION;
    const rows = inPortions(o.rows);
    const paced = throttle.maxRate === null ? rows : inPortions((2 * throttle.maxRate * o.seconds) / ROW_BYTES / 1.1);
    for (let round = 0; round < o.rounds; round++) {
      if (o.only !== 'impact') {
        const parts = [() => bare(scene, rows, figures), () => ours(scene, rows, figures)];
        // Whoever comes first finds other caches.
        const isTurned = round % 2 === 1;
        const first = await parts[isTurned ? 1 : 0]?.();
        const second = await parts[isTurned ? 0 : 1]?.();
        const [b, a] = isTurned ? [second, first] : [first, second];
        note(figures, 'copy, ours to bare', (a ?? Number.NaN) / (b ?? Number.NaN));
      }
      if (o.only === 'copy' || pgbench === null) continue;
      const given = { pgbench, folder, clients: o.clients, throttle };
      await impact(scene, paced, given, figures);
      await bareImpact(scene, paced, given, figures);
    }
  } finally {
    await Promise.all(clusters.map((cluster) => cluster.stop()));
    rmSync(folder, { recursive: true, force: true });
  }
  const on = machine();
  const tools = `PostgreSQL ${version}${pgbench === null ? '' : `, pgbench ${versionOf(pgbench)}`}`;
  console.log(
    `${on.processor}, ${on.cores} processors, ${on.system}, Node ${on.node}, ${tools}, Foreshard ${foreshardVersion()};`,
  );
  const limits = throttle.maxRate === null ? 'without a rate' : `at ${throttle.maxRate / 1e6} MB/s`;
  console.log(`${o.rounds} rounds; ${o.rows} rows; impact ${limits} with ${o.clients} clients\n`);
  print(figures);
  console.log('');
  const met = verdicts(figures);
  for (const [what, is] of met) console.log(`${is ? 'met' : 'MISSED'}: ${what}`);
  if (o.json !== undefined)
    writeFileSync(
      o.json,
      `${JSON.stringify({ machine: on, version: foreshardVersion(), postgresql: version, options: o, figures }, null, 1)}\n`,
    );
  return [...met.values()].every((is) => is);
}

process.exitCode = (await run()) ? 0 : 1;
