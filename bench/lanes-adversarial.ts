/**
 * What a statement that is fast by itself waits for others when some are as bad as can be, with `proxy.pool.lanes: auto` beside `off`: two
 * proxies of this build before one server, asked in turns. Of a thousand statements ten take 200 ms and ten answer 10 MB, mostly with the same
 * texts as fast ones; a table and a row are locked now and then, some clients read slowly, and some have their statements canceled. Each
 * answer is looked at: whether it belongs to its question, and whether an error was asked for.
 *
 * Each round has two parts: at a fixed rate of 60 % of what the proxy without lanes manages (the target is about this: who asks does not ask
 * less because the proxy is slow), and in a closed loop, in which the machine is full and most of what is waited for is the processor.
 * Run: npx tsc && node dist/bench/lanes-adversarial.js [--rounds 6] [--seconds 3] [--clients 32] [--rate N] [--only paced|closed]
 */
import { cpus } from 'node:os';
import pg from 'pg';
import yargs from 'yargs';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { amidst, type Havoc } from './adversarial/adversary.js';
import { type LoadOrder, type LoadReport, runLoad } from './adversarial/paced-load.js';
import { makeTables } from './adversarial/questions.js';
import { Child } from './child.js';
import { Histogram } from './load/histogram.js';
import { newCatalog } from './new-catalog.js';
import { ratioSpread, type Spread } from './results/statistics.js';
import { startTrustingProxy } from './trusting-proxy.js';

const TARGET = 1.5;
const SHARE_OF_CAPACITY = 0.6;
const WARM_SECONDS = 3;
const LANES = ['off', 'auto'] as const;
type LanesMode = (typeof LANES)[number];
const PARTS = ['paced', 'closed'] as const;
type Part = (typeof PARTS)[number];

/** What a proxy has done since it was started. */
interface Usage {
  readonly cpuMs: number;
  readonly reads: number;
  readonly late: number;
  readonly rescued: number;
}

async function serve(catalogUrl: string, lanes: LanesMode): Promise<void> {
  const proxy = await startTrustingProxy(catalogUrl, { name: `lanes-${lanes}`, logLevel: 'warn', pool: { lanes } });
  process.on('disconnect', () => process.exit());
  process.on('message', () => {
    const { user, system } = process.cpuUsage();
    const usage = { cpuMs: (user + system) / 1000, reads: 0, late: 0, rescued: 0 };
    for (const pool of proxy.pools.all) {
      const { reads, late, rescued } = proxy.pools.lanesOf(pool).totals;
      usage.reads += reads;
      usage.late += late;
      usage.rescued += rescued;
    }
    process.send?.(usage);
  });
  process.send?.(proxy.port);
}

async function load(): Promise<void> {
  process.on('disconnect', () => process.exit());
  process.on('message', (order: LoadOrder) => {
    runLoad(order).then(
      (report) => process.send?.(report),
      (error: Error) => process.send?.({ failed: error.message }),
    );
  });
}

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly clients: number;
  /** Statements a second; null: 60 % of what the proxy without lanes manages. */
  readonly rate: number | null;
  readonly parts: readonly Part[];
}

interface Cell {
  readonly lanes: LanesMode;
  readonly part: Part;
  readonly round: number;
  readonly report: LoadReport;
  readonly havoc: Havoc;
  /** In this cell. */
  readonly usage: Usage;
}

/** The server and both proxies, and who asks. */
class Scene {
  readonly #cluster: EmbeddedCluster;
  readonly #helpers: readonly Child[];
  readonly #proxies: Readonly<Record<LanesMode, { readonly helper: Child; readonly port: number }>>;
  readonly #load: Child;
  readonly #work: number;

  static async start(): Promise<Scene> {
    const cluster = await EmbeddedCluster.start();
    const helpers: Child[] = [];
    try {
      const work = await prepare(cluster);
      const helper = (...args: string[]) => {
        const started = new Child(import.meta.url, ...args);
        helpers.push(started);
        return started;
      };
      const proxy = async (lanes: LanesMode) => {
        const started = helper('serve', cluster.url('foreshard'), lanes);
        return { helper: started, port: await started.next<number>() };
      };
      const proxies = { off: await proxy('off'), auto: await proxy('auto') };
      return new Scene(cluster, helpers, proxies, helper('load'), work);
    } catch (error) {
      await end(cluster, helpers);
      throw error;
    }
  }

  private constructor(
    cluster: EmbeddedCluster,
    helpers: readonly Child[],
    proxies: Readonly<Record<LanesMode, { readonly helper: Child; readonly port: number }>>,
    load: Child,
    work: number,
  ) {
    this.#cluster = cluster;
    this.#helpers = helpers;
    this.#proxies = proxies;
    this.#load = load;
    this.#work = work;
  }

  async measure(
    what: Pick<Cell, 'lanes' | 'part' | 'round'>,
    order: Pick<LoadOrder, 'clients' | 'seconds' | 'rate'>,
  ): Promise<Cell> {
    const { helper, port } = this.#proxies[what.lanes];
    const seed = what.round + 1;
    const to = { port, work: this.#work };
    const adversity = {
      to,
      seed,
      through: `postgres://postgres@127.0.0.1:${port}/shop`,
      direct: this.#cluster.url('shop'),
    };
    const before = await helper.ask<Usage>({});
    const { result, havoc } = await amidst(adversity, () => this.#load.ask<LoadReport>({ ...order, to, seed }));
    const after = await helper.ask<Usage>({});
    const usage = {
      cpuMs: after.cpuMs - before.cpuMs,
      reads: after.reads - before.reads,
      late: after.late - before.late,
      rescued: after.rescued - before.rescued,
    };
    return { ...what, report: result, havoc, usage };
  }

  stop(): Promise<void> {
    return end(this.#cluster, this.#helpers);
  }
}

async function end(cluster: EmbeddedCluster, helpers: readonly Child[]): Promise<void> {
  await Promise.all(helpers.map((helper) => helper.stop()));
  await cluster.stop();
}

/** @returns what makes 200 ms of work; see makeTables */
async function prepare(cluster: EmbeddedCluster): Promise<number> {
  const admin = new pg.Client({ connectionString: cluster.url('postgres') });
  await admin.connect();
  await admin.query('CREATE DATABASE shop');
  await admin.query('CREATE DATABASE foreshard');
  await admin.end();
  const client = new pg.Client({ connectionString: cluster.url('shop') });
  await client.connect();
  const work = await makeTables(client);
  await client.end();
  await (await newCatalog(cluster.url('foreshard'), 'shop', [cluster.url('shop')])).close();
  return work;
}

const ms = (us: number) => (us / 1000).toFixed(2).padStart(9);
const spread = ({ median, low, high }: Spread) => `${median.toFixed(2)} (${low.toFixed(2)}–${high.toFixed(2)})`;

function merged(cells: readonly Cell[], which: 'others' | 'locked'): { histogram: Histogram; max: number } {
  const histogram = new Histogram();
  for (const { report } of cells) histogram.merge(new Histogram(report[which].counts));
  return { histogram, max: Math.max(...cells.map(({ report }) => report[which].max)) };
}

function percentileByRound(cells: readonly Cell[], lanes: LanesMode, q: number): Map<number, number> {
  const own = cells.filter((cell) => cell.lanes === lanes);
  return new Map(own.map(({ round, report }) => [round, new Histogram(report.others.counts).percentile(q)]));
}

/** @returns the ratio of the 99th percentiles */
function tell(part: Part, all: readonly Cell[]): Spread | null {
  const cells = all.filter((cell) => cell.part === part);
  console.log(`\n${part === 'paced' ? 'At a fixed rate' : 'In a closed loop'}; ms, all rounds together:`);
  console.log(
    '                      p50      p99    p99.9      max   a second   proxy µs each   in lanes   late   rescued',
  );
  for (const which of ['others', 'locked'] as const) {
    for (const lanes of LANES) {
      const own = cells.filter((cell) => cell.lanes === lanes);
      const { histogram, max } = merged(own, which);
      const sum = (of: (cell: Cell) => number) => own.reduce((total, cell) => total + of(cell), 0);
      const statements = sum(({ report }) => report.statements);
      const figures = [0.5, 0.99, 0.999].map((q) => ms(histogram.percentile(q))).join('');
      const seconds = sum(({ report }) => report.seconds);
      const rest =
        which === 'locked'
          ? ''
          : [
              (statements / seconds).toFixed(0).padStart(11),
              ((sum(({ usage }) => usage.cpuMs) * 1000) / statements).toFixed(0).padStart(16),
              sum(({ usage }) => usage.reads)
                .toFixed(0)
                .padStart(11),
              sum(({ usage }) => usage.late)
                .toFixed(0)
                .padStart(7),
              sum(({ usage }) => usage.rescued)
                .toFixed(0)
                .padStart(10),
            ].join('');
      const name = which === 'others' ? 'others' : 'locked table';
      console.log(`${`${name}, ${lanes}`.padEnd(18)}${figures}${ms(max)}${rest}`);
    }
  }
  let judged: Spread | null = null;
  for (const q of [0.5, 0.99, 0.999]) {
    const ratio = ratioSpread(percentileByRound(cells, 'auto', q), percentileByRound(cells, 'off', q));
    if (q === 0.99) tellRounds(cells);
    if (ratio !== null) console.log(`others, p${q * 100} with lanes over without, by round: ${spread(ratio)}`);
    if (q === 0.99) judged = ratio;
  }
  return judged;
}

function tellRounds(cells: readonly Cell[]): void {
  for (const lanes of LANES) {
    const each = [...percentileByRound(cells, lanes, 0.99).values()].map((us) => (us / 1000).toFixed(1));
    console.log(`  p99 of each round, ${lanes}: ${each.join(', ')}`);
  }
}

async function options(): Promise<Options> {
  const given = await yargs(process.argv.slice(2))
    .option('rounds', { type: 'number', default: 6 })
    .option('seconds', { type: 'number', default: 3, describe: 'Of each measurement' })
    .option('clients', { type: 'number', default: 32 })
    .option('rate', { type: 'number', describe: 'Statements a second' })
    .option('only', { choices: PARTS })
    .strict()
    .version(false)
    .parseAsync();
  const { rounds, seconds, clients, rate, only } = given;
  return { rounds, seconds, clients, rate: rate ?? null, parts: only === undefined ? PARTS : [only] };
}

async function run(scene: Scene, { rounds, seconds, clients, rate: wanted, parts }: Options): Promise<boolean> {
  const warm = new Map<LanesMode, Cell>();
  for (const lanes of LANES)
    warm.set(
      lanes,
      await scene.measure({ lanes, part: 'closed', round: -1 }, { clients, seconds: WARM_SECONDS, rate: null }),
    );
  const { statements, seconds: took } = (warm.get('off') as Cell).report;
  const rate = wanted ?? Math.max(1, Math.round((SHARE_OF_CAPACITY * statements) / took));
  console.log(`${clients} clients; without lanes ${(statements / took).toFixed(0)} statements/s, fixed rate ${rate}/s`);
  const cells: Cell[] = [];
  for (let round = 0; round < rounds; round++) {
    for (const part of parts) {
      for (const lanes of round % 2 === 0 ? LANES : [...LANES].reverse())
        cells.push(
          await scene.measure({ lanes, part, round }, { clients, seconds, rate: part === 'paced' ? rate : null }),
        );
    }
  }
  const ratios = parts.map((part) => ({ part, ratio: tell(part, cells) }));
  const total = (of: (cell: Cell) => number) => cells.reduce((sum, cell) => sum + of(cell), 0);
  console.log(
    `\nbesides: ${total(({ havoc }) => havoc.locks)} locks, ${total(({ havoc }) => havoc.updates)} updates behind them, ` +
      `${total(({ havoc }) => havoc.slowAnswers)} large answers read slowly, ${total(({ havoc }) => havoc.cancels)} cancel requests ` +
      `(${total(({ havoc }) => havoc.canceled)} statements canceled)`,
  );
  const errors = [...warm.values(), ...cells].flatMap(({ report }) => Object.entries(report.errors));
  for (const [sqlstate, count] of errors) console.log(`NOT ASKED FOR: ${count} errors ${sqlstate}`);
  if (errors.length === 0) console.log('every answer belonged to its question; no error that was not asked for');
  const judged = ratios.find(({ part }) => part === 'paced')?.ratio ?? null;
  if (judged !== null)
    console.log(`p99 ${judged.median <= TARGET ? 'met' : 'MISSED'}: ${spread(judged)}, target at most ${TARGET}`);
  return errors.length === 0;
}

async function main(): Promise<void> {
  const given = await options();
  console.log(`${cpus()[0]?.model}, ${cpus().length} CPUs, Node ${process.version}`);
  const scene = await Scene.start();
  try {
    if (!(await run(scene, given))) process.exitCode = 1;
  } finally {
    await scene.stop();
  }
}

if (process.argv[2] === 'serve') await serve(process.argv[3] as string, process.argv[4] as LanesMode);
else if (process.argv[2] === 'load') await load();
else await main();
