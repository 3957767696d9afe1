import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { parseMetadata } from '../../../proxy/router/metadata.js';
import { Router } from '../../../proxy/router/router.js';
import { ROUTES } from './routes.js';
import { METADATA, makeRouter, SESSION, soleTopology, spreadTopology, summary, texts } from './setting.js';

beforeAll(() => loadModule());

const spread = spreadTopology();
const sole = soleTopology();
const router = makeRouter(() => spread);

function go(sql: string, params: (string | null)[] = [], topology = spread, through = router): string {
  const analyzed = through.analyze(Buffer.from(sql), SESSION);
  expect(analyzed.syntaxError, sql).toBe(false);
  expect(analyzed.statements.length).toBe(1);
  return summary(through.route(analyzed, 0, texts(...params), topology));
}

describe('routes on three shards', () => {
  it('has at least 200 statements', () => expect(ROUTES.length).toBeGreaterThan(200));

  it.each(ROUTES.map(([sql, expected, ...params]) => ({ sql, expected, params })))(
    '$sql → $expected',
    ({ sql, expected, params }) => {
      const found = go(sql, params);
      if (expected.startsWith('refused')) expect(found.slice(0, expected.length)).toBe(expected);
      else expect(found).toBe(expected);
    },
  );

  it('sends everything to the one shard that has everything', () => {
    const through = makeRouter(() => sole);
    for (const [sql, , ...params] of ROUTES) {
      if (/countries|currencies|units/.test(sql)) continue; // reference tables have copies elsewhere here
      const found = go(sql, params, sole, through);
      expect(`${sql}: ${found}`).toMatch(/: (a|any a b c)$/);
    }
  });
});

describe('what a plan says besides the route', () => {
  const planOf = (sql: string) => {
    const analyzed = router.analyze(Buffer.from(sql), SESSION);
    const plan = analyzed.statements[0]?.plan;
    if (!plan) throw new Error(`no plan for ${sql}`);
    return plan;
  };

  it.each([
    ['SELECT * FROM orders', 'read', 'SELECT'],
    ['SELECT * FROM orders FOR SHARE', 'write', 'SELECT'],
    ["SELECT nextval('s')", 'write', 'SELECT'],
    ['SELECT tenant_total(5)', 'write', 'SELECT'],
    ['WITH x AS (DELETE FROM orders RETURNING 1) SELECT * FROM x', 'write', 'SELECT'],
    ['SELECT now(), lower(note), count(*) FROM orders', 'read', 'SELECT'],
    ['INSERT INTO orders (tenant_id) VALUES (1)', 'write', 'INSERT'],
    ['MERGE INTO orders o USING items i ON false WHEN MATCHED THEN DO NOTHING', 'write', 'MERGE'],
    ['EXPLAIN DELETE FROM orders', 'read', 'EXPLAIN'],
    ['EXPLAIN ANALYZE DELETE FROM orders', 'write', 'EXPLAIN'],
    ['COPY settings TO STDOUT', 'read', 'COPY'],
    ['COPY settings FROM STDIN', 'write', 'COPY'],
    ['TRUNCATE settings', 'write', 'TRUNCATE TABLE'],
    ['CREATE UNIQUE INDEX i ON orders (id)', 'ddl', 'CREATE INDEX'],
    ['DROP MATERIALIZED VIEW x', 'ddl', 'DROP MATERIALIZED VIEW'],
    ['ROLLBACK TO x', 'utility', 'ROLLBACK'],
    ['SHOW ALL', 'utility', 'SHOW'],
    ['RESET x', 'utility', 'RESET'],
    ['DISCARD TEMP', 'utility', 'DISCARD TEMP'],
    ['MOVE 5 c', 'utility', 'MOVE'],
  ])('%s is a %s with the tag %s', (sql, kind, command) => {
    expect(planOf(sql)).toMatchObject({ kind, command });
  });

  it.each([
    ['CREATE TEMP TABLE scratch (x int)', 'temporary table'],
    ['SELECT 1 AS x INTO TEMP scratch', 'temporary table'],
    ['CREATE TEMP VIEW v AS SELECT 1', 'temporary table'],
    ['PREPARE p AS SELECT 1', null],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'WITH HOLD cursor'],
    ['DECLARE c CURSOR FOR SELECT 1', null],
    ["LOAD 'x'", 'LOAD'],
    ['SELECT pg_advisory_lock(5)', 'session advisory lock'],
    ['SELECT pg_advisory_xact_lock(5)', null],
    ["SELECT set_config('x.y', 'z', false)", null],
    ["SELECT set_config('x.y', z, false) FROM v", null],
    ["SELECT set_config(x, 'z', false) FROM v", 'set_config'],
    ["SELECT set_config('x.y', 'z', true)", null],
    ["SELECT set_config('x.y', 'z', $1)", 'set_config'],
    ['SELECT setseed(0.5)', 'setseed'],
    ['SELECT pg_export_snapshot()', null],
    ['SELECT lo_open(1, 2)', null],
    ['SELECT pg_backend_pid()', 'pg_backend_pid'],
    ['SELECT pg_backend_pid(), pg_advisory_lock(5)', 'session advisory lock'],
    ['SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid()', null],
    ['SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY', null],
    ["SELECT nextval('s')", null],
    ['INSERT INTO orders (tenant_id) VALUES (5)', null],
    ['SET x.y = 1', null],
  ])('%s pins: %s', (sql, pin) => {
    expect(planOf(sql).pin).toBe(pin);
  });

  it.each(['SELECT lastval()', "SELECT 1 WHERE currval('s') = 5"])('%s depends on the connection’s past', (sql) => {
    expect(planOf(sql).asksSequences).toBe('itself');
  });

  it.each([
    ['BEGIN ISOLATION LEVEL SERIALIZABLE', { kind: 'begin' }],
    ['START TRANSACTION', { kind: 'begin' }],
    ['END', { kind: 'commit', chain: false }],
    ['COMMIT AND CHAIN', { kind: 'commit', chain: true }],
    ['ABORT AND CHAIN', { kind: 'rollback', chain: true }],
    ['SAVEPOINT "A b"', { kind: 'savepoint', name: 'A b' }],
    ['RELEASE Sp', { kind: 'release', name: 'sp' }],
    ['ROLLBACK TO SAVEPOINT sp', { kind: 'rollback-to', name: 'sp' }],
    ["SET search_path = 'a', b", { kind: 'set', name: 'search_path', local: false, reset: false }],
    ['SET LOCAL work_mem = 5', { kind: 'set', name: 'work_mem', local: true, reset: false }],
    ['SET TIME ZONE LOCAL', { kind: 'set', name: 'timezone', local: false, reset: true }],
    ['SET ROLE x', { kind: 'set', name: 'role', local: false, reset: false }],
    ['SET SESSION AUTHORIZATION x', { kind: 'set', name: 'session_authorization', local: false, reset: false }],
    ['RESET ALL', { kind: 'set', name: null, local: false, reset: true }],
    ['RESET work_mem', { kind: 'set', name: 'work_mem', local: false, reset: true }],
    ['SET TRANSACTION READ ONLY', { kind: 'set', name: 'transaction', local: true, reset: false }],
    ["SET TRANSACTION SNAPSHOT 'x'", null],
    [
      'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
      { kind: 'set-many', settings: [{ name: 'default_transaction_read_only', value: 'on' }] },
    ],
    ['DISCARD ALL', { kind: 'discard-all' }],
    ['DISCARD PLANS', null],
    ['DEALLOCATE p', { kind: 'deallocate', name: 'p' }],
    ['DEALLOCATE ALL', { kind: 'deallocate', name: null }],
    ['SELECT 1', null],
  ])('%s has the effect %j', (sql, effect) => {
    expect(planOf(sql).effect).toEqual(effect);
  });

  it('touches the keys it names, and everything when it names none', () => {
    const touches = (sql: string) => {
      const route = router.route(router.analyze(Buffer.from(sql), SESSION), 0, null, spread);
      return route.kind === 'refused' ? null : route.touches;
    };
    expect(touches('SELECT * FROM orders WHERE tenant_id IN (150, 151)')).toEqual([
      { keyspace: 'shop', key: [150n], position: [150n] },
      { keyspace: 'shop', key: [151n], position: [151n] },
    ]);
    expect(touches('SELECT * FROM orders')).toEqual([{ keyspace: 'shop', position: null }]);
    expect(touches('SELECT 1')).toEqual([]);
    const whole = makeRouter(() => sole);
    const route = whole.route(whole.analyze(Buffer.from('DROP OWNED BY app'), SESSION), 0, null, sole);
    expect(route).toMatchObject({ kind: 'shard', shard: 'a', writes: true });
    expect(route.kind === 'shard' && route.touches.length).toBe(sole.keyspaces.size);
  });
});

describe('the template cache', () => {
  it('parses a template once, whatever its literals and parameters', () => {
    const through = makeRouter(() => spread);
    for (let i = 0; i < 10_000; i++) {
      const expected = i < 100 ? 'a' : i < 200 ? 'b' : 'c';
      expect(go(`SELECT * FROM orders /* ${i} */ WHERE tenant_id = ${i} AND note = 'n${i}'`, [], spread, through)).toBe(
        expected,
      );
    }
    expect(through.counters.parses).toBe(1);
    for (let i = 0; i < 10_000; i++)
      expect(go('SELECT * FROM orders WHERE tenant_id = $1', [String(i)], spread, through)).toBe(
        i < 100 ? 'a' : i < 200 ? 'b' : 'c',
      );
    expect(through.counters).toMatchObject({ parses: 2, hits: 19_998 });
  });

  it('does not let the first literal decide for the others', () => {
    const through = makeRouter(() => spread);
    expect(go('SELECT count(*) FROM orders WHERE tenant_id = 5', [], spread, through)).toBe('a');
    expect(go('SELECT count(*) FROM orders WHERE tenant_id = 0x96', [], spread, through)).toBe('b');
    expect(go("SELECT count(*) FROM orders WHERE tenant_id = 'x'", [], spread, through)).toBe('gather a b c');
    expect(go("SELECT count(*) FROM orders WHERE tenant_id = '150'", [], spread, through)).toBe('b');
    expect(go("SELECT count(*) FROM orders WHERE tenant_id = E'15\\x30'", [], spread, through)).toBe('gather a b c');
    expect(go('SELECT count(*) FROM orders WHERE tenant_id = -150', [], spread, through)).toBe('a');
    expect(through.counters.parses).toBe(3); // :int, :str and - :int
  });

  it('remembers a text that does not parse, by its bytes, and not its template', () => {
    const through = makeRouter(() => spread);
    const analyze = (sql: string) => through.analyze(Buffer.from(sql), SESSION);
    for (let i = 0; i < 10; i++) expect(analyze('SELEC 1').syntaxError).toBe(true);
    expect(through.counters.parses).toBe(1);
    expect(analyze("SELECT * FROM orders WHERE note = U&'\\zzzz'").syntaxError).toBe(true);
    expect(analyze("SELECT * FROM orders WHERE note = U&'fine'").syntaxError).toBe(false);
    expect(analyze("SELECT 'unterminated").syntaxError).toBe(true);
    expect(analyze('').statements).toEqual([]);
    expect(analyze(' ; -- nothing').syntaxError).toBe(false);
  });

  it('keeps templates of different search paths apart', () => {
    const through = makeRouter(() => spread);
    const at = (searchPath: string[], user = 'app') =>
      summary(
        through.route(
          through.analyze(Buffer.from('SELECT count(*) FROM "Notes" WHERE "Tenant" = 150'), { searchPath, user }),
          0,
          null,
          spread,
        ),
      );
    expect(at(['public'])).toBe('a'); // no such table there: home
    expect(at(['app', 'public'])).toBe('b');
    expect(at(['$user', 'public'])).toBe('b'); // user app
    expect(at(['$user', 'public'], 'else')).toBe('a');
  });

  it('gives the same bytes without literals the same answer again, and keeps no message for it', () => {
    const through = makeRouter(() => spread);
    const message = Buffer.from('....SELECT * FROM orders WHERE tenant_id = $1');
    const text = message.subarray(4);
    through.analyze(text, SESSION);
    const second = through.analyze(text, SESSION);
    message.fill(0);
    const again = Buffer.from('SELECT * FROM orders WHERE tenant_id = $1');
    expect(through.analyze(again, SESSION)).toBe(second);
    expect(through.analyze(again, { ...SESSION })).toBe(second);
    expect(summary(through.route(second, 0, texts('150'), spread))).toBe('b');
    const other = through.analyze(Buffer.from('SELECT *  FROM orders WHERE tenant_id = $1'), SESSION);
    expect(other.text.toString()).toBe('SELECT *  FROM orders WHERE tenant_id = $1');
    expect(through.counters.parses).toBe(1);
  });

  it('plans anew when tables are sharded that were not', () => {
    let now = spread;
    const through = makeRouter(() => now);
    const analyzed = through.analyze(Buffer.from('SELECT count(*) FROM other WHERE tenant_id = 150'), SESSION);
    expect(summary(through.route(analyzed, 0, null, now))).toBe('a');
    const shop = [...spread.keyspaces.values()][0];
    if (!shop) throw new Error('no keyspace');
    const other = { schema: 'public', table: 'other', keyColumns: ['tenant_id'], keyspace: shop.name };
    now = { ...spread, shardedTables: new Map([...spread.shardedTables, ['public.other', other]]) };
    through.analyze(Buffer.from('SELECT 1'), SESSION);
    expect(summary(through.route(analyzed, 0, null, now))).toBe('b');
  });

  it('plans anew when only the schema has changed', () => {
    const before = parseMetadata(JSON.stringify(METADATA));
    const after = parseMetadata(
      JSON.stringify({
        ...METADATA,
        functions: METADATA.functions.map((f) => (f.name === 'tax' ? { ...f, immutable: false } : f)),
      }),
    );
    let now = before;
    const through = new Router({ topology: () => spread, metadata: () => now });
    const sql = Buffer.from('SELECT tax(total) FROM orders WHERE tenant_id IN (150, 250)');
    const analyzed = through.analyze(sql, SESSION);
    const there = () => summary(through.route(analyzed, 0, null, spread));
    expect(there()).toBe('fanout b c');
    now = after;
    expect(through.isCurrent(analyzed)).toBe(false);
    expect(there()).toMatch(/^refused 0A000: function tax\(\)/);
    expect(there()).toMatch(/^refused 0A000: function tax\(\)/);
    expect(through.counters.parses).toBe(2);
    now = before;
    expect(there()).toBe('fanout b c');
    expect(through.isCurrent(through.analyze(sql, SESSION))).toBe(true);
  });

  it('keeps its plans over a flip', () => {
    const through = makeRouter(() => spread);
    const analyzed = through.analyze(Buffer.from('SELECT * FROM orders WHERE tenant_id = 150'), SESSION);
    expect(summary(through.route(analyzed, 0, null, spread))).toBe('b');
    expect(summary(through.route(analyzed, 0, null, sole))).toBe('a');
    expect(through.counters.parses).toBe(1);
  });
});

describe('texts with several statements', () => {
  const parts = (sql: string | Buffer, through = router) => {
    const text = Buffer.from(sql as string);
    const analyzed = through.analyze(Buffer.isBuffer(sql) ? sql : text, SESSION);
    return analyzed.statements.map(
      (s) => `${s.plan.command}: ${(Buffer.isBuffer(sql) ? sql : text).toString('utf8', s.start, s.end)}`,
    );
  };

  it('cuts each text at its own semicolons', () => {
    const through = makeRouter(() => spread);
    const wanted = (x: string) => [
      'BEGIN: BEGIN',
      `UPDATE: UPDATE orders SET note = ${x} WHERE tenant_id = 150`,
      'COMMIT: COMMIT',
    ];
    expect(parts("BEGIN; UPDATE orders SET note = 'é;x' WHERE tenant_id = 150; COMMIT", through)).toEqual(
      wanted("'é;x'"),
    );
    expect(
      parts('BEGIN ;;\n/* ; */ UPDATE orders SET note = $$;$$ WHERE tenant_id = 150; -- ;\nCOMMIT;', through).map((s) =>
        s.replace('\n', ''),
      ),
    ).toEqual(wanted('$$;$$'));
    expect(through.counters.parses).toBe(2);
  });

  it('knows semicolons inside a function body from those behind it', () => {
    const body = 'CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END';
    for (let i = 0; i < 2; i++)
      expect(parts(`${body}; SELECT ${i}`)).toEqual([`CREATE FUNCTION: ${body}`, `SELECT: SELECT ${i}`]);
  });

  it('routes each by its own literals', () => {
    const analyzed = router.analyze(
      Buffer.from(
        "SELECT 5; SELECT * FROM orders WHERE tenant_id = 150; DELETE FROM orders WHERE note = 'x' AND tenant_id = 250",
      ),
      SESSION,
    );
    expect(analyzed.statements.map((_, i) => summary(router.route(analyzed, i, null, spread)))).toEqual([
      'any a b c',
      'b',
      'c',
    ]);
    expect(analyzed.literals.map((l) => l.kind)).toEqual(['integer', 'integer', 'string', 'integer']);
  });

  it('reads a text in another encoding', () => {
    const latin1 = Buffer.from(
      "SELECT 'caf\xe9', 1; SELECT * FROM orders WHERE tenant_id = 150 AND note = '\xe9'",
      'latin1',
    );
    const analyzed = router.analyze(latin1, SESSION);
    expect(summary(router.route(analyzed, 1, null, spread))).toBe('b');
    expect(latin1.toString('latin1', analyzed.statements[1]?.start, analyzed.statements[1]?.end)).toBe(
      "SELECT * FROM orders WHERE tenant_id = 150 AND note = '\xe9'",
    );
    expect(
      summary(router.route(router.analyze(Buffer.from('SELECT * FROM "caf\xe9"', 'latin1'), SESSION), 0, null, spread)),
    ).toMatch(/^refused 0A000: table names outside ASCII/);
  });

  it('does not take bytes of another encoding for a key', () => {
    const sql = Buffer.from("SELECT count(*) FROM docs WHERE owner = 'é' AND day = '2026-01-02'");
    expect(summary(router.route(router.analyze(sql, SESSION), 0, null, spread))).toBe('b');
    const latin1 = { ...SESSION, encoding: 'LATIN1' };
    expect(summary(router.route(router.analyze(sql, latin1), 0, null, spread))).toBe('gather a b');
    expect(go("SELECT count(*) FROM docs WHERE owner = 'zoe' AND day = '2026-01-02'")).toBe('b');
  });

  it('lets a string go on over a comment, which libpg-query does not', () => {
    expect(go("SELECT * FROM orders WHERE note = 'a' -- it's\n 'b' AND tenant_id = 150")).toBe('b');
  });

  it.each([
    ['DELETE FROM orders WHERE tenant_id = 150 AND id NOT /* 1 */ IN (1, 2)', 'b'],
    ["SELECT note FROM orders WHERE tenant_id = 150 AND note NOT -- a's\n LIKE 'a%'", 'b'],
    ['SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id NULLS/**/LAST', 'b'],
    ["SELECT timestamp WITH /* é */ TIME ZONE '2026-01-01' FROM orders WHERE tenant_id = 150", 'b'],
    ['SELECT count(*) FROM orders WHERE id NOT /* 1 */ IN (1, 2)', 'gather a b c'],
    ['UPDATE orders SET note = NULL WHERE id NOT /* 1 */ BETWEEN 1 AND 2', 'refused 0A000: UPDATE does not say which'],
  ])('takes comments for white space, which libpg-query does not: %s', (sql, expected) => {
    expect(go(sql)).toContain(expected);
  });
});

describe('parameters', () => {
  const int8 = (n: bigint) => {
    const b = Buffer.alloc(8);
    b.writeBigInt64BE(n);
    return b;
  };
  const at = (sql: string, oids: number[], formats: number[], values: Buffer[]) =>
    summary(router.route(router.analyze(Buffer.from(sql), SESSION), 0, { oids, formats, values }, spread));

  it('reads them in binary, by the declared type, the cast or the column', () => {
    const sql = 'SELECT count(*) FROM orders WHERE tenant_id = $1';
    expect(at(sql, [], [1], [int8(150n)])).toBe('b');
    expect(at(sql, [20], [1], [int8(250n)])).toBe('c');
    expect(at(sql, [23], [1], [Buffer.from([0, 0, 0, 150])])).toBe('b');
    expect(at(sql, [701], [1], [int8(150n)])).toBe('gather a b c'); // float8
    expect(at('SELECT count(*) FROM orders WHERE tenant_id = $1::int', [], [1], [Buffer.from([0, 0, 0, 150])])).toBe(
      'b',
    );
    expect(at('SELECT count(*) FROM orders WHERE tenant_id = $1::float8', [], [0], [Buffer.from('150')])).toBe(
      'gather a b c',
    );
  });

  it('takes an OFFSET of zero for none, in binary too', () => {
    const sql = 'SELECT * FROM orders OFFSET $1';
    expect(at(sql, [], [1], [int8(0n)])).toBe('fanout a b c');
    expect(at(sql, [20], [1], [int8(0n)])).toBe('fanout a b c');
    expect(at(sql, [23], [1], [Buffer.alloc(4)])).toBe('fanout a b c');
    expect(at(sql, [], [1], [int8(1n)])).toBe('gather a b c');
    expect(at(sql, [701], [1], [Buffer.alloc(8)])).toBe('gather a b c'); // float8
    // The server may have taken it for something else there.
    expect(at('SELECT * FROM orders WHERE total = $1 OFFSET $1', [], [1], [int8(0n)])).toBe('gather a b c');
    expect(at('SELECT * FROM orders WHERE total = $1 OFFSET $1', [23], [1], [Buffer.alloc(4)])).toBe('fanout a b c');
  });

  it('does not guess the type of one that is used elsewhere too', () => {
    const both =
      'SELECT count(*) FROM orders o JOIN items i ON i.tenant_id = o.tenant_id WHERE o.tenant_id = $1 AND i.tenant_id = $1';
    expect(at(both, [], [1], [int8(150n)])).toBe('b');
    const mixed = 'SELECT count(*) FROM orders WHERE total = $1 AND tenant_id = $1';
    expect(at(mixed, [], [1], [int8(150n)])).toBe('gather a b c');
    expect(at(mixed, [], [0], [Buffer.from('150')])).toBe('b');
    expect(at(mixed, [20], [1], [int8(150n)])).toBe('b');
  });
});
