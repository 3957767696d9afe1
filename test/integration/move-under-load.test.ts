import type pg from 'pg';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createMigration } from '../../migrator/migration-requests.js';
import { listMigrations } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const TENANTS = 200;
const SPLIT = 100;

let s: Sharded;
let second: ProxyServer;

/** Orders that are there before. */
const OLD = 20_000;

beforeAll(async () => {
  // Reads of the first proxy share connections; those of the second do not.
  s = await Sharded.start({ splitAt: null, pool: { lanes: 'auto' } });
  second = await startProxy(s.catalog, { ...s.options, pool: { lanes: 'off' } });
  await s.onShard(0, `INSERT INTO tenants SELECT i, 't' || i FROM generate_series(1, ${TENANTS}) i`);
  await s.onShard(
    0,
    `INSERT INTO orders SELECT 1 + i % ${TENANTS}, i, repeat('x', 50) FROM generate_series(1, ${OLD}) i`,
  );
});
afterAll(async () => {
  await second.close();
  await s.stop();
});

/** Does something through the proxy, from its making until told to stop; remembers every error. */
abstract class Worker {
  readonly errors: unknown[] = [];
  reads = 0;
  protected stopped = false;
  readonly #done: Promise<void>;

  constructor(client: pg.Client, no: number) {
    // What a subclass has of its own is there when it begins.
    this.#done = Promise.resolve()
      .then(() => this.run(client, no))
      .catch((error: unknown) => {
        this.errors.push(error);
      });
  }

  protected abstract run(client: pg.Client, no: number): Promise<void>;

  async stop(): Promise<void> {
    this.stopped = true;
    await this.#done;
  }
}

/** Writes; remembers what was acknowledged. */
class Writer extends Worker {
  readonly acknowledged = new Map<string, string>();

  protected override async run(c: pg.Client, no: number): Promise<void> {
    for (let n = 0; !this.stopped; n++) {
      const tenant = 1 + ((n * 37 + no * 11) % TENANTS);
      const id = 1_000_000 * (no + 1) + n;
      const key = `${tenant}/${id}`;
      switch (n % 4) {
        case 0: // extended
          await c.query('INSERT INTO orders VALUES ($1, $2, $3)', [tenant, id, 'a']);
          this.acknowledged.set(key, 'a');
          break;
        case 1: // simple
          await c.query(`INSERT INTO orders VALUES (${tenant}, ${id}, 'b')`);
          this.acknowledged.set(key, 'b');
          break;
        case 2: // a transaction with a prepared statement
          await c.query('BEGIN');
          await c.query({ name: 'insert', text: 'INSERT INTO orders VALUES ($1, $2, $3)', values: [tenant, id, 'c'] });
          await c.query({ name: 'items', text: 'INSERT INTO items VALUES ($1, $2, 1, 1)', values: [tenant, id] });
          await c.query('COMMIT');
          this.acknowledged.set(key, 'c');
          break;
        default: {
          await c.query('INSERT INTO orders VALUES ($1, $2, $3)', [tenant, id, 'd']);
          const { rows } = await c.query(
            'UPDATE orders SET note = $3 WHERE tenant_id = $1 AND id = $2 RETURNING note',
            [tenant, id, 'dd'],
          );
          expect(rows).toEqual([{ note: 'dd' }]);
          this.acknowledged.set(key, 'dd');
          // Its own write is there at once, whoever owns the range by now.
          expect((await c.query(`SELECT note FROM orders WHERE tenant_id = ${tenant} AND id = ${id}`)).rows).toEqual([
            { note: 'dd' },
          ]);
          this.reads += 1;
        }
      }
    }
  }
}

/** Reads what is there from the beginning, in one of two ways. */
class Reader extends Worker {
  protected override async run(c: pg.Client, no: number): Promise<void> {
    const text = 'SELECT id::int AS id, note FROM orders WHERE tenant_id = $1 AND id = $2';
    for (let n = 0; !this.stopped; n++) {
      const id = 1 + ((n * 7919 + no * 101) % OLD);
      const tenant = 1 + (id % TENANTS);
      const { rows } = await (n % 2 === 0
        ? c.query({ name: 'old', text, values: [tenant, id] })
        : c.query(`SELECT id::int AS id, note FROM orders WHERE tenant_id = ${tenant} AND id = ${id}`));
      // On both shards for a while, then on one; never on none, and never twice.
      expect(rows).toEqual([{ id, note: 'x'.repeat(50) }]);
      this.reads += 1;
    }
  }
}

/** Reads that shared connections, by shard. */
function laneReads(): Record<string, number> {
  const reads: Record<string, number> = {};
  for (const pool of s.proxy.pools.all) reads[pool.shard] = s.proxy.pools.lanesOf(pool).totals.reads;
  return reads;
}

it('moves half of the tenants under live load through two proxies: no error, no write lost or doubled', async () => {
  const writers: Writer[] = [];
  for (let no = 0; no < 6; no++) {
    const port = no % 2 === 0 ? s.proxy.port : second.port;
    writers.push(new Writer(await s.connect({ connectionString: `postgres://app:secret@127.0.0.1:${port}/shop` }), no));
  }
  const readers: Reader[] = [];
  for (let no = 0; no < 8; no++) readers.push(new Reader(await s.connect(), no));
  const topology = await s.catalog.loadTopology();
  const keyspace = topology.keyspaces.get('main' as KeyspaceName);
  if (!keyspace) throw new Error('no keyspace');
  await createMigration(
    s.catalog.pool,
    keyspace,
    {
      kind: 'move',
      keyspace: keyspace.name,
      lo: [BigInt(SPLIT)],
      hi: null,
      from: 's1' as ShardName,
      to: 's2' as ShardName,
    },
    { actor: 'test' },
  );
  const stop = new AbortController();
  const migrator = new Migrator({
    catalog: s.catalog,
    logger: pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2)),
    pollMs: 100,
  });
  const running = migrator.run(stop.signal);
  try {
    await waitFor(
      async () => {
        const [m] = await listMigrations(s.catalog.pool);
        if (m?.state === 'failed' || m?.state === 'aborted') throw new Error(`${m.state}: ${m.error}`);
        for (const w of [...writers, ...readers]) if (w.errors.length > 0) throw w.errors[0];
        return m?.state === 'done';
      },
      { what: 'the move' },
    );
  } finally {
    await Promise.all([...writers, ...readers].map((w) => w.stop()));
    stop.abort();
    await running;
  }
  expect([...writers, ...readers].flatMap((w) => w.errors)).toEqual([]);
  expect(laneReads()).toEqual({ s1: expect.any(Number), s2: expect.any(Number) });
  for (const reads of Object.values(laneReads())) expect(reads).toBeGreaterThan(0);

  type Row = { tenant: number; id: number; note: string };
  const sql = 'SELECT tenant_id::int AS tenant, id::int AS id, note FROM orders WHERE id >= 1000000';
  const [left, right] = await Promise.all([s.onShard<Row>(0, sql), s.onShard<Row>(1, sql)]);
  expect(left.filter((r) => r.tenant >= SPLIT)).toEqual([]);
  expect(right.filter((r) => r.tenant < SPLIT)).toEqual([]);
  const found = new Map([...left, ...right].map((r) => [`${r.tenant}/${r.id}`, r.note]));
  expect(found.size).toBe(left.length + right.length);
  const acknowledged = new Map(writers.flatMap((w) => [...w.acknowledged]));
  expect(found).toEqual(acknowledged);
  expect(right.length).toBeGreaterThan(0);
  const old = 'SELECT count(*)::int AS n FROM orders WHERE id < 1000000';
  const [a] = await s.onShard<{ n: number }>(0, old);
  const [b] = await s.onShard<{ n: number }>(1, old);
  expect((a?.n ?? 0) + (b?.n ?? 0)).toBe(OLD);
  expect(await s.onShard(1, 'SELECT count(*)::int AS n FROM countries')).toEqual([{ n: 2 }]);
});
