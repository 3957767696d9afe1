/**
 * What a COMMIT on several shards costs: prepared on both writers, decided in the catalog, committed on both, beside one of the same two rows on one shard. All
 * contenders run right after one another in each round, in another order each time; ratios are of the same round.
 *
 * The servers flush their logs (`--flush off`: they do not, and only round trips and work are left).
 *
 * Run: npx tsc && node dist/bench/commits.js [--rounds 9] [--seconds 2] [--clients 1,8,32] [--flush on] [--json FILE]
 */
import { writeFileSync } from 'node:fs';
import pg from 'pg';
import yargs from 'yargs';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { Registry } from '../topology/catalog/registry.js';
import { Child } from './child.js';
import { newCatalog } from './new-catalog.js';
import { percentile, ratioSpread, type Spread, spreadOf } from './results/statistics.js';
import { foreshardVersion, machine } from './suite/machine.js';
import { startTrustingProxy } from './trusting-proxy.js';

/** Each shard has so many rows; those of the second begin behind them. */
const ROWS = 10_000;
const USER = 'bench';
const PASSWORD = 'bench';
const DATABASE = 'bank';

/** What one transaction does first, and then: to a row of the shard with this number. */
interface Contender {
  readonly name: string;
  readonly steps: readonly { readonly does: 'writes' | 'reads'; readonly on: 0 | 1 }[];
}

const CONTENDERS: readonly [Contender, ...Contender[]] = [
  {
    name: 'one shard, two writes',
    steps: [
      { does: 'writes', on: 0 },
      { does: 'writes', on: 0 },
    ],
  },
  {
    name: 'two shards, one only read',
    steps: [
      { does: 'reads', on: 0 },
      { does: 'writes', on: 1 },
    ],
  },
  {
    name: 'two shards, both written',
    steps: [
      { does: 'writes', on: 0 },
      { does: 'writes', on: 1 },
    ],
  },
];

const SQL = {
  writes: { name: 'w', text: 'UPDATE accounts SET balance = balance + 1 WHERE id = $1' },
  reads: { name: 'r', text: 'SELECT balance FROM accounts WHERE id = $1' },
};

/** ms. */
interface Measured {
  readonly perSecond: number;
  /** Of COMMIT alone, sorted. */
  readonly commits: readonly number[];
}

async function serve(catalogUrl: string): Promise<void> {
  const proxy = await startTrustingProxy(catalogUrl, {
    name: 'proxy',
    logLevel: 'warn',
    serverPasswords: new Map([[USER, PASSWORD]]),
    pool: { size: 50 },
  });
  process.on('disconnect', () => process.exit());
  process.send?.(proxy.port);
}

/** Two shards with the rows that are theirs, the catalog on a server of its own. @returns the catalog's URL */
async function prepare([catalogServer, ...shards]: readonly EmbeddedCluster[]): Promise<string> {
  for (const cluster of shards) {
    await withClient(cluster.url(), async (client) => {
      await client.query(`CREATE ROLE ${USER} LOGIN SUPERUSER PASSWORD '${PASSWORD}'`);
      await client.query(`CREATE DATABASE ${DATABASE}`);
    });
    await withClient(cluster.url(DATABASE), async (client) => {
      await client.query(
        'CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50)',
      );
    });
  }
  const url = (catalogServer as EmbeddedCluster).url();
  const urls = shards.map((cluster) => cluster.url(DATABASE));
  const catalog = await newCatalog(url, DATABASE, urls);
  try {
    const registry = new Registry(catalog, 'bench');
    await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
    await registry.addTable({ table: { schema: 'public', table: 'accounts' }, keyspace: 'main', keyColumns: ['id'] });
    // There are no rows yet: there is nothing to migrate.
    await catalog.pool.query('DELETE FROM foreshard.range');
    await catalog.pool.query(
      `INSERT INTO foreshard.range (keyspace, lo, hi, shard)
       VALUES ('main', NULL, jsonb_build_array($1::text), 's1'), ('main', jsonb_build_array($1::text), NULL, 's2')`,
      [String(ROWS)],
    );
    await catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    for (const [i, shard] of urls.entries())
      await withClient(shard, async (client) => {
        const ids = [i * ROWS, (i + 1) * ROWS - 1];
        await client.query('INSERT INTO accounts SELECT n, 0 FROM generate_series($1::bigint, $2::bigint) n', ids);
        await client.query('VACUUM ANALYZE accounts');
      });
  } finally {
    await catalog.close();
  }
  return url;
}

async function withClient(url: string, use: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await use(client).finally(() => client.end());
}

/** Every client has rows of its own: nobody waits for a lock. */
async function measure(clients: readonly pg.Client[], { steps }: Contender, seconds: number): Promise<Measured> {
  const commits: number[] = [];
  const since = performance.now();
  const until = since + seconds * 1000;
  await Promise.all(
    clients.map(async (client, no) => {
      for (let n = 0; performance.now() < until; n++) {
        await client.query('BEGIN');
        for (const [i, { does, on }] of steps.entries()) {
          const row = on * ROWS + (((2 * n + i) * clients.length + no) % ROWS);
          await client.query({ ...SQL[does], values: [row] });
        }
        const asked = performance.now();
        const { command } = await client.query('COMMIT');
        commits.push(performance.now() - asked);
        if (command !== 'COMMIT') throw new Error(`a transaction was not committed: ${command}`);
      }
    }),
  );
  const ms = performance.now() - since;
  return { perSecond: (commits.length * 1000) / ms, commits: commits.sort((a, b) => a - b) };
}

function row(name: string, spreads: readonly (Spread | null)[], digits: number): void {
  const cells = spreads.map((s) =>
    (s === null ? '' : `${s.median.toFixed(digits)} (${s.low.toFixed(digits)}–${s.high.toFixed(digits)})`).padStart(26),
  );
  console.log(`${name.padEnd(28)}${cells.join('')}`);
}

async function run(): Promise<void> {
  const o = await yargs(process.argv.slice(2))
    .option('rounds', { type: 'number', default: 9 })
    .option('seconds', { type: 'number', default: 2, describe: 'Of each contender in each round' })
    .option('clients', { type: 'string', default: '1,8,32', describe: 'How many at once' })
    .option('flush', { choices: ['on', 'off'] as const, default: 'on' as const, describe: 'fsync of all servers' })
    .option('json', { type: 'string', describe: 'File for the figures' })
    .strict()
    .version(false)
    .parseAsync();
  const settings = { fsync: o.flush, max_connections: '200', max_prepared_transactions: '200' };
  const clusters = await Promise.all([1, 2, 3].map(() => EmbeddedCluster.start({ settings })));
  const proxy: Child[] = [];
  const results: { clients: number; contender: string; round: number; perSecond: number; p50: number; p99: number }[] =
    [];
  try {
    const catalogUrl = await prepare(clusters);
    const serving = new Child(import.meta.url, 'serve', catalogUrl);
    proxy.push(serving);
    const port = await serving.next<number>();
    for (const count of o.clients.split(',').map(Number)) {
      const clients = Array.from(
        { length: count },
        () => new pg.Client({ host: '127.0.0.1', port, user: USER, database: DATABASE }),
      );
      await Promise.all(clients.map((client) => client.connect()));
      // One that does not count: statements are prepared then, and the compilers have done their work.
      for (let round = -1; round < o.rounds; round++)
        for (let i = 0; i < CONTENDERS.length; i++) {
          const contender = CONTENDERS[(i + round + 1) % CONTENDERS.length] as Contender;
          const { perSecond, commits } = await measure(clients, contender, o.seconds);
          const [p50, p99] = [percentile(commits, 0.5), percentile(commits, 0.99)];
          if (round >= 0) results.push({ clients: count, contender: contender.name, round, perSecond, p50, p99 });
        }
      await Promise.all(clients.map((client) => client.end()));
    }
  } finally {
    await Promise.all(proxy.map((child) => child.stop()));
    await Promise.all(clusters.map((cluster) => cluster.stop()));
  }
  const on = machine();
  console.log(
    `${on.processor}, ${on.cores} processors, ${on.system}, Node ${on.node}, Foreshard ${foreshardVersion()}; 3 servers (two shards, the catalog), fsync ${o.flush};`,
  );
  console.log(`${o.rounds} rounds of ${o.seconds} s; median (lowest–highest) of the rounds`);
  for (const count of new Set(results.map((r) => r.clients))) {
    console.log(`\n${count} clients`);
    const heads = ['transactions a second', '× one shard', 'COMMIT p50, ms', 'COMMIT p99, ms'];
    console.log(`${''.padEnd(28)}${heads.map((h) => h.padStart(26)).join('')}`);
    const of = (name: string) => results.filter((r) => r.clients === count && r.contender === name);
    const rates = (name: string) => new Map(of(name).map((r) => [r.round, r.perSecond]));
    for (const { name } of CONTENDERS) {
      const ratio = name === CONTENDERS[0].name ? null : ratioSpread(rates(name), rates(CONTENDERS[0].name));
      const spread = (key: 'perSecond' | 'p50' | 'p99') => spreadOf(of(name).map((r) => r[key]));
      row(name, [spread('perSecond'), ratio, spread('p50'), spread('p99')], 2);
    }
  }
  if (o.json !== undefined)
    writeFileSync(
      o.json,
      `${JSON.stringify({ machine: on, version: foreshardVersion(), options: o, results }, null, 1)}\n`,
    );
}

const [, , role, ...rest] = process.argv;
if (role === 'serve') await serve(...(rest as [string]));
else await run();
