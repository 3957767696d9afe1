/**
 * What clients feel of a flip, flip after flip: half of a table goes from one shard to the other and back while writers go on at a fixed rate
 * through three proxies, each a process of its own.
 *
 * - window: from when the fence is sent to the source until the flip is committed;
 * - pause: from when the proxies have been asked to hold until the new owner's gate is open;
 * - gap: from the last write of the interval that the old owner answered to the first that the new one did; of a row: the same for a row that is
 *   written again and again by one writer, whose own pace is a part of it;
 * - wait: the longest that any write took, of those that were under way between the hold and 100 ms after the flip; before: in as long a time
 *   just before, when rows have been copied and are compared: what is not the flip's doing.
 *
 * Run: npx tsc && node dist/bench/flip.js [--flips 40] [--rate 1500] [--writers 8] [--proxies 3] [--json FILE]
 */
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { pino } from 'pino';
import yargs from 'yargs';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { createMigration } from '../migrator/migration-requests.js';
import { loadMigration } from '../migrator/migration-row.js';
import { Migrator } from '../migrator/migrator.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { Registry } from '../topology/catalog/registry.js';
import type { Keyspace, KeyspaceName, ShardName } from '../topology/topology.js';
import { Child } from './child.js';
import {
  MOVES_FROM,
  MOVES_TO,
  nowMs,
  PASSWORD,
  PacedWriters,
  ROWS,
  TENANTS,
  USER,
  type Write,
  type WritersOrder,
  type WritersReport,
} from './flip/paced-writers.js';
import { newCatalog } from './new-catalog.js';
import { percentile } from './results/statistics.js';
import { foreshardVersion, machine } from './suite/machine.js';
import { startTrustingProxy } from './trusting-proxy.js';

/** ms. */
const TARGETS = { windowMedian: 10, waitMedian: 20, waitP99: 40 };
/** Flips that do not count: the compilers of all processes have done their work then. */
const WARM_FLIPS = 4;
/** How long after a flip waits count as its, ms. */
const AFTERWARDS_MS = 100;

/** As long a time before it is looked at as well; it ends this long before the hold, ms. */
const BEFORE_MS = 200;

/** Parts of a pause, as the migrator logs them, ms. */
type Parts = Readonly<Record<string, number>>;

interface Flip {
  readonly window: number;
  readonly pause: number;
  readonly gap: number;
  readonly rowGap: number;
  readonly wait: number;
  readonly waitBefore: number;
  readonly errors: number;
  readonly parts: Parts;
}

async function serve(catalogUrl: string, no: string): Promise<void> {
  const proxy = await startTrustingProxy(catalogUrl, {
    name: `proxy ${no}`,
    logLevel: 'warn',
    serverPasswords: new Map([[USER, PASSWORD]]),
  });
  process.on('disconnect', () => process.exit());
  process.send?.(proxy.port);
}

function write(): void {
  let writers: PacedWriters | null = null;
  process.on('disconnect', () => process.exit());
  process.on('message', (order: WritersOrder | 'report') => {
    if (order !== 'report') writers = new PacedWriters(order);
    process.send?.(order === 'report' && writers !== null ? writers.report() : {});
  });
}

/** Two servers, the catalog on the first. */
async function prepare(clusters: readonly EmbeddedCluster[]): Promise<Catalog> {
  const [first] = clusters as [EmbeddedCluster];
  for (const [i, cluster] of clusters.entries()) {
    const admin = new pg.Client({ connectionString: cluster.url('postgres') });
    await admin.connect();
    await admin.query('CREATE DATABASE shop');
    await admin.query(`CREATE ROLE ${USER} LOGIN SUPERUSER PASSWORD '${PASSWORD}'`);
    if (i === 0) await admin.query('CREATE DATABASE foreshard');
    await admin.end();
  }
  const client = new pg.Client({ connectionString: first.url('shop') });
  await client.connect();
  await client.query(
    'CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, n int NOT NULL, note text, PRIMARY KEY (tenant_id, id))',
  );
  await client.query(
    `INSERT INTO orders SELECT t, i, 0, repeat('x', 100) FROM generate_series(1, ${TENANTS}) t, generate_series(1, ${ROWS}) i`,
  );
  await client.end();
  const shards = clusters.map((cluster) => cluster.url('shop'));
  const catalog = await newCatalog(first.url('foreshard'), 'shop', shards);
  const registry = new Registry(catalog, 'bench');
  await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
  await registry.addTable({
    table: { schema: 'public', table: 'orders' },
    keyspace: 'main',
    keyColumns: ['tenant_id'],
  });
  return catalog;
}

/** The migrator's own word of each flip, with the time at which it came. */
class Told {
  at = 0;
  parts: Parts = {};

  /** For pino. */
  write(line: string): void {
    const entry = JSON.parse(line) as { msg: string; level: number; timings?: Parts };
    if (entry.level > 30) process.stderr.write(line);
    if (entry.timings === undefined) return;
    this.at = nowMs();
    this.parts = entry.timings;
  }
}

async function move(
  catalog: Catalog,
  [lo, hi]: readonly [number, number | null],
  from: string,
  to: string,
): Promise<void> {
  const topology = await catalog.loadTopology();
  const keyspace = topology.keyspaces.get('main' as KeyspaceName) as Keyspace;
  const bounds = { lo: [BigInt(lo)], hi: hi === null ? null : [BigInt(hi)] };
  const spec = { kind: 'move', keyspace: keyspace.name, ...bounds } as const;
  const id = await createMigration(
    catalog.pool,
    keyspace,
    { ...spec, from: from as ShardName, to: to as ShardName },
    { actor: 'bench' },
  );
  for (;;) {
    const { state, error } = await loadMigration(catalog.pool, id);
    if (state === 'done') return;
    if (state === 'failed' || state === 'aborted') throw new Error(`migration ${id} ${state}: ${error}`);
    await delay(100);
  }
}

/** @param at when the new owner's gate was open */
function flipOf(at: number, parts: Parts, { writes, errors }: WritersReport): Flip {
  const sum = (...names: string[]) => names.reduce((total, name) => total + (parts[name] ?? 0), 0);
  const pause = Object.values(parts).reduce((total, ms) => total + ms, 0);
  const heldAt = at - pause;
  const flippedAt = at - sum('open');
  const longest = (from: number, to: number) =>
    Math.max(...writes.filter((w) => w.answeredAt >= from && w.sentAt <= to).map((w) => w.answeredAt - w.sentAt));
  const moving = writes.filter((w) => w.moves);
  const owners = new Set(moving.map((w) => w.ownRow).filter((no) => no !== null));
  const gaps = [...owners].map((no) =>
    gapOf(
      moving.filter((w) => w.ownRow === no),
      flippedAt,
    ),
  );
  return {
    window: pause - sum('hold', 'open'),
    pause,
    gap: gapOf(moving, flippedAt),
    rowGap: Math.max(...gaps),
    wait: longest(heldAt, at + AFTERWARDS_MS),
    waitBefore: longest(heldAt - BEFORE_MS - pause - AFTERWARDS_MS, heldAt - BEFORE_MS),
    errors: errors.length,
    parts,
  };
}

/** From the last answer before to the first after. */
function gapOf(writes: readonly Write[], at: number): number {
  let last = Number.NEGATIVE_INFINITY;
  let first = Number.POSITIVE_INFINITY;
  for (const { answeredAt } of writes)
    if (answeredAt < at) last = Math.max(last, answeredAt);
    else first = Math.min(first, answeredAt);
  return first - last;
}

function tell(name: string, values: readonly number[]): { median: number; p90: number; p99: number; max: number } {
  const sorted = [...values].sort((a, b) => a - b);
  const figures = {
    min: percentile(sorted, 0),
    median: percentile(sorted, 0.5),
    p90: percentile(sorted, 0.9),
    p99: percentile(sorted, 0.99),
    max: percentile(sorted, 1),
  };
  const columns = Object.values(figures).map((ms) => ms.toFixed(1).padStart(9));
  console.log(`${name.padEnd(26)}${columns.join('')}`);
  return figures;
}

async function run(): Promise<boolean> {
  const o = await yargs(process.argv.slice(2))
    .option('flips', { type: 'number', default: 40 })
    .option('rate', { type: 'number', default: 1500, describe: 'Writes a second' })
    .option('writers', { type: 'number', default: 8 })
    .option('proxies', { type: 'number', default: 3 })
    .option('json', { type: 'string', describe: 'File for the figures' })
    .strict()
    .version(false)
    .parseAsync();
  const clusters = await Promise.all([EmbeddedCluster.start(), EmbeddedCluster.start()]);
  const helpers: Child[] = [];
  const helper = (...args: string[]) => {
    const started = new Child(import.meta.url, ...args);
    helpers.push(started);
    return started;
  };
  const flips: Flip[] = [];
  let first: Flip | null = null;
  let written = 0;
  let seconds = 0;
  const stop = new AbortController();
  let running: Promise<void> = Promise.resolve();
  let catalog: Catalog | null = null;
  const ended: string[] = [];
  try {
    catalog = await prepare(clusters);
    const ports: number[] = [];
    for (let no = 1; no <= o.proxies; no++)
      ports.push(await helper('serve', clusters[0].url('foreshard'), String(no)).next<number>());
    const writers = helper('write');
    await writers.ask({ ports, writers: o.writers, rate: o.rate } satisfies WritersOrder);
    const told = new Told();
    const migrator = new Migrator({ catalog, logger: pino({ level: 'info' }, told) });
    running = migrator.run(stop.signal);
    await move(catalog, [MOVES_TO, null], 's1', 's2');
    const names = ['s1', 's2'];
    let since = nowMs();
    for (let n = -WARM_FLIPS; n < o.flips; n++) {
      await move(catalog, [MOVES_FROM, MOVES_TO], names[0] as string, names[1] as string);
      names.reverse();
      await delay(Math.max(0, told.at + 2 * AFTERWARDS_MS - nowMs()));
      const report = await writers.ask<WritersReport>('report');
      ended.push(...report.errors);
      if (n === -WARM_FLIPS) first = flipOf(told.at, told.parts, report);
      if (n < 0) {
        since = nowMs();
        continue;
      }
      written += report.writes.length;
      flips.push(flipOf(told.at, told.parts, report));
    }
    seconds = (nowMs() - since) / 1000;
  } finally {
    stop.abort();
    await running;
    await Promise.all(helpers.map((h) => h.stop()));
    await catalog?.close();
    await Promise.all(clusters.map((cluster) => cluster.stop()));
  }
  const on = machine();
  const server = clusters.length;
  console.log(
    `${on.processor}, ${on.cores} processors, ${on.system}, Node ${on.node}, Foreshard ${foreshardVersion()}; ${server} servers, ${o.proxies} proxies,`,
  );
  console.log(
    `${o.writers} writers, ${(written / seconds).toFixed(0)} writes a second (${o.rate} asked for); ${flips.length} flips; ms\n`,
  );
  console.log(`${''.padEnd(26)}${['lowest', 'median', 'p90', 'p99', 'highest'].map((h) => h.padStart(9)).join('')}`);
  const window = tell(
    'window, fence to flip',
    flips.map((f) => f.window),
  );
  tell(
    'pause, hold to open',
    flips.map((f) => f.pause),
  );
  tell(
    'gap, any row',
    flips.map((f) => f.gap),
  );
  tell(
    'gap, one row (worst)',
    flips.map((f) => f.rowGap),
  );
  const wait = tell(
    'longest wait of a write',
    flips.map((f) => f.wait),
  );
  tell(
    '  and before the flip',
    flips.map((f) => f.waitBefore),
  );
  for (const part of Object.keys(flips[0]?.parts ?? {}))
    tell(
      `  ${part}`,
      flips.map((f) => f.parts[part] ?? 0),
    );
  if (first !== null)
    console.log(
      `\nthe first flip, which nothing has been warmed for: pause ${first.pause.toFixed(1)}, longest wait ${first.wait.toFixed(1)} ms`,
    );
  const verdicts = {
    [`window median ≤ ${TARGETS.windowMedian} ms`]: window.median <= TARGETS.windowMedian,
    [`wait median ≤ ${TARGETS.waitMedian} ms`]: wait.median <= TARGETS.waitMedian,
    [`wait p99 ≤ ${TARGETS.waitP99} ms`]: wait.p99 <= TARGETS.waitP99,
    'no errors of clients': ended.length === 0,
  };
  console.log('');
  for (const [what, met] of Object.entries(verdicts)) console.log(`${met ? 'met' : 'MISSED'}: ${what}`);
  if (ended.length > 0)
    console.log(`${ended.length} errors, among them: ${[...new Set(ended)].slice(0, 5).join('; ')}`);
  if (o.json !== undefined)
    writeFileSync(
      o.json,
      `${JSON.stringify({ machine: on, version: foreshardVersion(), options: o, flips }, null, 1)}\n`,
    );
  return Object.values(verdicts).every((met) => met);
}

const [, , role, ...rest] = process.argv;
if (role === 'serve') await serve(...(rest as [string, string]));
else if (role === 'write') write();
else process.exitCode = (await run()) ? 0 : 1;
