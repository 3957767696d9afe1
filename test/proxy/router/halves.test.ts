import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import type { SessionNames } from '../../../proxy/router/analyzed-text.js';
import { type MetadataJson, parseMetadata } from '../../../proxy/router/metadata.js';
import type { Route } from '../../../proxy/router/route.js';
import { Router } from '../../../proxy/router/router.js';
import type { Position } from '../../../topology/key.js';
import type {
  ColumnSplit,
  Epoch,
  Keyspace,
  KeyspaceName,
  ShardedTable,
  ShardName,
  Topology,
} from '../../../topology/topology.js';
import { tableId } from '../../../topology/topology.js';
import { SESSION, summary, texts } from './setting.js';
import { SqlGenerator } from './sql-generator.js';

beforeAll(() => loadModule());

const [A, B, C] = ['a', 'b', 'c'] as [ShardName, ShardName, ShardName];
type Cuts = readonly (readonly [Position, ShardName])[];
const BASE: Cuts = [[[100n], B]];

const SPLIT: ColumnSplit = {
  hot: { schema: 'public', table: 'documents_hot' },
  columns: ['views', 'last_seen'],
  primaryKey: ['tenant_id', 'id'],
};

function keyspace(name: string, tables: readonly ShardedTable[], first: ShardName, cuts: Cuts): Keyspace {
  const bounds = [null, ...cuts.map(([position]) => position), null];
  const ranges = [first, ...cuts.map(([, shard]) => shard)].map((shard, i) => ({
    id: BigInt(i + 1),
    keyspace: name as KeyspaceName,
    lo: bounds[i] ?? null,
    hi: bounds[i + 1] ?? null,
    shard,
  }));
  return { name: name as KeyspaceName, method: 'range', keyTypes: ['int8'], tables, ranges };
}

/** documents and orders below 100 on a, from there on b; views and last_seen of documents as told. */
function topologyOf(first: ShardName, cuts: Cuts, base: readonly [ShardName, Cuts] = [A, BASE]): Topology {
  const table = (name: string, of: string, more: Partial<ShardedTable> = {}): ShardedTable => ({
    schema: 'public',
    table: name,
    keyColumns: [name === 'tenants' ? 'id' : 'tenant_id'],
    keyspace: of as KeyspaceName,
    ...more,
  });
  const documents = table('documents', 'shop', { split: SPLIT });
  const others = ['tenants', 'orders', 'notes', 'audited'].map((name) => table(name, 'shop'));
  const hot = table('documents_hot', 'hot', { halfOf: { schema: 'public', table: 'documents' } });
  const keyspaces = [keyspace('shop', [documents, ...others], ...base), keyspace('hot', [hot], first, cuts)];
  return {
    epoch: 1n as Epoch,
    database: 'shop',
    shards: new Map([A, B, C].map((name) => [name, { name, url: '', home: name === A, capacityMsPerSecond: null }])),
    home: A,
    keyspaces: new Map(keyspaces.map((k) => [k.name, k])),
    shardedTables: new Map(keyspaces.flatMap((k) => k.tables.map((t) => [tableId(t), t]))),
    referenceTables: new Map([['public.units', { schema: 'public', table: 'units', shards: [A, B, C] }]]),
    holds: [],
    replicas: [],
    schemaGeneration: 0n,
  };
}

const TOGETHER = topologyOf(A, BASE);
/** All hot halves on c. */
const APART = topologyOf(C, []);
/** Below 50 together on a; below 100 the hot halves on c; from there on b. */
const MIXED = topologyOf(A, [
  [[50n], C],
  [[100n], B],
]);
/** All base halves on a, all hot ones on b. */
const TWO = topologyOf(B, [], [A, []]);
const SOLE = topologyOf(A, [], [A, []]);

const relation = (table: string, columns: readonly string[], kind = 'r') => ({
  schema: 'public',
  table,
  kind,
  columns,
  parents: [],
});

const METADATA: MetadataJson = {
  relations: [
    { ...relation('documents', ['tenant_id', 'id', 'title', 'body', 'views', 'last_seen']), key: ['tenant_id', 'id'] },
    relation('documents_hot', ['tenant_id', 'id', 'views', 'last_seen']),
    relation('tenants', ['id', 'name']),
    relation('orders', ['tenant_id', 'id', 'total']),
    relation('notes', ['tenant_id', 'id', 'document_id']),
    relation('audited', ['tenant_id', 'x']),
    relation('units', ['code']),
    relation('settings', ['name']),
    relation('seen', ['tenant_id', 'views'], 'v'),
  ],
  functions: [
    {
      schema: 'public',
      name: 'audit',
      immutable: false,
      native: false,
      opaque: false,
      body: 'BEGIN UPDATE documents SET title = title; RETURN NEW; END',
    },
  ],
  operators: [],
  edges: [
    { schema: 'public', table: 'seen', kind: 'reads', to: ['public', 'documents'] },
    // notes refer to documents, and those to tenants, by actions; orders to tenants by a check.
    { schema: 'public', table: 'notes', kind: 'checks', to: ['public', 'documents'] },
    { schema: 'public', table: 'documents', kind: 'writes', to: ['public', 'notes'] },
    { schema: 'public', table: 'documents', kind: 'deletes', to: ['public', 'notes'] },
    { schema: 'public', table: 'documents', kind: 'checks', to: ['public', 'tenants'] },
    { schema: 'public', table: 'tenants', kind: 'writes', to: ['public', 'documents'] },
    { schema: 'public', table: 'tenants', kind: 'deletes', to: ['public', 'documents'] },
  ],
  runs: [{ schema: 'public', table: 'audited', kind: 'fires', name: 'audit', events: 4 | 16 }],
  builtins: { now: 'stable', count: 'other', sum: 'other', max: 'other', lower: 'pure', nextval: 'other' },
};

const metadata = parseMetadata(JSON.stringify(METADATA));

const routers = new Map(
  [TOGETHER, APART, MIXED, TWO, SOLE].map((topology) => [
    topology,
    new Router({ topology: () => topology, metadata: () => metadata }),
  ]),
);

function routed(topology: Topology, sql: string, params: readonly (string | null)[] = []): Route {
  const router = routers.get(topology) as Router;
  const analyzed = router.analyze(Buffer.from(sql), SESSION);
  expect(analyzed.syntaxError, sql).toBe(false);
  return router.route(analyzed, 0, params.length === 0 ? null : texts(...params), topology);
}

/** With what a write does. */
function shown(route: Route): string {
  if (route.kind !== 'halves') return summary(route);
  const { brings, locks, assigned } = route.halves.apart;
  return `${summary(route)}${brings ? ' brings' : ''}${locks ? ' locks' : ''}${assigned.length > 0 ? ` sets ${assigned.join(',')}` : ''}`;
}

/** Of one key, whose base half is on a. Together all are sent there; this is where they go with the hot half on c. `base`: there, without a look at the hot half. */
const STATEMENTS: readonly (readonly [sql: string, apart: string])[] = [
  // Base columns only
  ['SELECT id, title FROM documents WHERE tenant_id = 5', 'base'],
  ['SELECT tenant_id, id FROM documents WHERE tenant_id = 5', 'base'],
  ['SELECT count(*) FROM documents WHERE tenant_id = 5', 'base'],
  ['SELECT d.title FROM public.documents AS d WHERE d.tenant_id = 5', 'base'],
  ['SELECT public.documents.title FROM public.documents WHERE tenant_id = 5', 'base'],
  ['SELECT o.* FROM orders o JOIN documents d ON d.tenant_id = o.tenant_id WHERE o.tenant_id = 5', 'base'],
  ['SELECT o.*, d.title FROM orders o JOIN documents d USING (tenant_id, id) WHERE o.tenant_id = 5', 'base'],
  ['SELECT * FROM (SELECT tenant_id, title FROM documents) s WHERE s.tenant_id = 5', 'base'],
  ['WITH w AS (SELECT title FROM documents WHERE tenant_id = 5) SELECT * FROM w', 'base'],
  ['SELECT title FROM documents AS d (tenant_id, views, title) WHERE tenant_id = 5', 'base'],
  ['INSERT INTO orders SELECT tenant_id, id, 1 FROM documents WHERE tenant_id = 5', 'base'],
  [
    'UPDATE orders SET total = 1 FROM documents d WHERE d.tenant_id = 5 AND orders.tenant_id = 5 AND title = $1',
    'base',
  ],
  // Hot columns only
  ['SELECT views FROM documents WHERE tenant_id = 5 AND id = 7', 'hot c'],
  ['SELECT id, views + 1 AS n FROM documents d WHERE d.tenant_id = 5 ORDER BY n', 'hot c'],
  ['SELECT documents.views FROM documents WHERE documents.tenant_id = $1', 'hot c'],
  ['SELECT sum(views), max(last_seen) FROM documents WHERE tenant_id = 5 GROUP BY id HAVING sum(views) > 3', 'hot c'],
  ['SELECT views FROM documents WHERE tenant_id = 5 AND last_seen < now() LIMIT 3', 'hot c'],
  ['UPDATE documents SET views = views + 1 WHERE tenant_id = 5 AND id = 7', 'hot c'],
  ['UPDATE documents d SET views = d.views + $1, last_seen = now() WHERE tenant_id = 5 RETURNING id, d.views', 'hot c'],
  ['UPDATE documents SET (views, last_seen) = (0, now()) WHERE tenant_id = 5', 'hot c'],
  ['EXPLAIN UPDATE documents SET views = 0 WHERE tenant_id = 5', 'hot c'],
  ['EXPLAIN (ANALYZE) SELECT views FROM documents WHERE tenant_id = 5', 'hot c'],
  // Both, read
  ['SELECT * FROM documents WHERE tenant_id = 5', 'gather a c'],
  ['TABLE documents', 'gather a b c'],
  ['SELECT d.* FROM documents d WHERE tenant_id = 5', 'gather a c'],
  ['SELECT title, views FROM documents WHERE tenant_id = 5', 'gather a c'],
  ['SELECT title FROM documents WHERE tenant_id = 5 AND views > 3', 'gather a c'],
  ['SELECT title FROM documents WHERE tenant_id = 5 ORDER BY last_seen', 'gather a c'],
  ['SELECT x.title FROM documents x JOIN documents y USING (tenant_id, views) WHERE tenant_id = 5', 'gather a c'],
  ['SELECT 1 FROM orders NATURAL JOIN documents', 'gather a b c'],
  ['SELECT s.n FROM (SELECT tenant_id, views AS n FROM documents) s WHERE s.tenant_id = 5', 'gather a c'],
  ['WITH w AS (SELECT * FROM documents WHERE tenant_id = 5) SELECT title FROM w', 'gather a c'],
  [
    'SELECT total FROM orders o WHERE tenant_id = 5 AND EXISTS (SELECT FROM documents WHERE tenant_id = 5 AND views = total)',
    'gather a c',
  ],
  ['SELECT e FROM documents AS d (a, b, c, d1, e) WHERE a = 5', 'gather a c'],
  ['SELECT views FROM documents WHERE tenant_id = 5 AND EXISTS (SELECT FROM units)', 'gather a c'],
  ['SELECT views, title IS NULL FROM documents WHERE tenant_id = 5', 'gather a c'],
  ['SELECT public.documents.views FROM documents WHERE tenant_id = 5', 'gather a c'],
  ['SELECT views FROM documents UNION ALL SELECT 1', 'gather a b c'],
  // Both, written
  ["INSERT INTO documents VALUES (5, 7, 't', 'b', 0, now())", 'halves a c'],
  ['INSERT INTO documents (tenant_id, id) VALUES (5, 7), (5, 8) RETURNING *', 'halves a c'],
  ['INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT DO NOTHING RETURNING views', 'halves a c'],
  [
    'INSERT INTO documents (tenant_id, id, views) VALUES (5, $1, 1) ON CONFLICT (tenant_id, id) DO UPDATE SET views = documents.views + 1',
    'halves a c brings sets views',
  ],
  [
    'INSERT INTO documents (tenant_id, id, views) VALUES (5, 7, 1) ON CONFLICT (tenant_id, id) DO UPDATE SET views = excluded.views',
    'halves a c brings sets views',
  ],
  [
    'INSERT INTO documents (tenant_id, id, views) VALUES (5, 7, 1) ON CONFLICT (tenant_id, id) DO UPDATE SET views = 0, last_seen = NULL',
    'halves a c sets views,last_seen',
  ],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT (tenant_id, id) DO UPDATE SET title = excluded.title RETURNING old.views',
    'halves a c brings',
  ],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT (tenant_id, id) DO UPDATE SET title = (SELECT max(total) FROM orders WHERE tenant_id = 5) RETURNING views',
    'halves a c brings',
  ],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT (tenant_id, id) DO UPDATE SET title = excluded.title RETURNING *',
    'halves a c brings',
  ],
  [
    'INSERT INTO documents (tenant_id, id, title) SELECT tenant_id, id, $1 FROM orders WHERE tenant_id = 5',
    'halves a c',
  ],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 AND id = 7', 'halves a c'],
  ['UPDATE documents SET title = $1, views = 0 WHERE tenant_id = 5', 'halves a c brings sets views'],
  [
    'UPDATE documents SET title = $1, views = 0, last_seen = now() WHERE tenant_id = 5',
    'halves a c sets views,last_seen',
  ],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 AND views > 3', 'halves a c brings'],
  ['UPDATE documents SET title = views::text WHERE tenant_id = 5', 'halves a c brings'],
  ['UPDATE documents SET views = 0 WHERE tenant_id = 5 AND title = $1', 'halves a c brings sets views'],
  ['UPDATE documents SET views = views + 1 WHERE tenant_id = 5 AND lower(title) = $1', 'halves a c brings sets views'],
  ['UPDATE documents SET views = DEFAULT WHERE tenant_id = 5', 'halves a c brings sets views'],
  ["UPDATE documents SET views = nextval('s') WHERE tenant_id = 5", 'halves a c brings sets views'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING *', 'halves a c brings'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING documents', 'halves a c brings'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING old.title, new.id', 'halves a c'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING new.*', 'halves a c brings'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING old', 'halves a c brings'],
  ['DELETE FROM documents d WHERE tenant_id = 5 RETURNING (old).views', 'halves a c brings'],
  [
    'UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING WITH (OLD AS o, NEW AS n) o.title, n.id',
    'halves a c',
  ],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING WITH (OLD AS o) o.views', 'halves a c brings'],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING WITH (NEW AS n) n', 'halves a c brings'],
  ['DELETE FROM documents WHERE tenant_id = 5 RETURNING WITH (OLD AS o) o.*', 'halves a c brings'],
  ['UPDATE documents SET views = 0 WHERE tenant_id = 5 RETURNING old.views', 'halves a c brings sets views'],
  [
    'UPDATE orders SET total = 1 FROM documents d WHERE d.tenant_id = 5 AND orders.tenant_id = 5 RETURNING new.total, old',
    'base',
  ],
  [
    'UPDATE documents d SET views = total FROM orders o WHERE d.tenant_id = 5 AND o.tenant_id = 5 AND o.id = d.id',
    'halves a c brings sets views',
  ],
  ['DELETE FROM documents WHERE tenant_id = 5 AND id = 7', 'halves a c'],
  ['DELETE FROM documents WHERE tenant_id = 5 AND views = 0', 'halves a c brings'],
  [
    'DELETE FROM documents d USING orders o WHERE d.tenant_id = 5 AND o.tenant_id = 5 RETURNING d.*',
    'halves a c brings',
  ],
  [
    'DELETE FROM documents WHERE tenant_id = 5 AND id IN (SELECT id FROM documents d WHERE d.tenant_id = 5 AND d.title = $1)',
    'halves a c',
  ],
  ['SELECT title FROM documents WHERE tenant_id = 5 FOR UPDATE', 'halves a c locks'],
  ['SELECT views FROM documents WHERE tenant_id = 5 FOR NO KEY UPDATE', 'halves a c brings locks'],
  [
    'SELECT * FROM documents d JOIN orders o USING (tenant_id) WHERE tenant_id = 5 FOR SHARE',
    'halves a c brings locks',
  ],
  // Refused
  ['SELECT ctid FROM documents WHERE tenant_id = 5', 'refused 0A000: a system column'],
  ['SELECT title, xmin FROM documents WHERE tenant_id = 5', 'refused 0A000: a system column'],
  [
    'UPDATE documents SET title = $1 WHERE tenant_id = 5 RETURNING WITH (OLD AS o) o.xmin',
    'refused 0A000: a system column',
  ],
  ["DELETE FROM documents WHERE tenant_id = 5 AND ctid = '(0,1)'", 'refused 0A000: a system column'],
  ['SELECT documents FROM documents WHERE tenant_id = 5', 'refused 0A000: the whole row'],
  ['SELECT d.lower FROM documents d WHERE tenant_id = 5', 'refused 0A000: "lower" of a whole row'],
  ["SELECT nextval('s'), views FROM documents WHERE tenant_id = 5", 'refused 0A000: function nextval()'],
  ['SELECT title FROM documents WHERE tenant_id = 5 FOR UPDATE SKIP LOCKED', 'refused 0A000: NOWAIT and SKIP LOCKED'],
  ['SELECT title FROM documents WHERE tenant_id = 5 FOR UPDATE NOWAIT', 'refused 0A000: NOWAIT and SKIP LOCKED'],
  [
    'SELECT * FROM (SELECT title FROM documents WHERE tenant_id = 5 FOR UPDATE) s',
    'refused 0A000: FOR UPDATE or FOR SHARE in',
  ],
  ['UPDATE documents SET id = 8 WHERE tenant_id = 5 AND id = 7', 'refused 0A000: changing the primary key'],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT (tenant_id, id) DO UPDATE SET id = 8',
    'refused 0A000: changing the primary key',
  ],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT ON CONSTRAINT documents_pkey DO UPDATE SET views = documents.views + 1',
    'refused 0A000: which rows',
  ],
  [
    'INSERT INTO documents SELECT tenant_id, id + 1, title, body, views FROM documents WHERE tenant_id = 5',
    'refused 0A000: a statement that changes',
  ],
  [
    'INSERT INTO orders SELECT tenant_id, id, views FROM documents WHERE tenant_id = 5',
    'refused 0A000: a statement that changes',
  ],
  [
    'UPDATE orders SET total = views FROM documents d WHERE d.tenant_id = 5 AND orders.tenant_id = 5',
    'refused 0A000: a statement that changes',
  ],
  [
    'DELETE FROM documents WHERE tenant_id = 5 AND id IN (SELECT d.id FROM documents d WHERE d.tenant_id = 5 AND d.views = 0)',
    'refused 0A000: a statement that changes',
  ],
  [
    'UPDATE documents SET title = $1 WHERE tenant_id = 5 AND views > (SELECT max(total) FROM orders WHERE tenant_id = 5)',
    'refused 0A000: a statement that chooses',
  ],
  [
    'DELETE FROM documents d USING orders o WHERE d.tenant_id = 5 AND o.tenant_id = 5 AND d.views = o.total',
    'refused 0A000: a statement that chooses',
  ],
  [
    'INSERT INTO documents (tenant_id, id) VALUES (5, 7) ON CONFLICT (tenant_id, id) DO UPDATE SET title = NULL WHERE documents.views > (SELECT max(total) FROM orders WHERE tenant_id = 5)',
    'refused 0A000: a statement that chooses',
  ],
  [
    'WITH w AS (DELETE FROM documents WHERE tenant_id = 5 RETURNING id) SELECT * FROM w',
    'refused 0A000: a statement that changes',
  ],
  [
    'WITH w AS (DELETE FROM documents WHERE tenant_id = 5) UPDATE orders SET total = 0 WHERE tenant_id = 5',
    'refused 0A000: a statement that changes',
  ],
  ['UPDATE documents SET title = $1 WHERE tenant_id = 5 AND CURRENT OF c', 'syntax'],
  [
    'MERGE INTO documents d USING (SELECT 5 AS t, 7 AS i) s ON d.tenant_id = 5 AND d.id = s.i WHEN MATCHED THEN DELETE',
    'refused 0A000: MERGE',
  ],
  ['EXPLAIN DELETE FROM documents WHERE tenant_id = 5', 'refused 0A000: EXPLAIN of a statement'],
  ['EXPLAIN SELECT title, views FROM documents WHERE tenant_id = 5', 'refused 0A000: EXPLAIN'],
  ['COPY (SELECT views FROM documents WHERE tenant_id = 5) TO STDOUT', 'refused 0A000: COPY of a query'],
  ['DECLARE c CURSOR FOR SELECT views FROM documents WHERE tenant_id = 5', 'refused 0A000: a cursor'],
  // Behind
  ['DELETE FROM tenants WHERE id = 5', 'refused 0A000: something that this statement sets off'],
  ["UPDATE tenants SET name = 'x' WHERE id = 5", 'base'],
  ['INSERT INTO notes VALUES (5, 1, 7)', 'base'],
  ['DELETE FROM notes WHERE tenant_id = 5', 'base'],
  ['INSERT INTO audited VALUES (5, 1)', 'refused 0A000: something that this statement sets off'],
  ['DELETE FROM audited WHERE tenant_id = 5', 'base'],
];

describe('statements about one key', () => {
  it.each(STATEMENTS.filter(([, apart]) => apart !== 'syntax'))('%s → %s', (sql, apart) => {
    const params = [...sql.matchAll(/\$\d/g)].map(() => '5');
    const pinned = !/TABLE documents$|NATURAL|UNION/.test(sql);
    const together = routed(TOGETHER, sql, params);
    const found = routed(APART, sql, params);
    if (pinned) expect(summary(together)).toBe('a');
    const expected = apart === 'base' ? 'a' : apart;
    expect(shown(found).slice(0, expected.length)).toBe(expected);
    if (!apart.startsWith('refused')) expect(shown(found)).toBe(expected);
    if (together.kind === 'refused' || found.kind === 'refused') return;
    const keyspaces = (route: Exclude<Route, { kind: 'refused' }>) => new Set(route.touches.map((t) => t.keyspace));
    expect(keyspaces(together)).toEqual(new Set(apart === 'base' ? ['shop'] : ['shop', 'hot']));
    expect(keyspaces(found)).toEqual(
      new Set(apart === 'base' ? ['shop'] : apart.startsWith('hot') ? ['hot'] : ['shop', 'hot']),
    );
  });
});

/** On several keys, or none: where halves are together by the same map, on c all of them, mixed, and with each kind whole on one shard. */
const SPREAD: readonly (readonly [sql: string, together: string, apart: string, mixed: string, two: string])[] = [
  ['SELECT title FROM documents', 'fanout a b', 'fanout a b', 'fanout a b', 'a'],
  ['SELECT title, views FROM documents', 'fanout a b', 'gather a b c', 'gather a b c', 'gather a b'],
  ['SELECT views FROM documents', 'fanout a b', 'hot c', 'gather a b c', 'hot b'],
  ['SELECT sum(views) FROM documents', 'gather a b', 'hot c', 'gather a b c', 'hot b'],
  ['SELECT views FROM documents WHERE tenant_id IN (5, 150)', 'fanout a b', 'hot c', 'gather a b', 'hot b'],
  ['SELECT views FROM documents WHERE tenant_id IN (5, 60)', 'a', 'hot c', 'gather a c', 'hot b'],
  ['SELECT views FROM documents WHERE tenant_id IN (60, 70)', 'a', 'hot c', 'hot c', 'hot b'],
  ['SELECT views FROM documents WHERE tenant_id = $1', 'any a b', 'any a b', 'any a b', 'any a'],
  ['UPDATE documents SET views = 0 WHERE tenant_id IN (60, 70)', 'a', 'hot c', 'hot c', 'hot b'],
  ['UPDATE documents SET views = 0 WHERE tenant_id IN (5, 60)', 'a', 'hot c', 'refused', 'hot b'],
  ['UPDATE documents SET views = 0', 'refused', 'hot c', 'refused', 'hot b'],
  ['UPDATE documents SET title = NULL', 'refused', 'refused', 'refused', 'halves a b'],
  ['UPDATE documents SET title = NULL WHERE tenant_id IN (5, 60)', 'a', 'halves a c', 'refused', 'halves a b'],
  ['UPDATE documents SET title = NULL WHERE tenant_id IN (5, 150)', 'refused', 'refused', 'refused', 'halves a b'],
  ['DELETE FROM documents WHERE tenant_id = 60', 'a', 'halves a c', 'halves a c', 'halves a b'],
  ['DELETE FROM documents WHERE tenant_id = 5', 'a', 'halves a c', 'a', 'halves a b'],
  ['DELETE FROM tenants WHERE id = 5', 'a', 'refused', 'refused', 'refused'],
  [
    'SELECT d.views, h.views FROM documents d JOIN documents_hot h USING (tenant_id, id) WHERE tenant_id = 60',
    'a',
    'gather a c',
    'gather a c',
    'gather a b',
  ],
  ['SELECT views FROM documents_hot WHERE tenant_id = 60', 'a', 'c', 'c', 'b'],
  ['SELECT views, name FROM documents, settings WHERE tenant_id = 60', 'a', 'gather a c', 'gather a c', 'gather a b'],
  [
    'UPDATE documents SET title = name FROM settings WHERE tenant_id = 60',
    'a',
    'halves a c',
    'halves a c',
    'halves a b',
  ],
  [
    'UPDATE documents SET title = name FROM settings WHERE tenant_id = 160',
    'refused',
    'refused',
    'refused',
    'halves a b',
  ],
  ['UPDATE documents SET title = code FROM units WHERE tenant_id = 60', 'a', 'halves a c', 'halves a c', 'halves a b'],
  ['COPY documents FROM STDIN', 'refused', 'refused', 'refused', 'refused'],
  ['TRUNCATE documents', 'refused', 'refused', 'refused', 'refused'],
  ['LOCK TABLE documents', 'refused', 'refused', 'refused', 'refused'],
  ['SELECT * FROM seen', 'refused', 'refused', 'refused', 'refused'],
];

describe('statements about several keys or none', () => {
  it.each(SPREAD)('%s', (sql, ...expected) => {
    const found = [TOGETHER, APART, MIXED, TWO].map((topology) => {
      const route = routed(topology, sql, sql.includes('$1') ? [null] : []);
      return route.kind === 'refused' ? 'refused' : summary(route);
    });
    expect(found).toEqual(expected);
    expect(summary(routed(SOLE, sql))).toMatch(/^(a|any a)$/);
  });
});

describe('the hot table by its name', () => {
  it.each([
    'INSERT INTO documents_hot VALUES (5, 7, 0, now())',
    'UPDATE documents_hot SET views = 0 WHERE tenant_id = 5',
    'DELETE FROM public.documents_hot WHERE tenant_id = 5',
    'WITH w AS (DELETE FROM documents_hot WHERE tenant_id = 5) SELECT 1',
    'TRUNCATE documents_hot',
    'COPY documents_hot FROM STDIN',
    'EXPLAIN ANALYZE DELETE FROM documents_hot WHERE tenant_id = 5',
    'MERGE INTO documents_hot USING units ON tenant_id = 5 WHEN MATCHED THEN DELETE',
  ])('%s is refused, also where one shard has everything', (sql) => {
    for (const topology of [SOLE, TOGETHER, APART]) {
      const route = routed(topology, sql);
      expect(summary(route)).toBe(
        'refused 0A000: "documents_hot" has columns of "documents", and is not to be changed by its own name',
      );
    }
  });
});

describe('DDL on a table whose columns are split, or on the table that has them, wherever they are', () => {
  it.each([
    'ALTER TABLE documents ADD x int',
    'ALTER TABLE documents ALTER views TYPE bigint, SET (fillfactor = 50)',
    'ALTER TABLE documents_hot ADD CHECK (views > 0)',
    'ALTER TABLE public.documents ENABLE ROW LEVEL SECURITY',
    'ALTER TABLE documents RENAME views TO seen',
    'ALTER TABLE documents RENAME TO texts',
    'ALTER TABLE documents SET SCHEMA other',
    'CREATE TRIGGER t BEFORE INSERT ON documents FOR EACH ROW EXECUTE FUNCTION f()',
    'DROP TRIGGER t ON documents',
    'CREATE POLICY p ON documents USING (true)',
    'CREATE RULE r AS ON DELETE TO documents DO INSTEAD NOTHING',
    'CREATE UNIQUE INDEX ON documents (tenant_id, title)',
    'CREATE TABLE more () INHERITS (documents)',
    'DROP TABLE notes, documents CASCADE',
    'DROP TABLE documents_hot',
    'DROP SCHEMA public CASCADE',
    'GRANT SELECT ON documents TO reader',
    'REVOKE ALL ON notes, documents_hot FROM reader',
    'GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader',
  ])('%s is refused', (sql) => {
    for (const topology of [SOLE, TOGETHER, APART])
      expect(summary(routed(topology, sql))).toMatch(
        /^refused 0A000: cannot change table "documents(_hot)?" while columns of "documents" are in a table of their own$/,
      );
  });

  it.each([
    'CREATE INDEX ON documents (title)',
    'ALTER TABLE documents SET (fillfactor = 50)',
    "COMMENT ON TABLE documents IS 'x'",
    'ANALYZE documents',
    'VACUUM documents_hot',
    'ALTER TABLE notes ADD x int',
    'DROP TABLE notes',
    'GRANT SELECT ON notes TO reader',
    'GRANT USAGE ON SCHEMA public TO reader',
  ])('%s is as on any table', (sql) => {
    expect(summary(routed(SOLE, sql))).not.toMatch('refused');
  });
});

it.each(['SET foreshard.halves = log', "SET LOCAL Foreshard.Halves TO 'bring'"])(
  'nobody but the proxy says what its triggers are to do: %s',
  (sql) => {
    for (const topology of [SOLE, TOGETHER, APART])
      expect(summary(routed(topology, sql))).toBe('refused 42501: parameter "foreshard.halves" is the proxy\'s own');
    expect(summary(routed(SOLE, 'RESET foreshard.halves'))).not.toMatch('refused');
  },
);

function texted(sql: string, session: SessionNames = SESSION) {
  const router = new Router({ topology: () => APART, metadata: () => metadata });
  const analyzed = router.analyze(Buffer.from(sql), session);
  const route = router.route(analyzed, 0, texts('5', '5', '5'), APART);
  const halves = route.kind === 'shard' ? route.hot : route.kind === 'halves' ? route.halves : undefined;
  if (halves === undefined) throw new Error(`${sql} → ${summary(route)}`);
  return { hot: router.hotText(analyzed, 0, halves), lock: router.lockBaseText(analyzed, 0) };
}

describe('the text for the hot table', () => {
  it.each([
    [
      'SELECT documents.views FROM documents WHERE documents.tenant_id = 5',
      'SELECT documents.views FROM "public"."documents_hot" AS "documents" WHERE documents.tenant_id = 5',
    ],
    [
      'SELECT d.views FROM public . "documents" d WHERE d.tenant_id = 5',
      'SELECT d.views FROM "public"."documents_hot" d WHERE d.tenant_id = 5',
    ],
    [
      "/* documents */ UPDATE documents SET views = $1 WHERE tenant_id = $2 AND last_seen > 'documents' -- documents",
      '/* documents */ UPDATE "public"."documents_hot" AS "documents" SET views = $1 WHERE tenant_id = $2 AND last_seen > \'documents\' -- documents',
    ],
    [
      'EXPLAIN SELECT views FROM documents WHERE tenant_id = 5',
      'EXPLAIN SELECT views FROM "public"."documents_hot" AS "documents" WHERE tenant_id = 5',
    ],
  ])('%s', (sql, expected) => {
    expect(texted(sql).hot?.text.toString()).toBe(expected);
  });

  it('leaves strings as they are where backslashes count', () => {
    const made = texted("UPDATE documents SET views = 1 WHERE tenant_id = 5 AND last_seen > 'a\\'b documents'", {
      ...SESSION,
      conforming: false,
    });
    expect(made.hot?.text.toString()).toBe(
      `UPDATE "public"."documents_hot" AS "documents" SET views = 1 WHERE tenant_id = 5 AND last_seen > 'a\\'b documents'`,
    );
  });

  it('finds the place of an error in the text that was sent', () => {
    const sql = 'SELECT views / 0 FROM documents WHERE tenant_id = 5 AND views = 1';
    const { hot } = texted(sql);
    const at = (hot?.text.toString() ?? '').indexOf('views = 1') + 1;
    expect(hot?.positionAsSent(at)).toBe(sql.indexOf('views = 1') + 1);
  });
});

describe('the text for the hot table, of a template that has been seen', () => {
  const newRouter = () => new Router({ topology: () => APART, metadata: () => metadata });
  const hotOf = (router: Router, sql: string, session: SessionNames = SESSION) => {
    const analyzed = router.analyze(Buffer.from(sql), session);
    expect(analyzed.syntaxError, sql).toBe(false);
    const route = router.route(analyzed, 0, null, APART);
    const halves = route.kind === 'shard' ? route.hot : undefined;
    if (halves === undefined) throw new Error(`${sql} → ${summary(route)}`);
    return { halves, made: router.hotText(analyzed, 0, halves) };
  };

  it('is made without parsing anything', () => {
    const router = newRouter();
    hotOf(router, 'SELECT views FROM documents WHERE tenant_id = 5 AND id IN (1, 2)');
    const { parses } = router.counters;
    const sql = 'select  views /* documents */ FROM DOCUMENTS WHERE tenant_id = 77 AND id IN (1, 2, 3, 4) AND 1 = 1';
    expect(hotOf(router, sql.replace(' AND 1 = 1', '')).made?.text.toString()).toBe(
      'select  views /* documents */ FROM "public"."documents_hot" AS "documents" WHERE tenant_id = 77 AND id IN (1, 2, 3, 4)',
    );
    expect(router.counters.parses).toBe(parses);
    // Of another template.
    hotOf(router, sql);
    expect(router.counters.parses).toBeGreaterThan(parses);
  });

  it('is the one of a text that is read by itself, whatever its literals, lists and spaces are', () => {
    const random = new SqlGenerator(4711, []);
    const literals: Record<string, readonly string[]> = {
      INT: ['1', '77', '0x1F', '2147483647', '1_000'],
      STR: ["'a'", "'it''s documents'", "E'\\'documents'", '$x$ documents $x$', "'a'\n 'documents'", "''"],
      TIME: ["'2026-01-01'", "E'2026-01-01 FROM documents'", '$$2026-01-01$$'],
    };
    const list = (of: string): string =>
      Array.from({ length: 1 + random.int(5) }, () => random.pick(literals[of] ?? [])).join(' , ');
    const templates = [
      'SELECT views FROM documents WHERE tenant_id = INT AND id = INT',
      'SELECT views IN ( INTS ) , id IN ( INTS ) , INT FROM documents WHERE tenant_id = INT AND id IN ( INTS )',
      'SELECT coalesce ( documents . last_seen , STR ) , STR AS documents_too FROM public . documents WHERE documents . tenant_id = INT ORDER BY INT',
      'SELECT "D" . views , STR FROM "documents" AS "D" WHERE "D" . tenant_id = INT AND "D" . last_seen > TIME LIMIT INT',
      'UPDATE documents SET views = CASE WHEN views IN ( INTS ) THEN INT ELSE views + INT END , last_seen = TIME WHERE tenant_id = INT AND id IN ( INTS )',
      'UPDATE public . documents d SET views = - INT WHERE tenant_id = INT AND last_seen IN ( TIMES ) RETURNING views , STR',
      'EXPLAIN SELECT sum ( views ) FROM documents WHERE tenant_id = INT AND views NOT IN ( INTS )',
    ];
    const spaces = [' ', ' ', '\n\t', ' /* documents, é */ ', ' -- FROM documents\n'];
    const router = newRouter();
    let kept = 0;
    for (let i = 0; i < 400; i++) {
      const words = random
        .pick(templates)
        .split(' ')
        .map((word) => {
          if (literals[word] !== undefined) return random.pick(literals[word]);
          if (literals[word.slice(0, -1)] !== undefined) return list(word.slice(0, -1));
          return random.int(4) === 0 && !word.includes('"') ? word.toUpperCase() : word;
        });
      const sql = words.reduce((text, word) => `${text}${random.pick(spaces)}${word}`);
      const { parses } = router.counters;
      const { made } = hotOf(router, sql);
      if (router.counters.parses === parses) kept += 1;
      const alone = hotOf(newRouter(), sql).made;
      expect(made?.text.toString(), sql).toBe(alone?.text.toString());
      expect(made?.text.toString(), sql).toContain('"public"."documents_hot"');
      const end = made?.text.toString().length ?? 0;
      for (const at of [1, random.int(end), end]) expect(made?.positionAsSent(at), sql).toBe(alone?.positionAsSent(at));
    }
    expect(kept).toBeGreaterThan(200);
  });

  it('is not made of a text that belongs to another plan', () => {
    const router = newRouter();
    const { halves } = hotOf(router, 'SELECT views FROM documents WHERE tenant_id = 5');
    const other = router.analyze(Buffer.from('SELECT total FROM orders WHERE tenant_id = 5'), SESSION);
    expect(router.hotText(other, 0, halves)).toBeNull();
  });

  it('is read anew behind one with strings that the parser has not seen', () => {
    const router = newRouter();
    const session: SessionNames = { ...SESSION, conforming: false };
    const sql = (text: string) => `UPDATE documents SET views = 1 WHERE tenant_id = 5 AND last_seen > ${text}`;
    const made = (text: string) => hotOf(router, sql(text), session).made?.text.toString();
    const { counters } = router;
    for (const [text, parsed] of [
      ["'a\\'b documents'", 2],
      ["'a\\'c documents'", 3],
      ["'c'", 4],
      ["'a\\'d documents'", 4],
    ] as const) {
      expect(made(text)).toBe(sql(text).replace('documents', '"public"."documents_hot" AS "documents"'));
      expect(counters.parses, text).toBe(parsed);
    }
  });
});

describe('the text that locks base halves', () => {
  it.each([
    [
      'UPDATE documents SET title = views::text WHERE tenant_id = 5 AND views > 3 AND id = $1',
      `("t"."tenant_id" = 5) AND ("t"."id" = $1)`,
    ],
    [
      'DELETE FROM documents d USING orders o WHERE d.tenant_id = 5 AND o.tenant_id = 5 AND o.id = d.id AND d.title IS NULL RETURNING d.views',
      `("t"."tenant_id" = 5) AND ("t"."title" IS NULL)`,
    ],
    [
      "SELECT * FROM documents WHERE tenant_id = 5 AND title LIKE 'a%' AND last_seen > now() FOR UPDATE",
      `("t"."tenant_id" = 5) AND ("t"."title" LIKE 'a%')`,
    ],
    [
      'UPDATE documents d SET views = views + 1 FROM orders o WHERE d.tenant_id = 5 AND o.tenant_id = 5 AND (d.id = o.total OR d.title IS NULL)',
      `("t"."tenant_id" = 5)`,
    ],
    [
      'INSERT INTO documents (tenant_id, id) VALUES (5, $1), (5, 8) ON CONFLICT (tenant_id, id) DO UPDATE SET views = documents.views + 1',
      `(("t"."tenant_id" = 5 AND "t"."id" = $1) OR ("t"."tenant_id" = 5 AND "t"."id" = 8))`,
    ],
  ])('%s', (sql, condition) => {
    expect(texted(sql).lock).toBe(
      `SELECT "t"."tenant_id", "t"."id" FROM "public"."documents" AS "t" WHERE ${condition} FOR UPDATE`,
    );
  });
});

/** Judged by what the statement was made of, not by its tree. */
describe('random statements', () => {
  it('go where the columns are that they name', () => {
    let seed = 20261122;
    const random = (n: number) => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % n;
    };
    const pick = <T>(all: readonly T[]): T => all[random(all.length)] as T;
    const columns = ['id', 'title', 'body', 'views', 'last_seen'];
    const counts = new Map<string, number>();
    for (let i = 0; i < 1_000; i++) {
      const named: string[] = [];
      const as = pick(['', 'd', 'documents']);
      const column = () => {
        const name = pick(columns);
        named.push(name);
        return as === '' || random(2) === 0 ? name : `${as}.${name}`;
      };
      const some = (make: () => string, most: number) => Array.from({ length: random(most + 1) }, make);
      const from = as === 'd' ? 'documents d' : 'documents';
      const conditions = ['tenant_id = 5', ...some(() => `${column()} IS NOT NULL`, 2)].join(' AND ');
      let expected: string;
      let sql: string;
      const hot = (name: string) => name === 'views' || name === 'last_seen';
      if (random(2) === 0) {
        const star = random(8) === 0;
        const list = [column(), ...some(() => `coalesce(${column()}, NULL)`, 2), ...(star ? ['*'] : [])].join(', ');
        const order = some(() => ` ORDER BY ${column()}`, 1).join('');
        sql = `SELECT ${list} FROM ${from} WHERE ${conditions}${order}`;
        const anyHot = star || named.some(hot);
        const allHot = !star && named.every((name) => hot(name) || name === 'id');
        expected = !anyHot ? 'a' : allHot ? 'hot c' : 'gather a c';
      } else {
        const first = pick(columns.slice(1));
        const set = [...new Set([first, ...some(() => pick(columns.slice(1)), 1)])];
        const values = set.map((name) => `${name} = ${random(2) === 0 ? 'NULL' : column()}`).join(', ');
        const star = random(8) === 0;
        const returning = star ? ' RETURNING *' : some(() => ` RETURNING ${column()}`, 1).join('');
        sql = `UPDATE ${from} SET ${values} WHERE ${conditions}${returning}`;
        const assigned = ['views', 'last_seen'].filter((name) => set.includes(name));
        // A check may be over both.
        const reads = star || named.some(hot) || assigned.length === 1;
        const only = !star && set.every(hot) && named.every((name) => hot(name) || name === 'id');
        expected = only
          ? 'hot c'
          : `halves a c${reads ? ' brings' : ''}${assigned.length > 0 ? ` sets ${assigned.join(',')}` : ''}`;
      }
      expect(`${sql} → ${shown(routed(APART, sql))}`).toBe(`${sql} → ${expected}`);
      expect(summary(routed(TOGETHER, sql))).toBe('a');
      const kind = expected.split(' ')[0] as string;
      counts.set(kind, (counts.get(kind) ?? 0) + 1);
    }
    for (const kind of ['a', 'hot', 'gather', 'halves']) expect(counts.get(kind), kind).toBeGreaterThan(50);
  });
});
