import { setTimeout as delay } from 'node:timers/promises';
import { audit } from '../../migrator/audit/audit.js';
import { intervalPredicate } from '../../topology/interval-sql.js';
import { isKeyless } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { generator } from '../support/random.js';
import { waitFor } from '../support/wait-for.js';
import { Calm } from './calm.js';
import type { Client, Freshness, Shown, Surroundings } from './client.js';
import { InFlight } from './connection.js';
import { Director } from './director.js';
import { type Fault, Mischief } from './faults.js';
import { type AccountRow, type Contents, History, type Note } from './history.js';
import type { Kind } from './kinds.js';
import { Reader } from './reader.js';
import { ReplicaReads } from './replica-reads.js';
import { HOUSE } from './tables.js';
import { HOUSE_KEYSPACE, HOUSE_TABLES, STALENESS_MS, World } from './world.js';
import { Writer } from './writer.js';

export interface ChaosOptions {
  readonly seed: number;
  readonly writers: number;
  readonly readers: number;
  readonly proxies: number;
  readonly faults: readonly Fault[];
  /** How many things may be wrong at a time. */
  readonly hands: number;
  /** Between two faults, at most, ms. */
  readonly restMs: number;
  readonly kinds: readonly Kind[];
  /** The servers' programs, of another version than the one from npm. */
  readonly binDir?: string | undefined;
  /** Whether it has gone on for long enough. */
  readonly enough: (so: { readonly flips: number; readonly faults: number; readonly elapsedMs: number }) => boolean;
  /** Fires when somebody wants it to end now. */
  readonly signal: AbortSignal;
  readonly log: (text: string) => void;
}

export interface ChaosResult {
  readonly flips: number;
  /** Reads that were answered by replicas, at least. */
  readonly replicaReads: number;
  /** The longest time after each fault that a statement was sent which failed by it, ms. */
  readonly latestMs: Readonly<Record<string, number>>;
  readonly statements: number;
  readonly operations: Readonly<Record<string, number>>;
  readonly faults: Readonly<Record<string, number>>;
  readonly errors: Readonly<Record<string, number>>;
  readonly ends: Readonly<Record<string, number>>;
  readonly pausesMs: readonly number[];
  /** Log lines of level error or worse of all programs, and how often they came. */
  readonly complaints: Readonly<Record<string, number>>;
  readonly violations: readonly string[];
  /** Violations beyond those. */
  readonly untold: number;
  /** Where the logs are, when something was wrong. */
  readonly dir: string;
}

const WATCH_MS = 100;
/** Of the migrators; by seed. */
const WAY_BACKS_MS = [
  [20_000, 20_000],
  [20_000, 0],
] as const;
/** What is healed may take so long until it is quiet, ms. */
const SETTLE_MS = 300_000;
/** Log level of pino. */
const ERROR = 50;

/** Lets clients, faults and changes loose on a world, and compares in the end what there is with what was told. */
export async function chaos(options: ChaosOptions): Promise<ChaosResult> {
  const { seed, log } = options;
  const smallDisk = options.faults.some(({ name }) => name === 'disk-full');
  const world = await World.start({
    proxies: options.proxies,
    wayBacksMs: WAY_BACKS_MS[seed % WAY_BACKS_MS.length] as readonly number[],
    smallDisk,
    binDir: options.binDir,
    log,
  });
  let wrong = true;
  const history = new History(log);
  const calm = new Calm();
  const inFlight = new InFlight(calm, (text) => history.violate(text));
  try {
    const errors = new Map<string, number>();
    const shown: Shown = { tenants: null };
    const around: Surroundings = {
      history,
      inFlight,
      disturbances: calm,
      urls: world.proxies.map((p) => world.url(p)),
      shown,
      errors,
    };
    const clients: Client[] = [
      ...Array.from(
        { length: options.writers },
        (_, n) => new Writer(`w${n}`, generator(seed * 1000 + n), around, freshness(n)),
      ),
      ...Array.from(
        { length: options.readers },
        (_, n) => new Reader(`r${n}`, generator(seed * 1000 + 500 + n), around, freshness(n)),
      ),
    ];
    const replicaReads = new ReplicaReads(world);
    const director = new Director({
      catalog: world.catalog,
      random: generator(seed * 1000 + 998),
      kinds: options.kinds,
      shown,
      calmMs: () => calm.calmMs,
      disturbedSince: (moment) => calm.since(moment),
      log,
      violate: (text) => history.violate(text),
    });
    const mischief = new Mischief(
      { world, random: generator(seed * 1000 + 999), calm, flip: (ms) => director.follower.flip(ms) },
      options.faults,
      log,
    );
    if (options.faults.length > 0) mischief.start(options.hands, options.restMs);
    const from = performance.now();
    const ended = Promise.race([director.failed, mischief.failed, ...clients.map((c) => c.done)]);
    const watch = async () => {
      const so = () => ({
        flips: director.follower.flips,
        faults: mischief.total,
        elapsedMs: performance.now() - from,
      });
      while (!options.signal.aborted && !options.enough(so())) await delay(WATCH_MS);
    };
    await Promise.race([watch(), ended]);
    log('that was enough: putting everything right');
    await mischief.stop();
    for (const relay of world.relays) relay.heal();
    await within(director.stop(), 'the last migration to come to rest');
    await within(replicaReads.stop(), 'the proxies to say what replicas have answered');
    for (const client of clients) client.stop();
    await within(Promise.all(clients.map((c) => c.done)), 'every client to have its last answer');
    for (const death of world.programs.flatMap((program) => program.deaths)) history.violate(death);
    log('comparing what there is with what was told');
    history.audit(await contents(world, history));
    for (const text of await quiet(world)) history.violate(text);
    wrong = history.violations.length > 0;
    const outcomes: Record<string, number> = {};
    for (const { outcome } of history.operations.values()) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    const complaints = new Map<string, number>();
    for (const program of world.programs)
      for (const [text, n] of program.complaints(ERROR)) complaints.set(text, (complaints.get(text) ?? 0) + n);
    return {
      flips: director.follower.flips,
      replicaReads: replicaReads.total,
      latestMs: Object.fromEntries(calm.latestMs),
      statements: inFlight.statements,
      operations: outcomes,
      faults: Object.fromEntries(mischief.done),
      errors: Object.fromEntries(errors),
      ends: Object.fromEntries(director.follower.ends),
      pausesMs: director.follower.pausesMs,
      complaints: Object.fromEntries(complaints),
      violations: history.violations,
      untold: history.untold,
      dir: world.dir,
    };
  } finally {
    inFlight.close();
    await world.stop(wrong);
  }
}

/** Some clients read what is a little old, where a replica has it; some leave that to the replica's terms. */
function freshness(n: number): Freshness {
  return n % 4 === 0 ? STALENESS_MS / 2 ** (n % 3) : n % 4 === 1 ? 'unsaid' : 0;
}

async function within(work: Promise<unknown>, what: string): Promise<void> {
  let over = false;
  let failure: unknown;
  void work.then(
    () => {
      over = true;
    },
    (error: unknown) => {
      over = true;
      failure = error;
    },
  );
  await waitFor(() => over, { what, timeoutMs: SETTLE_MS });
  if (failure !== undefined) throw failure;
}

/** All rows of all shards, past the proxies; and that each is where the map says. */
async function contents(world: World, history: History): Promise<Contents> {
  const all = { accounts: [] as AccountRow[], ledger: [] as Contents['ledger'][number][], notes: [] as Note[] };
  const topology = await world.catalog.loadTopology();
  for (const { name, url } of world.shards)
    await withClient(url, async (c) => {
      // Without a key each row is where the whole table is.
      for (const keyspace of [...topology.keyspaces.values()].filter((k) => !isKeyless(k))) {
        const own = keyspace.ranges.filter(({ shard }) => shard === name);
        const here = own.map((range) => `(${intervalPredicate(keyspace, ['tenant'], range)})`).join(' OR ') || 'false';
        for (const { table } of keyspace.tables) {
          const { rows } = await c.query<{ tenant: string }>(
            `SELECT DISTINCT tenant FROM ${table} WHERE (${here}) IS NOT TRUE`,
          );
          for (const { tenant } of rows)
            history.violate(`rows of tenant ${tenant} in ${table} are on ${name}, which does not own it`);
        }
      }
      all.accounts.push(
        ...(await c.query<AccountRow>('SELECT tenant::int, id::int, version::int, balance::int, op FROM accounts'))
          .rows,
      );
      all.ledger.push(
        ...(await c.query<Contents['ledger'][number]>('SELECT tenant::int, id, version::int FROM ledger')).rows,
      );
      all.notes.push(
        ...(await c.query<Note>('SELECT tenant::int, id, version::int, mark::int, views::int FROM notes')).rows,
      );
      const owner = topology.keyspaces.get(HOUSE_KEYSPACE)?.ranges[0]?.shard ?? topology.home;
      for (const { table } of HOUSE_TABLES) {
        if (name === owner) break;
        const known = await c.query('SELECT WHERE to_regclass($1) IS NOT NULL', [table]);
        if (known.rowCount === 1 && (await c.query(`SELECT FROM ${table} LIMIT 1`)).rowCount === 1)
          history.violate(`rows of ${table} are on ${name}, and belong to ${owner}`);
      }
      if (name !== owner) return;
      all.accounts.push(
        ...(await c.query<AccountRow>(`SELECT ${HOUSE} AS tenant, id::int, version::int, balance::int, op FROM stock`))
          .rows,
      );
      all.ledger.push(
        ...(await c.query<Contents['ledger'][number]>(`SELECT ${HOUSE} AS tenant, id, version::int FROM receipts`))
          .rows,
      );
    });
  return all;
}

/** What the product's own audit finds, and whatever migrations have left. */
async function quiet(world: World): Promise<string[]> {
  const found = (await audit(world.catalog, false)).map(
    ({ shard, object, text }) => `audit: ${shard} ${object}: ${text}`,
  );
  for (const { name, url } of world.shards)
    await withClient(url, async (c) => {
      const { rows } = await c.query<{ what: string }>(`
        SELECT 'slot ' || slot_name AS what FROM pg_replication_slots
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication
        UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
        UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE 'foreshard%'
        UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE 'foreshard%'
        UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin`);
      found.push(...rows.map(({ what }) => `left on ${name}: ${what}`));
    });
  const { rows } = await world.catalog.pool.query<{ what: string }>(
    `SELECT 'clean-up of ' || kind || ' ' || object AS what FROM foreshard.migration_cleanup WHERE done_at IS NULL
     UNION ALL SELECT 'hold ' || id FROM foreshard.hold`,
  );
  found.push(...rows.map(({ what }) => `left in the catalog: ${what}`));
  return found;
}
