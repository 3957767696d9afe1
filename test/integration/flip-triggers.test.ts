import pg from 'pg';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { judgeReach } from '../../cli/judge-reach.js';
import { createMigration, requestEnd } from '../../migrator/migration-requests.js';
import { loadMigration, type MigrationRow, RESTING_STATES } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import { Registry } from '../../topology/catalog/registry.js';
import type { MigrationState } from '../../topology/migration.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { SHOP_SCHEMA, Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// What clients of a proxy see of triggers and policies before, while and after the interval of their rows changes hands, and when it comes back: what one PostgreSQL
// that has all rows shows to somebody who says the same to it.

const TENANTS = 12;
const SPLIT = 7;

/** Values of a row are changed, rows are left out, statements fail, logs are written, at once, for whole statements, behind foreign keys, and when all is over. */
const BEHAVIOUR = `
ALTER TABLE orders ADD version int NOT NULL DEFAULT 0, ADD touched text;
ALTER TABLE items DROP CONSTRAINT items_tenant_id_order_id_fkey, ADD FOREIGN KEY (tenant_id, order_id) REFERENCES orders ON DELETE CASCADE;
CREATE TABLE order_log (tenant_id bigint NOT NULL, order_id bigint NOT NULL, no int NOT NULL, what text NOT NULL, who text NOT NULL, PRIMARY KEY (tenant_id, order_id, no));
CREATE FUNCTION write_log(bigint, bigint, text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO order_log SELECT $1, $2, count(*) + 1, $3, current_user FROM order_log WHERE tenant_id = $1 AND order_id = $2 $$;
CREATE FUNCTION shape() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.note = 'skip' THEN RETURN NULL; END IF;
  IF NEW.note = 'bad' THEN RAISE EXCEPTION 'order % is bad', NEW.id USING ERRCODE = 'P0777', DETAIL = TG_OP, HINT = 'Another note.', TABLE = 'orders'; END IF;
  IF NEW.note = 'loud' THEN RAISE NOTICE 'order % of %', NEW.id, NEW.tenant_id USING ERRCODE = '01777'; END IF;
  NEW.touched := concat_ws(' ', NEW.touched, TG_OP, CASE WHEN TG_OP = 'UPDATE' THEN OLD.version END); RETURN NEW; END $$;
CREATE FUNCTION log_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_OP = 'DELETE' THEN PERFORM write_log(OLD.tenant_id, OLD.id, TG_NAME || ' ' || TG_OP); ELSE PERFORM write_log(NEW.tenant_id, NEW.id, TG_NAME || ' ' || TG_OP || ' ' || NEW.version); END IF;
  RETURN NULL; END $$;
CREATE FUNCTION log_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM write_log(tenant_id, min(id), TG_OP || ' of ' || count(*) || ' rows') FROM added GROUP BY tenant_id ORDER BY tenant_id; RETURN NULL; END $$;
CREATE FUNCTION log_item() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM write_log(OLD.tenant_id, OLD.order_id, 'item ' || OLD.n); RETURN OLD; END $$;
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT FROM orders WHERE tenant_id = NEW.tenant_id AND id = NEW.id AND note = 'late') THEN RAISE 'too late' USING ERRCODE = '23514', CONSTRAINT = 'late'; END IF; RETURN NULL; END $$;
CREATE TRIGGER shape BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION shape();
CREATE TRIGGER log_row AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION log_row();
CREATE TRIGGER log_always AFTER UPDATE OF note ON orders FOR EACH ROW WHEN (OLD.note IS DISTINCT FROM NEW.note) EXECUTE FUNCTION log_row();
CREATE TRIGGER log_replica AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION log_row();
CREATE TRIGGER log_added AFTER INSERT ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION log_statement();
CREATE TRIGGER log_changed AFTER UPDATE ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION log_statement();
CREATE TRIGGER log_item BEFORE DELETE ON items FOR EACH ROW EXECUTE FUNCTION log_item();
CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT OR UPDATE ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_late();
ALTER TABLE orders ENABLE ALWAYS TRIGGER log_always;
ALTER TABLE orders ENABLE REPLICA TRIGGER log_replica;
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders FORCE ROW LEVEL SECURITY;
CREATE POLICY all_of_them ON orders TO app USING (true) WITH CHECK (note IS DISTINCT FROM 'forbidden');
CREATE POLICY see ON orders FOR SELECT TO clerk USING (tenant_id = nullif(current_setting('shop.tenant', true), '')::bigint AND note NOT LIKE 'secret%');
CREATE POLICY add ON orders FOR INSERT TO clerk WITH CHECK (tenant_id = nullif(current_setting('shop.tenant', true), '')::bigint);
CREATE POLICY change ON orders FOR UPDATE TO clerk USING (version < 3);
CREATE POLICY open ON orders AS RESTRICTIVE TO clerk USING (EXISTS (SELECT FROM tenants t WHERE t.tenant_id = orders.tenant_id AND t.name <> 'closed'));
GRANT ALL ON ALL TABLES IN SCHEMA public TO app, clerk`;
const ROWS = `INSERT INTO tenants SELECT i, CASE WHEN i % 4 = 0 THEN 'closed' ELSE 'open' END FROM generate_series(1, ${TENANTS}) i`;
/** A function that only functions call is nobody's to copy. */
const CALLED = /CREATE FUNCTION write_log[\s\S]*?\$\$;/.exec(BEHAVIOUR)?.[0] as string;

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, pool: { lanes: 'auto' } });
  const [home, other] = s.clusters;
  await withClient(home.url('postgres'), async (c) => {
    await c.query(`CREATE ROLE clerk LOGIN PASSWORD 'secret'; GRANT clerk TO app`);
    await c.query('CREATE DATABASE plain');
    const { rows } = await c.query<{ v: string }>(`SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'clerk'`);
    await withClient(other.url('postgres'), (there) =>
      there.query(`CREATE ROLE clerk LOGIN PASSWORD '${rows[0]?.v}'; GRANT clerk TO app`),
    );
  });
  // The same on a server which has everything for ever.
  await withClient(home.url('plain'), (c) => c.query(`${SHOP_SCHEMA}; ${BEHAVIOUR}; ${ROWS}`));
  await s.onShard(0, `${BEHAVIOUR}; ${ROWS}`);
  await s.onShard(1, `DROP TABLE items, orders, tenants; SET check_function_bodies = off; ${CALLED}`);
  const registry = new Registry(s.catalog, 'test');
  const table = { schema: 'public', table: 'order_log' };
  await registry.addTable({ table, keyspace: 'main', keyColumns: ['tenant_id'] });
  await s.reloaded();
});
afterAll(() => s.stop());

/** What somebody hears who sends a statement. */
type Heard = Readonly<Record<string, unknown>>;

/** One statement, or one of a unit: its text, and parameters when it goes by the extended protocol. */
type Asked = readonly [sql: string, ...values: unknown[]];

/** The range has changed hands under a transaction: its client is to do it once more. */
const MOVED = '40001';

/** Says the same to the proxy and to a PostgreSQL that has all rows, and compares what it hears. */
class Twin {
  readonly differing: unknown[] = [];
  #asked = 0;

  private constructor(
    readonly proxy: pg.Client,
    readonly plain: pg.Client,
  ) {}

  static async connect(user: string): Promise<Twin> {
    const at = (port: string | number, database: string) => `postgres://${user}:secret@127.0.0.1:${port}/${database}`;
    const proxy = await s.connect({ connectionString: at(s.proxy.port, 'shop') });
    const { port } = new URL(s.clusters[0].url('plain'));
    const plain = new pg.Client({ connectionString: at(port, 'plain') });
    await plain.connect();
    return new Twin(proxy, plain);
  }

  get asked(): number {
    return this.#asked;
  }

  /** Statements that belong together. */
  async ask(...unit: readonly Asked[]): Promise<void> {
    let here = await hearAll(this.proxy, unit);
    while (here.some((one) => one.code === MOVED)) {
      await this.proxy.query('ROLLBACK');
      here = await hearAll(this.proxy, unit);
    }
    const there = await hearAll(this.plain, unit);
    this.#asked += unit.length;
    for (const [i, asked] of unit.entries())
      if (JSON.stringify(here[i]) !== JSON.stringify(there[i]))
        this.differing.push({ asked, proxy: here[i], plain: there[i] });
  }
}

async function hearAll(client: pg.Client, unit: readonly Asked[]): Promise<Heard[]> {
  const heard: Heard[] = [];
  for (const one of unit) heard.push(await hear(client, one));
  return heard;
}

async function hear(client: pg.Client, [sql, ...values]: Asked): Promise<Heard> {
  const notices: unknown[] = [];
  const listen = ({ code, message, detail, where }: pg.DatabaseError | { [key: string]: unknown }) =>
    notices.push([code, message, detail, where]);
  client.on('notice', listen as never);
  try {
    const { command, rowCount, rows, fields } = await client.query(sql, values.length === 0 ? undefined : values);
    const lines = rows.map((row) => JSON.stringify(row));
    return {
      command,
      rowCount,
      // Rows without an order come in any.
      rows: /ORDER BY/.test(sql) ? lines : lines.sort(),
      fields: fields.map(({ name, dataTypeID }) => [name, dataTypeID]),
      notices,
    };
  } catch (error) {
    const { code, message, detail, hint, where, schema, table, constraint } = error as pg.DatabaseError;
    return { code, message, detail, hint, where, schema, table, constraint, notices };
  } finally {
    client.off('notice', listen as never);
  }
}

const ORDER = 'INSERT INTO orders (tenant_id, id, note) VALUES ($1, $2, $3)';
const LOG = 'SELECT * FROM order_log WHERE tenant_id = $1 AND order_id BETWEEN $2 AND $2 + 9 ORDER BY order_id, no';

/** All that somebody does with ten orders of a tenant who may see all of them. */
async function asApp(twin: Twin, tenant: number, id: number): Promise<void> {
  const t = tenant;
  await twin.ask([`${ORDER} RETURNING *`, t, id, 'a']);
  await twin.ask([
    `INSERT INTO orders (tenant_id, id, note) VALUES (${t}, ${id + 1}, 'b'), (${t}, ${id + 2}, 'skip'), (${t}, ${id + 3}, 'c') RETURNING id, touched`,
  ]);
  await twin.ask([`${ORDER} RETURNING *`, t, id + 2, 'skip']);
  for (const note of ['bad', 'forbidden', 'loud']) await twin.ask([ORDER, t, id + 4, note]);
  await twin.ask([ORDER, t, id, 'there already']);
  await twin.ask([
    `UPDATE orders SET version = version + 1 WHERE tenant_id = ${t} AND id BETWEEN ${id} AND ${id + 9} RETURNING *`,
  ]);
  await twin.ask(['UPDATE orders SET note = $3 WHERE tenant_id = $1 AND id = $2 RETURNING touched', t, id, 'changed']);
  await twin.ask([
    `${ORDER} ON CONFLICT (tenant_id, id) DO UPDATE SET note = excluded.note RETURNING *`,
    t,
    id + 1,
    'again',
  ]);
  await twin.ask([`${ORDER} ON CONFLICT DO NOTHING`, t, id + 1, 'never']);
  await twin.ask([
    `MERGE INTO orders o USING (SELECT ${t}::bigint AS t, i AS id FROM generate_series(${id + 3}, ${id + 5}) i) n ON o.tenant_id = ${t} AND o.id = n.id
       WHEN MATCHED THEN UPDATE SET version = o.version + 10 WHEN NOT MATCHED THEN INSERT (tenant_id, id, note) VALUES (${t}, n.id, 'merged') RETURNING merge_action(), o.*`,
  ]);
  await twin.ask(
    ['BEGIN'],
    [`UPDATE orders SET note = 'kept' WHERE tenant_id = ${t} AND id = ${id + 3}`],
    ['SAVEPOINT a'],
    [ORDER, t, id + 6, 'bad'],
    ['SELECT 1'],
    ['ROLLBACK TO a'],
    [ORDER, t, id + 6, 'good'],
    ['COMMIT'],
  );
  await twin.ask(['BEGIN'], [ORDER, t, id + 7, 'late'], ['COMMIT']);
  await twin.ask(['BEGIN'], [ORDER, t, id + 7, 'late'], ['SET CONSTRAINTS ALL IMMEDIATE'], ['ROLLBACK']);
  await twin.ask([ORDER, t, id + 7, 'late']);
  await twin.ask([`INSERT INTO items VALUES (${t}, ${id}, 1, 1), (${t}, ${id}, 2, 1)`]);
  await twin.ask(['DELETE FROM orders WHERE tenant_id = $1 AND id = $2 RETURNING *', t, id]);
  await twin.ask([
    `WITH gone AS (DELETE FROM orders WHERE tenant_id = ${t} AND id = ${id + 6} RETURNING *)
       INSERT INTO orders (tenant_id, id, note, version) SELECT ${t}, id + 2, note, version + 1 FROM gone WHERE tenant_id = ${t} RETURNING *`,
  ]);
  await twin.ask(
    ['BEGIN'],
    ['SET LOCAL ROLE clerk'],
    [`SET LOCAL shop.tenant = '${t}'`],
    [`SELECT id FROM orders WHERE tenant_id = ${t} AND id BETWEEN ${id} AND ${id + 9} ORDER BY id`],
    ['DELETE FROM orders WHERE tenant_id = $1', t],
    ['COMMIT'],
  );
  await twin.ask([LOG, t, id]);
}

/** The same of somebody whom policies keep from most. */
async function asClerk(twin: Twin, tenant: number, id: number): Promise<void> {
  const t = tenant;
  await twin.ask([`SET shop.tenant = '${t}'`]);
  await twin.ask([`${ORDER} RETURNING id, note, touched`, t, id, 'own']);
  await twin.ask([`${ORDER} RETURNING id`, t, id + 1, 'secret']);
  await twin.ask([ORDER, t, id + 1, 'secret']);
  await twin.ask([ORDER, (t % TENANTS) + 1, id + 2, 'not own']);
  for (let n = 0; n < 4; n++)
    await twin.ask([
      `UPDATE orders SET version = version + 1 WHERE tenant_id = ${t} AND id >= ${id} RETURNING id, version, touched`,
    ]);
  await twin.ask(['DELETE FROM orders WHERE tenant_id = $1 AND id = $2', t, id]);
  await twin.ask([`UPDATE orders SET note = 'whose' WHERE tenant_id = ${(t % TENANTS) + 1}`]);
  await twin.ask([
    `SELECT id, note, version FROM orders WHERE tenant_id = ${t} AND id BETWEEN ${id} AND ${id + 9} ORDER BY id`,
  ]);
  // Of all shards.
  await twin.ask([`SELECT tenant_id, id, note FROM orders WHERE id BETWEEN ${id} AND ${id + 9}`]);
  await twin.ask([LOG, t, id]);
}

/** Goes through the tenants whom nobody else has, until it is told to stop. */
class Client {
  #stopped = false;
  rounds = 0;
  readonly #running: Promise<void>;

  constructor(
    readonly twin: Twin,
    readonly tenants: readonly number[],
    ask: typeof asApp,
  ) {
    this.#running = (async () => {
      for (; !this.#stopped && twin.differing.length === 0; this.rounds++)
        await ask(twin, tenants[this.rounds % tenants.length] as number, 1000 + this.rounds * 10);
    })();
  }

  /** Until it has gone through all of them once more, from now on. */
  async allAgain(): Promise<void> {
    const before = this.rounds;
    await waitFor(() => this.rounds > before + this.tenants.length || this.twin.differing.length > 0, {
      what: 'all that a client does',
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
    await this.twin.plain.end();
  }
}

async function begin(wayBackMs: number): Promise<{ id: bigint; end(): Promise<void> }> {
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
  const spec = {
    kind: 'move',
    keyspace: keyspace.name,
    lo: [BigInt(SPLIT)],
    hi: null,
    from: 's1' as ShardName,
    to: 's2' as ShardName,
  } as const;
  const id = await createMigration(s.catalog.pool, keyspace, spec, { actor: 'test' });
  const stop = new AbortController();
  const logger = pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2));
  const running = new Migrator({ catalog: s.catalog, logger, pollMs: 100, wayBackMs, judgeReach }).run(stop.signal);
  return {
    id,
    async end() {
      stop.abort();
      await running;
    },
  };
}

async function until(id: bigint, wanted: MigrationState): Promise<void> {
  const load = () => loadMigration(s.catalog.pool, id);
  const isOver = ({ state }: MigrationRow) => state === wanted || RESTING_STATES.includes(state);
  await waitFor(async () => isOver(await load()), { what: `the migration to be ${wanted}` });
  const { state, error } = await load();
  expect([state, error]).toEqual([wanted, null]);
}

/** All rows, one line each, in order. */
async function allRows(urls: readonly string[]): Promise<string[]> {
  const lines = await Promise.all(
    urls.map((url) =>
      withClient(url, async (c) => {
        const { rows } = await c.query<{ line: string }>(
          `SELECT 'order ' || o::text AS line FROM orders o UNION ALL SELECT 'item ' || i::text FROM items i UNION ALL SELECT 'log ' || l::text FROM order_log l
           UNION ALL SELECT 'tenant ' || t::text FROM tenants t`,
        );
        return rows.map(({ line }) => line);
      }),
    ),
  );
  return lines.flat().sort();
}

it('triggers and policies do for clients what they would in one PostgreSQL, before, while and after their rows move, there and back', async () => {
  const [home, other] = s.clusters.map((cluster) => cluster.url('shop')) as [string, string];
  const plain = s.clusters[0].url('plain');
  // Nobody else's tenants, on either side of the cut; two of them are closed.
  const clients = [
    new Client(await Twin.connect('app'), [1, 7, 4, 8], asApp),
    new Client(await Twin.connect('app'), [9, 2, 10], asApp),
    new Client(await Twin.connect('clerk'), [3, 11, 12], asClerk),
  ];
  const allAgain = () => Promise.all(clients.map((client) => client.allAgain()));
  try {
    await allAgain();
    const first = await begin(3_600_000);
    await until(first.id, 'reversing');
    await allAgain();
    await requestEnd(s.catalog.pool, first.id, 'rollback', 'test');
    await until(first.id, 'rolled_back');
    await allAgain();
    await first.end();
    const second = await begin(0);
    await until(second.id, 'done');
    await allAgain();
    await second.end();
  } finally {
    await Promise.all(clients.map((client) => client.stop()));
  }
  expect(clients.flatMap(({ twin }) => twin.differing)).toEqual([]);
  expect(await allRows([home, other])).toEqual(await allRows([plain]));
  expect((await allRows([other])).filter((line) => /^log .*log_row UPDATE/.test(line)).length).toBeGreaterThan(10);
  expect((await allRows([plain])).filter((line) => /log_replica/.test(line))).toEqual([]);
});
