import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EMPTY_METADATA, loadMetadata, MetadataCache } from '../../../proxy/router/metadata.js';
import { startTestCluster } from '../../support/cluster.js';

let pool: pg.Pool;

beforeAll(async () => {
  const cluster = await startTestCluster();
  pool = new pg.Pool({ connectionString: cluster.url() });
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

describe('the metadata cache', () => {
  it('serves the last snapshot until it is dropped, and has the same version while nothing changes', async () => {
    const cache = new MetadataCache(
      () => pool,
      (error) => expect.unreachable(String(error)),
    );
    expect(cache.current()).toBe(EMPTY_METADATA);
    const first = await cache.load();
    expect(cache.current()).toBe(first);
    await pool.query('CREATE TABLE later (x int)');
    expect((await cache.load()).resolveRelation(null, 'later', ['public'])).toBeNull();
    cache.drop();
    const second = await cache.load();
    expect(second.resolveRelation(null, 'later', ['public'])).not.toBeNull();
    expect(second.version).not.toBe(first.version);
    cache.drop();
    expect(await cache.load()).toBe(second);
  });
});
