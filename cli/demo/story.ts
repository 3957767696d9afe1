import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { loadMigration, type MigrationRow, showMigration } from '../../migrator/migration-row.js';
import type { SavedReport } from '../../planner/plan-report.js';
import { Planner } from '../../planner/planner.js';
import { renderHtml } from '../../planner/report/html.js';
import { renderText } from '../../planner/report/text.js';
import { contains } from '../../topology/key.js';
import { positionFromJson } from '../../topology/key-codec.js';
import { type Keyspace, type KeyspaceName, rangeOf } from '../../topology/topology.js';
import { actor } from '../command.js';
import { defaultConfig } from '../config.js';
import { EXIT } from '../failure.js';
import { createLogger } from '../logger.js';
import type { Part } from '../parts.js';
import { progressLine } from '../progress-line.js';
import { startServices } from '../serve.js';
import { audit, type ShardContents } from './audit.js';
import type { DemoOptions } from './demo.js';
import { auditLines, errorLines, isClean, type MoveTimes, shardTable, waitTable } from './figures.js';
import { CAPACITY_MS_PER_SECOND, demoTrace, importTrace, liveShape, ordersByTenant } from './history.js';
import { inspectShard } from './inspect.js';
import { readJournal } from './journal.js';
import { LoadChild } from './load-child.js';
import type { Scope } from './scope.js';
import type { Screen } from './screen.js';
import { COUNTER_STEP_MS, measuredLoad, type ShardLoad } from './shard-load.js';
import { createShop, fillShop } from './shop.js';
import { declareShop, KEYSPACE, type Stage, setStage } from './stage.js';

export interface Telling {
  readonly options: DemoOptions;
  readonly screen: Screen;
  readonly scope: Scope;
  readonly signal: AbortSignal;
}

const LOAD_CONNECTIONS = 8;
const FILL_CONNECTIONS = 3;
const POLL_MS = 200;

/** The proxy's counters of a step are in the catalog this long after its end. */
const COUNTED_MS = 1500;

/** When a whole step of the proxy's counters lies behind a load that runs since `from`. */
function wholeStepAfter(from: number): number {
  return (Math.ceil(from / COUNTER_STEP_MS) + 1) * COUNTER_STEP_MS + COUNTED_MS;
}

const n = (value: number): string => Math.round(value).toLocaleString('en');

/**
 * The demo from the first server to the last figure.
 * @returns the exit code for `--once`
 */
export async function tellStory(telling: Telling): Promise<number> {
  const { options, screen, signal } = telling;
  const began = Date.now();
  const trace = demoTrace();

  screen.section('Three PostgreSQL servers, one of them with all the data');
  screen.live('starting servers, catalog and proxy…');
  const stage = await setStage(options, telling.scope);
  for (const { name, url } of stage.servers.shards) screen.settle(`${name}   127.0.0.1:${new URL(url).port}`);
  screen.line(`proxy  127.0.0.1:${stage.port}, where the application connects`);

  await serve(telling, stage, ['migrator']);

  const orders = ordersByTenant(trace, options.tenants, options.rows);
  const keyspace = await openShop(telling, stage, orders);
  const before = await inspectAll(stage);

  screen.section('Live load');
  const journalPath = join(stage.dir, 'journal.ndjson');
  const load = await telling.scope.acquire(
    'load',
    () =>
      LoadChild.start({
        url: stage.url,
        connections: LOAD_CONNECTIONS,
        tenants: options.tenants,
        loadedOrders: orders,
        shape: liveShape(trace, began, options.statementsPerSecond),
        journalPath,
      }),
    (started) => started.kill(),
  );
  const loadStarted = Date.now();
  await watchLoad(telling, load, wholeStepAfter(loadStarted));

  screen.section('Eight weeks of history, and what comes next');
  const imported = await importTrace(stage.catalog, keyspace, trace, options.tenants, began);
  screen.line(
    `imported ${imported.weeks} weeks of a real trace (${trace.keys.length} keys, ${n(imported.samples)} hourly samples of ${imported.segments} segments), its end moved to now`,
  );
  screen.line(
    `s1 carries ${n(imported.presentMsPerSecond)} ms of busy backend per second now; its capacity is ${n(CAPACITY_MS_PER_SECOND)}`,
  );
  screen.live('forecasting…');
  // The clock of the history: an hour that the live load has only just begun would look like a night.
  const planner = new Planner(stage.catalog, { now: () => began });
  const report = await planner.plan();
  screen.settle();
  screen.line();
  screen.line(renderText(report, { color: screen.color, width: screen.width }));
  await writeReport(telling, report);
  if (report.proposal === null || report.plan === null) {
    screen.line('the planner proposes nothing, so the story ends here');
    await load.stop();
    return await stayUp(telling, stage, EXIT.failed);
  }

  screen.section('Approval');
  const planId = BigInt(report.plan.id);
  if (!(options.yes || (await screen.confirm(`Carry out plan ${planId}?`, signal)))) {
    await planner.plans.reject(planId, actor());
    screen.line(`plan ${planId} is rejected; nothing was changed`);
    await load.stop();
    return await stayUp(telling, stage, EXIT.ok);
  }
  const approvedAt = Date.now();
  const migrationId = await planner.plans.approve(planId, actor(), {
    // Nobody waits for a demo that spares its servers.
    throttle: { maxRate: null },
  });
  screen.line(`plan ${planId} is approved by ${options.yes ? '--yes' : actor()}; migration ${migrationId} begins`);

  screen.section('The move, under load');
  const migration = await watchMove(telling, stage, load, migrationId);
  if (migration.state !== 'done') {
    screen.line(`migration ${migrationId} ended ${migration.state}: ${migration.error ?? 'no reason given'}`);
    await load.stop();
    return await stayUp(telling, stage, EXIT.failed);
  }
  const doneAt = Date.now();
  await watchLoad(telling, load, wholeStepAfter(doneAt));
  const result = await load.stop();
  const loadStopped = Date.now();

  screen.section('Audit');
  screen.live('comparing every acknowledged write with the servers’ own rows…');
  const topology = await stage.catalog.loadTopology();
  const after = topology.keyspaces.get(KEYSPACE as KeyspaceName) as Keyspace;
  const contents = await inspectAll(stage);
  const verdict = await audit({
    journal: readJournal(journalPath),
    before: before[0] as ShardContents,
    shards: contents,
    owner: (tenant) => rangeOf(after, [BigInt(tenant)]).shard,
  });
  screen.settle();
  screen.line(auditLines(verdict, result).join('\n'));
  screen.line(errorLines(result).join('\n'));

  screen.section('Figures');
  const { events } = await showMigration(stage.catalog.pool, migrationId);
  const moment = (state: string): number => events.findLast((e) => e.state === state)?.at.getTime() ?? Number.NaN;
  const times: MoveTimes = {
    loadStarted,
    moveStarted: approvedAt,
    fencing: moment('fencing'),
    flipped: moment('flipped'),
    loadStopped,
  };
  const moved = movedInterval(report, keyspace);
  screen.line(waitTable(result, times, (tenant) => contains(moved, [BigInt(tenant)])));
  screen.line();
  const loads = async (owned: Keyspace, from: number, to: number): Promise<ReadonlyMap<string, ShardLoad> | null> =>
    await measuredLoad(stage.catalog.pool, owned, from, to);
  screen.line(
    shardTable(
      { load: await loads(keyspace, loadStarted, approvedAt), contents: before },
      { load: await loads(after, doneAt, loadStopped), contents },
    ),
  );
  const rowsMoved = migration.progress.rowsCopied ?? 0;
  screen.line();
  screen.line(
    `${n(rowsMoved)} rows moved; clients of the range were held for ${(migration.progress.pauseMs ?? Number.NaN).toFixed(0)} ms; ${((Date.now() - began) / 1000).toFixed(0)} s in all`,
  );
  const code = isClean(verdict, result) && result.errors === 0 ? EXIT.ok : EXIT.failed;
  if (options.keep) screen.line(`the servers' data is kept in ${stage.dir}`);
  return await stayUp(telling, stage, code);
}

/** What comes after the story, however it ended, when the demo is to go on: everything is there to be used. */
async function stayUp(telling: Telling, stage: Stage, code: number): Promise<number> {
  if (!telling.options.once) {
    await serve(telling, stage, ['planner']);
    sayHowToConnect(telling.screen, stage);
  }
  return code;
}

/** Parts of Foreshard that run in this process, as `foreshard serve` runs them. */
async function serve({ scope }: Telling, { servers }: Stage, parts: readonly Part[]): Promise<void> {
  await scope.acquire(
    parts.join(' and '),
    () => startServices(defaultConfig(servers.catalogUrl), { only: parts, logger: createLogger('error') }),
    (services) => services.stop(),
  );
}

/** The shop as any application would make it, through the proxy; then it is declared as sharded. */
async function openShop(telling: Telling, stage: Stage, orders: readonly number[]): Promise<Keyspace> {
  const { screen, scope, options } = telling;
  screen.section('A shop with many tenants');
  const pool = await scope.acquire(
    'connections that fill the shop',
    async () => new pg.Pool({ connectionString: stage.url, max: FILL_CONNECTIONS }),
    async (made) => {
      // Statements under way would be waited for; on an interruption the servers are about to stop anyway.
      if (!made.ended) await Promise.race([made.end(), delay(500)]);
    },
  );
  pool.on('error', () => undefined);
  // On an interruption the proxy goes while connections are in use; their next statement says so.
  pool.on('connect', (client) => client.on('error', () => undefined));
  const started = Date.now();
  await createShop(pool);
  const rows = await fillShop(
    pool,
    { tenants: options.tenants, ordersOf: (tenant) => orders[tenant] as number },
    (done) =>
      screen.live(
        `loading through the proxy: ${n(done)} rows, ${n((done * 1000) / (Date.now() - started))} rows/s`,
        'loading through the proxy…',
      ),
  );
  await pool.query('ANALYZE');
  await pool.end();
  screen.settle(
    `${n(rows)} rows of ${options.tenants} tenants loaded through the proxy in ${((Date.now() - started) / 1000).toFixed(1)} s`,
  );
  await declareShop(stage.registry);
  const topology = await stage.catalog.loadTopology();
  screen.line(
    'tenants, orders and order_items are sharded by tenant, countries is a reference table; one range, all of it on s1',
  );
  return topology.keyspaces.get(KEYSPACE as KeyspaceName) as Keyspace;
}

async function writeReport({ options, screen }: Telling, report: SavedReport): Promise<void> {
  const path = resolve(options.reportPath);
  try {
    await writeFile(path, renderHtml(report));
    screen.line(`the same with plots: ${path}`);
  } catch (error) {
    // A directory that cannot be written to is no reason to end the story.
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    screen.line(`the page with plots could not be written to ${path} (${code}); choose another place with --report`);
  }
}

async function watchLoad({ screen, signal }: Telling, load: LoadChild, until: number): Promise<void> {
  while (Date.now() < until && !signal.aborted) {
    screen.live(loadLine(load), 'reads and writes run through the proxy…');
    await delay(POLL_MS);
  }
  screen.settle(loadLine(load));
}

function loadLine(load: LoadChild): string {
  const { perSecond, reads, writes, errors } = load.latest;
  return `${n(perSecond)} statements/s · ${n(reads)} reads · ${n(writes)} writes acknowledged · ${errors} errors`;
}

/** Shows the migration until it is at rest, with the load beside it. */
async function watchMove(
  { screen, signal }: Telling,
  stage: Stage,
  load: LoadChild,
  id: bigint,
): Promise<MigrationRow> {
  let state = '';
  let told = '';
  let toldAt = 0;
  for (;;) {
    const migration = await loadMigration(stage.catalog.pool, id);
    const line = progressLine(migration);
    // Where lines stay, one per phase and second is enough.
    if (migration.state !== state || Date.now() - toldAt >= 1000) {
      told = line;
      toldAt = Date.now();
    }
    if (state !== '' && migration.state !== state) screen.settle();
    state = migration.state;
    screen.live(`${line} · load ${n(load.latest.perSecond)}/s, ${load.latest.errors} errors`, told);
    if (state === 'done' || state === 'aborted' || state === 'failed' || signal.aborted) {
      screen.settle();
      return migration;
    }
    await delay(POLL_MS);
  }
}

function movedInterval(report: SavedReport, keyspace: Keyspace) {
  const spec = report.proposal?.spec;
  return { lo: positionFromJson(keyspace, spec?.lo ?? null), hi: positionFromJson(keyspace, spec?.hi ?? null) };
}

async function inspectAll(stage: Stage): Promise<ShardContents[]> {
  return await Promise.all(
    stage.servers.shards.map(async ({ name, url }) => {
      const client = new pg.Client({ connectionString: url });
      client.on('error', () => undefined); // the statement under way is told
      await client.connect();
      try {
        return await inspectShard(client, name);
      } finally {
        await client.end();
      }
    }),
  );
}

function sayHowToConnect(screen: Screen, stage: Stage): void {
  screen.section('Over to you');
  screen.line('everything stays up; Ctrl-C stops it and leaves nothing. Connect as the application does:');
  screen.line(`psql ${stage.url}`);
  screen.line('or look at what Foreshard knows:');
  screen.line(`npx foreshard topology show --catalog ${stage.servers.catalogUrl}`);
}
