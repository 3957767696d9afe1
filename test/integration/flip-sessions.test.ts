import type pg from 'pg';
import { from, to } from 'pg-copy-streams';
import { pino } from 'pino';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createMigration, requestFlip, setEndTransactions, setPaused } from '../../migrator/migration-requests.js';
import { loadMigration, type MigrationRow, RESTING_STATES } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import type { MigrationControls } from '../../topology/migration-controls.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { pauseOnEntering } from '../migrator/setting.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// What sessions have on the go when the rows they work with move to another shard.

let s: Sharded;
let owner: 's1' | 's2' = 's1';
const migrators = new AbortController();
let migrator: Promise<void>;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, holdTimeoutMs: 30_000 });
  for (const shard of [0, 1] as const)
    await s.onShard(
      shard,
      `CREATE TABLE tickets (tenant_id bigint, id bigserial, note text, PRIMARY KEY (tenant_id, id));
       GRANT ALL ON tickets TO app; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app`,
    );
  const admin = await s.connect();
  await admin.query('SELECT 1');
  await s.catalog.pool.query(
    `INSERT INTO foreshard.sharded_table VALUES ('public', 'tickets', 'main', '{tenant_id}');
     UPDATE foreshard.meta SET epoch = epoch + 1, schema_generation = schema_generation + 1`,
  );
  await s.reloaded();
  migrator = new Migrator({
    catalog: s.catalog,
    logger: pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2)),
    pollMs: 50,
    fenceBackoffMs: 50,
    ackMs: 20_000,
    maxFenceTries: 1000,
  }).run(migrators.signal);
});
afterAll(async () => {
  migrators.abort();
  await migrator;
  await s.stop();
});

beforeEach(async () => {
  for (const shard of [0, 1] as const) await s.onShard(shard, 'TRUNCATE tenants, orders, items, tickets CASCADE');
  const c = await s.connect();
  await c.query(`INSERT INTO tenants VALUES (1, 't1'), (2, 't2')`);
  await c.query(`INSERT INTO tenants VALUES (150, 't150')`);
  await c.query(`INSERT INTO orders SELECT 150, i, 'order ' || i FROM generate_series(1, 20) i`);
  await c.end();
});

const there = () => (owner === 's1' ? 's2' : 's1');
/** Tenants from 100 on are to go to the shard where they are not. */
async function begin(controls: Partial<MigrationControls> = {}): Promise<bigint> {
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
  return createMigration(
    s.catalog.pool,
    keyspace,
    {
      kind: 'move',
      keyspace: keyspace.name,
      lo: [100n],
      hi: null,
      from: owner as ShardName,
      to: there() as ShardName,
    },
    { actor: 'test', controls },
  );
}

/** The migration has come so far that it waits for what is open on the interval. */
async function held(id: bigint): Promise<void> {
  await waitFor(
    async () =>
      (await s.catalog.pool.query('SELECT FROM foreshard.hold WHERE migration_id = $1', [id.toString()])).rowCount ===
      1,
    { what: 'the hold' },
  );
}

async function done(id: bigint): Promise<MigrationRow> {
  const row = await waitFor(
    async () => {
      const now = await loadMigration(s.catalog.pool, id);
      return RESTING_STATES.includes(now.state) ? now : null;
    },
    { what: 'the end of the migration' },
  );
  expect({ state: row.state, error: row.error }).toEqual({ state: 'done', error: null });
  owner = there();
  await s.reloaded();
  return row;
}

async function move(): Promise<void> {
  await done(await begin());
}

/** Where tenant 150's orders are, by shard. */
async function orders(): Promise<number[]> {
  const counts = await Promise.all(
    ([0, 1] as const).map((shard) =>
      s.onShard<{ n: number }>(shard, 'SELECT count(*)::int AS n FROM orders WHERE tenant_id = 150'),
    ),
  );
  return counts.map((rows) => rows[0]?.n ?? -1);
}

const onlyAtOwner = (n: number) => (owner === 's1' ? [n, 0] : [0, n]);

describe('a sequence', () => {
  it('gives no number twice, and the session goes on from its own', async () => {
    const c = await s.connect();
    const draw = async () =>
      Number((await c.query(`INSERT INTO tickets (tenant_id) VALUES (150) RETURNING id`)).rows[0].id);
    const drawAndAsk = async () => {
      await c.query('BEGIN');
      const drawn = await draw();
      const told = Number((await c.query(`SELECT currval('tickets_id_seq') AS v`)).rows[0].v);
      await c.query('COMMIT');
      expect(told).toBe(drawn);
      return drawn;
    };
    const before = [await draw(), await drawAndAsk()];
    await move();
    const after = [await draw(), await drawAndAsk()];
    expect(Math.min(...after)).toBeGreaterThan(Math.max(...before));
    await move();
    expect(await draw()).toBeGreaterThan(Math.max(...after));
    expect((await c.query('SELECT count(DISTINCT id)::int AS n FROM tickets WHERE tenant_id = 150')).rows).toEqual([
      { n: 5 },
    ]);
  });
});

describe('a prepared statement', () => {
  const byDriver = (c: pg.Client) =>
    c.query({ name: 'name', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [150] });
  const bySql = (c: pg.Client) => c.query('EXECUTE named(150)');

  it.each([
    ['of the protocol', byDriver],
    ['of SQL', bySql],
  ])('%s reads at the new owner', async (_, read) => {
    const c = await s.connect();
    const other = await s.connect();
    await c.query('PREPARE named(bigint) AS SELECT name FROM tenants WHERE tenant_id = $1');
    expect((await read(c)).rows).toEqual([{ name: 't150' }]);
    await move();
    await other.query(`UPDATE tenants SET name = 'moved' WHERE tenant_id = 150`);
    expect((await read(c)).rows).toEqual([{ name: 'moved' }]);
  });

  it('bound before the hold and executed behind it is of one transaction, which is waited for', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await byDriver(c);
    const id = await begin();
    await held(id);
    await c.query(`UPDATE tenants SET name = 'in time' WHERE tenant_id = 150`);
    expect((await byDriver(c)).rows).toEqual([{ name: 'in time' }]);
    await c.query('COMMIT');
    await done(id);
    expect((await byDriver(c)).rows).toEqual([{ name: 'in time' }]);
  });
});

describe('a cursor', () => {
  it('of a transaction is read to its end before the flip', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query('DECLARE all_orders CURSOR FOR SELECT id::int AS id FROM orders WHERE tenant_id = 150 ORDER BY id');
    expect((await c.query('FETCH 2 FROM all_orders')).rows).toEqual([{ id: 1 }, { id: 2 }]);
    const id = await begin();
    await held(id);
    expect((await c.query('FETCH ALL FROM all_orders')).rowCount).toBe(18);
    await c.query('COMMIT');
    await done(id);
    expect(await orders()).toEqual(onlyAtOwner(20));
  });

  it('WITH HOLD keeps the rows that it was declared over, and keeps no migration waiting', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(
      'DECLARE kept CURSOR WITH HOLD FOR SELECT id::int AS id FROM orders WHERE tenant_id = 150 ORDER BY id',
    );
    await c.query('COMMIT');
    expect((await c.query('FETCH 1 FROM kept')).rows).toEqual([{ id: 1 }]);
    await move();
    const other = await s.connect();
    await other.query('DELETE FROM orders WHERE tenant_id = 150 AND id > 10');
    expect((await c.query('FETCH ALL FROM kept')).rowCount).toBe(19);
    // Its server connection is at the old owner: nothing is read there that has gone.
    await expect(c.query('SELECT count(*) FROM orders WHERE tenant_id = 150')).rejects.toMatchObject({
      code: '0A000',
    });
    await c.query('CLOSE kept');
    expect((await c.query('SELECT count(*)::int AS n FROM orders WHERE tenant_id = 150')).rows).toEqual([{ n: 10 }]);
  });
});

describe('COPY', () => {
  it('FROM that has begun is waited for before anybody is held, and its rows go along', async () => {
    if (owner === 's2') await move(); // refused while data is on several shards
    const c = await s.connect();
    const other = await s.connect();
    // While a table is guarded and its slot is made, a COPY would be waited for already.
    await pauseOnEntering(s, 'ready');
    const id = await begin();
    const noted = (note: RegExp) =>
      waitFor(async () => note.test((await loadMigration(s.catalog.pool, id)).progress.note ?? ''), {
        what: `the note ${note}`,
      });
    await noted(/^paused$/);
    await pauseOnEntering(s, null);
    const copy = c.query(from('COPY orders FROM STDIN'));
    const ended = new Promise<void>((resolve, reject) => copy.once('finish', resolve).once('error', reject));
    copy.write('150\t100\tcopied\n');
    await setPaused(s.catalog.pool, id, false, 'test');
    await noted(/^waiting for pid \d+ /);
    await other.query(`UPDATE tenants SET name = 'not held' WHERE tenant_id = 150`);
    copy.end('150\t101\tcopied\n');
    await ended;
    await done(id);
    expect(await orders()).toEqual(onlyAtOwner(22));
    expect((await other.query('SELECT name FROM tenants WHERE tenant_id = 150')).rows).toEqual([{ name: 'not held' }]);
  });

  it('TO gives all rows of before', async () => {
    const c = await s.connect();
    const id = await begin();
    let lines = 0;
    // Again and again, through hold and flip: never a part of them, never twice.
    for (let ended = false; !ended; ) {
      ended = RESTING_STATES.includes((await loadMigration(s.catalog.pool, id)).state);
      const text: Buffer[] = [];
      for await (const chunk of c.query(to('COPY (SELECT id FROM orders WHERE tenant_id = 150) TO STDOUT')))
        text.push(chunk as Buffer);
      lines = Buffer.concat(text).toString().trim().split('\n').length;
      expect(lines).toBe(20);
    }
    await done(id);
  });
});

describe('LISTEN', () => {
  it('goes on, whoever owns the rows that the notifier has changed', async () => {
    const listener = await s.connect();
    const heard: string[] = [];
    listener.on('notification', (n) => heard.push(n.payload ?? ''));
    await listener.query('LISTEN orders');
    const c = await s.connect();
    const change = async (what: string) => {
      await c.query('BEGIN');
      await c.query(`UPDATE tenants SET name = '${what}' WHERE tenant_id = 150`);
      await c.query(`NOTIFY orders, '${what}'`);
      await c.query('COMMIT');
    };
    await change('before');
    await waitFor(() => heard.includes('before'), { what: 'the notification before' });
    await move();
    await change('after');
    await waitFor(() => heard.includes('after'), { what: 'the notification after' });
    expect(heard).toEqual(['before', 'after']);
  });
});

describe('a two-phase transaction', () => {
  it('is refused by the proxy', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(`UPDATE tenants SET name = 'x' WHERE tenant_id = 150`);
    await expect(c.query(`PREPARE TRANSACTION 'x'`)).rejects.toMatchObject({ code: '0A000' });
    await c.query('ROLLBACK');
  });
});

describe('a transaction that the flip is not to wait for', () => {
  const RENAME = (name: string) => `UPDATE tenants SET name = '${name}' WHERE tenant_id = 150`;
  const ENDED = { code: '40001', hint: 'Nothing of it was committed. Retry the transaction.' };
  const name = async (c: pg.Client) => (await c.query('SELECT name FROM tenants WHERE tenant_id = 150')).rows[0]?.name;

  /** A migration that waits for its flip. */
  async function ready(controls: Partial<MigrationControls>): Promise<bigint> {
    const id = await begin({ auto: false, ...controls });
    await waitFor(
      async () => (await loadMigration(s.catalog.pool, id)).progress.note?.startsWith('ready to flip') === true,
      { what: 'the migration to wait for its flip' },
    );
    return id;
  }

  it('is ended, and done once when it is tried again at the new owner', async () => {
    const [writer, reader, beside] = [await s.connect(), await s.connect(), await s.connect()];
    const id = await ready({ endTransactionsAfterMs: 100 });
    for (const c of [writer, reader, beside]) await c.query('BEGIN');
    await writer.query(RENAME('lost'));
    await reader.query('DECLARE cur CURSOR FOR SELECT id FROM orders WHERE tenant_id = 150');
    await beside.query(`UPDATE tenants SET name = 'beside' WHERE tenant_id = 1`);
    await requestFlip(s.catalog.pool, id, 'test');
    // What is left at the source goes when the transaction beside it is over.
    await waitFor(async () => (await loadMigration(s.catalog.pool, id)).state === 'cleaning', { what: 'the flip' });
    await expect(writer.query('COMMIT')).rejects.toMatchObject(ENDED);
    await expect(reader.query('FETCH ALL FROM cur')).rejects.toMatchObject(ENDED);
    await reader.query('ROLLBACK');
    expect((await beside.query('COMMIT')).command).toBe('COMMIT');
    expect(await name(reader)).toBe('t150');
    await writer.query('BEGIN');
    await writer.query(RENAME('again'));
    await writer.query('COMMIT');
    expect(await name(reader)).toBe('again');
    expect((await reader.query('SELECT name FROM tenants WHERE tenant_id = 1')).rows).toEqual([{ name: 'beside' }]);
    await done(id);
  });

  it('is waited for, until somebody says so while the flip waits', async () => {
    const c = await s.connect();
    const id = await ready({});
    await c.query('BEGIN');
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    await requestFlip(s.catalog.pool, id, 'test');
    await held(id);
    expect(await name(c)).toBe('t150');
    await setEndTransactions(s.catalog.pool, id, 50, 'test');
    await done(id);
    await expect(name(c)).rejects.toMatchObject(ENDED);
    await c.query('ROLLBACK');
    expect(await name(c)).toBe('t150');
  });
});
