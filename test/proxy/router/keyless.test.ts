import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, test } from 'vitest';
import { afterSeparation } from '../../../topology/separation.js';
import type { KeyspaceName, ShardName, Topology } from '../../../topology/topology.js';
import { makeRouter, SESSION, spreadTopology, summary, texts } from './setting.js';

const NAME = 'own' as KeyspaceName;

/** The home shard's table "settings" in a keyspace without a key, on this shard. */
function withSettingsOn(name: string): Topology {
  const topology = afterSeparation(spreadTopology(), {
    keyspace: null,
    tables: [{ schema: 'public', table: 'settings' }],
    as: NAME,
  });
  const keyspace = topology.keyspaces.get(NAME);
  if (keyspace === undefined) throw new Error('no keyspace');
  const ranges = keyspace.ranges.map((range) => ({ ...range, shard: name as ShardName }));
  return { ...topology, keyspaces: new Map(topology.keyspaces).set(NAME, { ...keyspace, ranges }) };
}

const APART = 'refused 0A000: this statement uses tables of keyspaces';
const AWAY = 'refused 0A000: this statement works only while the tables of keyspace "own" are on shard "a"';

/** Where they go while the table is at home, and while it is on shard b. */
const ROUTES: readonly (readonly [sql: string, atHome: string, away: string, ...params: string[]])[] = [
  ['SELECT * FROM settings', 'a', 'b'],
  ['SELECT count(*), max(value) FROM settings WHERE name = $1 GROUP BY value ORDER BY 2 LIMIT 1', 'a', 'b', 'x'],
  ['SELECT * FROM settings ORDER BY value FOR UPDATE', 'a', 'b'],
  ['WITH s AS (SELECT * FROM settings) SELECT * FROM s, settings t', 'a', 'b'],
  ['EXPLAIN SELECT * FROM settings', 'a', 'b'],
  ['DECLARE c CURSOR FOR SELECT * FROM settings', 'a', 'b'],
  ["INSERT INTO settings VALUES ('x', now()::text), ($1, DEFAULT)", 'a', 'b', 'y'],
  ['INSERT INTO settings DEFAULT VALUES', 'a', 'b'],
  [
    'INSERT INTO settings SELECT value, name FROM settings ON CONFLICT (name) DO UPDATE SET name = excluded.name',
    'a',
    'b',
  ],
  ["UPDATE settings SET name = name || '!', value = random()::text", 'a', 'b'],
  ['DELETE FROM settings RETURNING *', 'a', 'b'],
  [
    "MERGE INTO settings s USING (VALUES ('x')) v(n) ON v.n = s.name WHEN NOT MATCHED THEN INSERT VALUES (v.n)",
    'a',
    'b',
  ],
  // With other tables
  ['SELECT * FROM settings, other', 'a', AWAY],
  ["UPDATE other SET x = value FROM settings WHERE name = 'x'", 'a', AWAY],
  ['SELECT * FROM settings, orders WHERE tenant_id = 5', 'a', 'gather b a'],
  ['SELECT * FROM settings, orders WHERE tenant_id = 150', 'gather a b', 'b'],
  ['INSERT INTO settings SELECT note, note FROM orders WHERE tenant_id = $1', APART, 'b', '150'],
  ['SELECT * FROM orders WHERE tenant_id = 150 AND note IN (SELECT name FROM settings)', 'gather b a', 'b'],
  ['SELECT * FROM settings, orders', 'gather a b c', 'gather b a c'],
  ['SELECT * FROM settings, orders FOR UPDATE', APART, APART],
  ['EXPLAIN SELECT * FROM settings, orders', APART, APART],
  ['SELECT * FROM settings, countries', 'a', 'b'],
  ['SELECT * FROM settings, units', 'refused 0A000: shard "a" has no copy of the reference table "units"', 'b'],
  ['SELECT * FROM other', 'a', 'a'],
  ['SELECT * FROM orders WHERE tenant_id = 250', 'c', 'c'],
  // Through what the home shard has
  ['SELECT * FROM setting_names', 'a', AWAY],
  ['SELECT read_value()', 'a', AWAY],
  ['SELECT read_value(), name FROM settings', 'a', AWAY],
  ['SELECT leads_out()', 'refused 0A000: function leads_out()', 'refused 0A000: function leads_out()'],
  ["DO $$BEGIN UPDATE settings SET value = 'x'; END$$", 'a', AWAY],
  ['DO $$BEGIN PERFORM 1 FROM other; END$$', 'a', 'a'],
  // Sequences
  ["SELECT nextval('settings_id')", 'a', 'b'],
  ["SELECT setval('public.settings_id'::regclass, 7)", 'a', 'b'],
  ['SELECT nextval(\'"settings_id"\')', 'a', 'b'],
  ['SELECT last_value FROM settings_id', 'a', 'b'],
  ["SELECT nextval('invoice')", 'a', 'a'],
  ['SELECT nextval($1)', 'refused 0A000: function nextval() of a sequence', 'refused 0A000: function nextval()', 'x'],
  // Whole tables
  ['COPY settings FROM STDIN', 'a', 'b'],
  ['COPY settings (name) TO STDOUT', 'a', 'b'],
  ['COPY (SELECT * FROM settings) TO STDOUT', 'a', 'b'],
  ['TRUNCATE settings', 'a', 'b'],
  ['TRUNCATE settings, other', 'a', AWAY],
  ['TRUNCATE settings, orders', 'refused 0A000: TRUNCATE', 'refused 0A000: TRUNCATE'],
  ['LOCK TABLE settings IN EXCLUSIVE MODE', 'a', 'b'],
  ['VACUUM settings', 'a', 'b'],
  ['ANALYZE settings, other', 'a', AWAY],
  // DDL
  ['ALTER TABLE settings ADD COLUMN more int', 'a', AWAY],
  ['CREATE INDEX ON settings (value)', 'a', AWAY],
  ['GRANT SELECT ON settings TO app', 'a', AWAY],
  ['DROP TABLE settings', 'a', AWAY],
  ['CREATE VIEW v AS SELECT * FROM settings', 'a', AWAY],
  ['CREATE TABLE copied AS SELECT * FROM settings', 'a', AWAY],
  ['CREATE TEMP TABLE copied AS SELECT * FROM settings', 'a', AWAY],
  ['CREATE VIEW v AS SELECT * FROM settings, orders', 'refused 0A000: CREATE VIEW', 'refused 0A000: CREATE VIEW'],
  ['ALTER TABLE other ADD COLUMN more int', 'a', 'a'],
  ['CREATE TABLE settings (x int)', 'refused 0A000: CREATE TABLE', 'refused 0A000: CREATE TABLE'],
];

describe('a table without a key', () => {
  const where = { a: withSettingsOn('a'), b: withSettingsOn('b') };
  let topology = where.a;
  const router = makeRouter(() => topology);
  beforeAll(() => loadModule());

  test.each(ROUTES)('%s', (sql, atHome, away, ...params) => {
    for (const [name, expected] of [
      ['a', atHome],
      ['b', away],
    ] as const) {
      topology = where[name];
      const analyzed = router.analyze(Buffer.from(sql), SESSION);
      expect(analyzed.statements).toHaveLength(1);
      const found = summary(router.route(analyzed, 0, params.length === 0 ? null : texts(...params), topology));
      expect([name, found]).toEqual([
        name,
        expected.startsWith('refused') ? expect.stringContaining(expected) : expected,
      ]);
    }
  });

  test('is touched as a whole, with the empty key', () => {
    const analyzed = router.analyze(Buffer.from('DELETE FROM settings'), SESSION);
    expect(router.route(analyzed, 0, null, where.b)).toMatchObject({
      writes: true,
      touches: [{ keyspace: NAME, position: [], key: [] }],
      why: 'its tables are those of keyspace own, which shard b has',
    });
  });

  test('that is refused says where to move it', () => {
    const analyzed = router.analyze(Buffer.from('ALTER TABLE settings ADD COLUMN more int'), SESSION);
    expect(router.route(analyzed, 0, null, where.b)).toMatchObject({
      refusal: { hint: expect.stringContaining('"foreshard migrate plan move own --to a"') },
    });
  });
});
