import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadMetadata, type Relation, schemaSignature } from '../../../proxy/router/metadata.js';
import { reachOf, type Use } from '../../../proxy/router/reach.js';
import { registryOf } from '../../../proxy/router/registry.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let url: string;
let pool: pg.Pool;

beforeAll(async () => {
  const cluster = await startTestCluster();
  url = cluster.url();
  pool = new pg.Pool({ connectionString: url });
  // A pool has "ended" before its connections have: the server may still tell them that it stops.
  pool.on('error', () => undefined);
  await pool.query(
    `
    CREATE SCHEMA app;
    CREATE TABLE public.t (a int, b text, gone int, c int);
    ALTER TABLE public.t DROP COLUMN gone;
    CREATE TABLE app.t (x int);
    CREATE VIEW app.v AS SELECT * FROM t;
    CREATE TABLE p (k int) PARTITION BY RANGE (k);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (k);
    CREATE TABLE p11 PARTITION OF p1 DEFAULT;
    CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1 * 2;
    CREATE FUNCTION mixed(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;
    CREATE FUNCTION mixed(text) RETURNS int STABLE LANGUAGE sql RETURN 1;
    CREATE FUNCTION app.lower(int) RETURNS int VOLATILE LANGUAGE sql RETURN $1;
    CREATE OPERATOR public.## (LEFTARG = int, RIGHTARG = text, FUNCTION = app_op);`.replace(
      'CREATE OPERATOR',
      `CREATE FUNCTION app_op(int, text) RETURNS int VOLATILE LANGUAGE sql RETURN $1;
    CREATE OPERATOR`,
    ),
  );
});

afterAll(() => pool.end());

describe('metadata of a server', () => {
  it('has no triggers of migrations, nor while they go, and their schema with them', async () => {
    await pool.query(`CREATE SCHEMA foreshard_shard; CREATE TABLE guarded (a int);
      CREATE FUNCTION foreshard_shard.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
      CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
      CREATE TRIGGER guard BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION foreshard_shard.guard();
      CREATE TRIGGER own BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION own()`);
    const client = await pool.connect();
    const fires = async () => (await loadMetadata(client)).resolveRelation('public', 'guarded', [])?.fires;
    try {
      expect(await fires()).toEqual(['own']);
      // A query that sees what was there before, as one does that has just begun.
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT');
      await pool.query('DROP SCHEMA foreshard_shard CASCADE');
      expect(await fires()).toEqual(['own']);
    } finally {
      await client.query('ROLLBACK');
      client.release();
    }
    await pool.query('DROP TABLE guarded; DROP FUNCTION own');
  });

  it('finds relations as search_path does', async () => {
    const m = await loadMetadata(pool);
    expect(m.resolveRelation(null, 't', ['app', 'public'])).toMatchObject({ schema: 'app', columns: ['x'] });
    expect(m.resolveRelation(null, 't', ['public'])).toMatchObject({
      schema: 'public',
      columns: ['a', 'b', 'c'],
      kind: 'r',
    });
    expect(m.resolveRelation('app', 'v', [])).toMatchObject({ kind: 'v' });
    expect(m.resolveRelation(null, 'pg_class', ['public'])).toMatchObject({ schema: 'pg_catalog' });
    expect(m.resolveRelation(null, 'nothing', ['public'])).toBeNull();
    expect(
      m
        .resolveRelation('public', 'p11', [])
        ?.parents.map((p) => p.table)
        .sort(),
    ).toEqual(['p', 'p1']);
  });

  it('judges functions by all their overloads, and knows operators that are not immutable', async () => {
    const m = await loadMetadata(pool);
    expect(m.userFunction(null, 'twice', ['public'])?.immutable).toBe(true);
    expect(m.userFunction(null, 'mixed', ['public'])?.immutable).toBe(false);
    expect(m.userFunction(null, 'lower', ['public'])).toBeNull();
    expect(m.userFunction(null, 'lower', ['public', 'app'])?.immutable).toBe(false);
    expect([...m.volatileOperators]).toEqual(['##']);
  });
});

describe('what changing a table runs', () => {
  beforeAll(() =>
    pool.query(`
      CREATE FUNCTION one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
      CREATE FUNCTION two() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
      CREATE FUNCTION is_due(int) RETURNS bool LANGUAGE sql RETURN $1 > 0;
      CREATE TABLE fired (a int DEFAULT mixed(1), b text CHECK (lower(b) <> ''));
      CREATE TRIGGER i AFTER INSERT ON fired FOR EACH ROW WHEN (is_due(NEW.a)) EXECUTE FUNCTION one();
      CREATE TRIGGER d AFTER DELETE ON fired FOR EACH STATEMENT EXECUTE FUNCTION one();
      CREATE TRIGGER u BEFORE UPDATE OF a OR TRUNCATE ON fired EXECUTE FUNCTION two();
      CREATE TRIGGER t BEFORE UPDATE ON fired FOR EACH ROW WHEN (mixed(NEW.a) = 1 AND upper(NEW.b) = 'A') EXECUTE FUNCTION suppress_redundant_updates_trigger();
      CREATE TABLE boughs (id int PRIMARY KEY, parent int REFERENCES boughs ON DELETE SET NULL);
      CREATE TABLE leaves (bough int REFERENCES boughs ON DELETE CASCADE);
      CREATE TRIGGER u AFTER UPDATE ON boughs FOR EACH ROW EXECUTE FUNCTION one();
      CREATE TRIGGER d AFTER DELETE ON leaves FOR EACH ROW EXECUTE FUNCTION two()`),
  );
  afterAll(() => pool.query('DROP TABLE fired, boughs, leaves'));

  const NOBODYS = registryOf({ keyspaces: new Map(), shardedTables: new Map(), referenceTables: new Map() });
  const run = async (table: string, use: Use): Promise<string[]> => {
    const m = await loadMetadata(pool);
    return [...reachOf(m, NOBODYS).functionsRun(m.resolveRelation(null, table, ['public']) as Relation, use)].sort();
  };

  const ALWAYS = ['lower', 'mixed'];
  it.each([
    ['read', []],
    ['insert', [...ALWAYS, 'is_due', 'one']],
    ['update', [...ALWAYS, 'suppress_redundant_updates_trigger', 'two', 'upper']],
    ['upsert', [...ALWAYS, 'is_due', 'one', 'suppress_redundant_updates_trigger', 'two', 'upper']],
    ['delete', [...ALWAYS, 'one']],
    ['change', [...ALWAYS, 'is_due', 'one', 'suppress_redundant_updates_trigger', 'two', 'upper']],
  ] as const)('to %s', async (use, expected) => {
    const own = (await run('fired', use)).filter((f) => !['text', 'int4eq', 'texteq', 'textne'].includes(f));
    expect(own).toEqual([...expected].sort());
  });

  it.each([
    ['boughs', 'insert', []],
    ['boughs', 'update', ['one']],
    ['boughs', 'delete', ['one', 'two']],
    ['leaves', 'delete', ['two']],
  ] as const)('behind foreign keys: %s, to %s', async (table, use, expected) => {
    expect(await run(table, use)).toEqual(expected);
  });
});

it('knows the functions of generated columns, indexes, partition keys and the domains in types', async () => {
  const names = [
    'of_default',
    'of_domain',
    'of_base',
    'of_generated',
    'of_index',
    'of_predicate',
    'of_key',
    'of_check',
  ];
  await pool.query(`
    ${names.map((f) => `CREATE FUNCTION ${f}(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;`).join('\n')}
    CREATE FUNCTION of_class(int, int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1 - $2;
    CREATE OPERATOR CLASS own FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 of_class(int, int);
    CREATE DOMAIN base AS int CHECK (of_base(VALUE) > 0);
    CREATE DOMAIN derived AS base DEFAULT of_default(1) CHECK (of_domain(VALUE) > 0);
    CREATE TYPE pair AS (x derived);
    CREATE TABLE carries (a int, d derived);
    CREATE TABLE carries_some (a derived[], p pair[]);
    CREATE TABLE expresses (a int CHECK (of_check(a) > 0), g int GENERATED ALWAYS AS (of_generated(a)) STORED);
    CREATE INDEX ON expresses ((of_index(a))) WHERE of_predicate(a) > 0;
    CREATE INDEX ON carries (a own);
    CREATE TABLE cut (a int) PARTITION BY RANGE (of_key(a))`);
  const m = await loadMetadata(pool);
  const of = (table: string) =>
    (m.resolveRelation(null, table, ['public'])?.fires ?? []).filter((f) => f.startsWith('of_'));
  expect(of('carries')).toEqual(['of_base', 'of_class', 'of_default', 'of_domain']);
  expect(of('carries_some')).toEqual(['of_base', 'of_default', 'of_domain']);
  expect(of('expresses')).toEqual(['of_check', 'of_generated', 'of_index', 'of_predicate']);
  expect(of('cut')).toEqual(['of_key']);
});

describe('the signature', () => {
  /** Each changes what is read, or how it is judged. */
  it.each([
    'CREATE TABLE later (x int DEFAULT 1)',
    'ALTER TABLE later RENAME x TO y',
    'ALTER TABLE later ALTER y SET DEFAULT 2',
    'ALTER TABLE later ADD CHECK (y > 0)',
    'CREATE VIEW seen AS SELECT y FROM later',
    'CREATE OR REPLACE VIEW seen AS SELECT y FROM later WHERE y > now()::text::int',
    'CREATE SEQUENCE loose',
    'ALTER SEQUENCE loose OWNED BY later.y',
    'CREATE INDEX ON later (y)',
    'CREATE TABLE below () INHERITS (later)',
    'ALTER TABLE below NO INHERIT later',
    'CREATE POLICY p ON later USING (y > 1)',
    'ALTER POLICY p ON later USING (y > 2)',
    'CREATE RULE r AS ON INSERT TO below DO ALSO DELETE FROM later',
    'CREATE FUNCTION fresh() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$',
    'CREATE OR REPLACE FUNCTION fresh() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$',
    'CREATE TRIGGER t BEFORE INSERT ON later FOR EACH ROW EXECUTE FUNCTION fresh()',
    'DROP TRIGGER t ON later',
    'CREATE SCHEMA elsewhere',
    'ALTER TABLE later SET SCHEMA elsewhere',
    'ALTER TABLE elsewhere.later DROP COLUMN y CASCADE',
    'DROP SCHEMA elsewhere CASCADE',
    'CREATE DOMAIN later_on AS int',
    'ALTER DOMAIN later_on SET DEFAULT 1',
    'ALTER DOMAIN later_on ADD CHECK (VALUE > 0)',
  ])('changes with %s', async (ddl) => {
    const before = await schemaSignature(pool);
    await pool.query(ddl);
    expect(await schemaSignature(pool)).not.toBe(before);
  });

  it('stays while only rows, statistics and temporary tables change', async () => {
    await pool.query('CREATE TABLE filled (x int PRIMARY KEY)');
    const before = await schemaSignature(pool);
    const { version } = await loadMetadata(pool);
    const client = await pool.connect();
    await client.query('CREATE TEMP TABLE mine (x serial PRIMARY KEY, y int CHECK (y > 0) DEFAULT 1)');
    await client.query('INSERT INTO filled SELECT generate_series(1, 1000)');
    await client.query('VACUUM ANALYZE');
    expect(await schemaSignature(pool)).toBe(before);
    await client.query('DROP TABLE mine');
    client.release();
    expect(await schemaSignature(pool)).toBe(before);
    expect((await loadMetadata(pool)).version).toBe(version);
  });
});

it('is the same object while nothing changes', async () => {
  const first = await loadMetadata(pool);
  expect(await loadMetadata(pool, first)).toBe(first);
  await pool.query('CREATE TABLE one_more (x int)');
  const second = await loadMetadata(pool, first);
  expect(second.version).not.toBe(first.version);
  expect(second.resolveRelation(null, 'one_more', ['public'])).not.toBeNull();
});

describe('reading while others change the schema', () => {
  const locking = async (sql: string, use: (client: pg.Client) => Promise<void>) => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    try {
      await client.query(`BEGIN; ${sql}`);
      await use(client);
    } finally {
      await client.end();
    }
  };

  it('waits for no lock on a table, whatever depends on it', async () => {
    await pool.query(
      `CREATE TABLE held (x int CHECK (abs(x) > 0) DEFAULT length('x')); CREATE VIEW of_held AS SELECT upper(x::text) AS x, count(*) FROM held GROUP BY x`,
    );
    await locking('LOCK TABLE held IN ACCESS EXCLUSIVE MODE', async () => {
      const m = await loadMetadata(pool);
      expect(m.resolveRelation(null, 'of_held', ['public'])?.calls).toEqual(expect.arrayContaining(['upper', 'count']));
      expect(m.resolveRelation(null, 'held', ['public'])?.fires).toEqual(expect.arrayContaining(['abs', 'length']));
    });
  });

  it('begins again when something that it describes is dropped meanwhile', async () => {
    await pool.query(
      `CREATE TABLE going (x int); CREATE FUNCTION of_going() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT x FROM going; END`,
    );
    await locking('DROP TABLE going CASCADE', async (client) => {
      const reading = loadMetadata(pool);
      reading.catch(() => undefined);
      await waitFor(
        async () =>
          (await client.query(`SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'`)).rowCount !== 0,
        { what: 'the reading to wait' },
      );
      await client.query('COMMIT');
      expect((await reading).userFunction(null, 'of_going', ['public'])).toBeNull();
    });
  });
});
