/**
 * How long it takes to find a statement's template and its route, step by step, against libpg-query's ways to the same end.
 * Run: npx tsc && node dist/bench/lexer.js
 */
import { cpus } from 'node:os';
import { fingerprintSync, loadModule, parseSync, scanSync } from 'libpg-query';
import { Lexer } from '../proxy/router/lexer.js';
import { EMPTY_METADATA } from '../proxy/router/metadata.js';
import { Router } from '../proxy/router/router.js';
import { TemplateCache } from '../proxy/router/template-cache.js';
import type { Epoch, Keyspace, KeyspaceName, ShardedTable, ShardName, Topology } from '../topology/topology.js';
import { compareContenders } from './measure.js';

interface Statement {
  readonly name: string;
  readonly sql: string;
  /** Values of parameters, in text form. */
  readonly params?: readonly string[];
}

const numbers = (n: number) => Array.from({ length: n }, (_, i) => i);
const STATEMENTS: readonly Statement[] = [
  { name: 'pgbench select', sql: 'SELECT abalance FROM pgbench_accounts WHERE aid = 4711;' },
  {
    name: 'short, parameters',
    sql: 'select id, total from orders where tenant_id = $1 and id = $2',
    params: ['42', '7'],
  },
  {
    name: '100 bytes, literals',
    sql: "SELECT id, total, note FROM orders WHERE tenant_id = 4711 AND id = 1234567 AND note = 'a note' LIMIT 1",
  },
  {
    name: '100 bytes, parameters',
    sql: 'SELECT id, total, note FROM orders WHERE tenant_id = $1 AND id = $2 AND note = $3 AND total > $4 LIMIT 1',
    params: ['4711', '1234567', 'a note', '5'],
  },
  { name: 'key is a uuid, by hash', sql: "SELECT body FROM events WHERE id = '0b6f8a3e-5c1d-4a2b-9e7f-123456789abc'" },
  {
    name: 'key is a uuid, by hash, parameter',
    sql: 'SELECT body FROM events WHERE id = $1',
    params: ['0b6f8a3e-5c1d-4a2b-9e7f-123456789abc'],
  },
  {
    name: 'ORM select',
    sql: 'SELECT "orders"."id", "orders"."tenant_id", "orders"."note", "orders"."total" FROM "orders" INNER JOIN "items" ON ("items"."tenant_id" = "orders"."tenant_id" AND "items"."order_id" = "orders"."id") WHERE ("orders"."tenant_id" = 42 AND "orders"."note" LIKE \'a%\') ORDER BY "orders"."id" DESC LIMIT 20',
  },
  {
    name: 'IN with 20 keys',
    sql: `SELECT id, total FROM orders WHERE tenant_id IN (${numbers(20)
      .map((i) => i + 40)
      .join(', ')})`,
  },
  {
    name: 'insert, 100 rows',
    sql: `INSERT INTO orders (tenant_id, id, note) VALUES ${numbers(100)
      .map((i) => `(42, ${i}, 'note ${i}')`)
      .join(', ')}`,
  },
];
await loadModule();
console.log(`${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} cores; Node ${process.version}`);
const orders: ShardedTable = {
  schema: 'public',
  table: 'orders',
  keyColumns: ['tenant_id'],
  keyspace: 'shop' as KeyspaceName,
};
const accounts: ShardedTable = { ...orders, table: 'pgbench_accounts', keyColumns: ['aid'] };
const items: ShardedTable = { ...orders, table: 'items' };
const home = 'a' as ShardName;
const b = 'b' as ShardName;
/** Of 64 ranges. */
const cut = (i: number) => (i === 0 || i === 64 ? null : [(BigInt(i) - 32n) << 58n]);
const events: Keyspace = {
  name: 'hashed' as KeyspaceName,
  method: 'hash',
  keyTypes: ['uuid'],
  tables: [{ ...orders, table: 'events', keyColumns: ['id'], keyspace: 'hashed' as KeyspaceName }],
  ranges: numbers(64).map((i) => ({
    id: BigInt(i),
    keyspace: 'hashed' as KeyspaceName,
    lo: cut(i),
    hi: cut(i + 1),
    shard: i % 2 === 0 ? home : b,
  })),
};
const shop: Keyspace = {
  name: orders.keyspace,
  method: 'range',
  keyTypes: ['int8'],
  tables: [orders, items, accounts],
  ranges: [
    { id: 1n, keyspace: orders.keyspace, lo: null, hi: [100n], shard: home },
    { id: 2n, keyspace: orders.keyspace, lo: [100n], hi: null, shard: b },
  ],
};
const topology: Topology = {
  epoch: 1n as Epoch,
  database: 'bench',
  shards: new Map(),
  home,
  keyspaces: new Map([shop, events].map((k) => [k.name, k])),
  shardedTables: new Map([...shop.tables, ...events.tables].map((t) => [`public.${t.table}`, t])),
  referenceTables: new Map(),
  holds: [],
  replicas: [],
  schemaGeneration: 0n,
};
const session = { searchPath: ['public'], user: 'app' };

/** What a proxy that has been up for a while has seen besides. */
const OTHERS = numbers(500).map((i) => Buffer.from(`SELECT c${i} FROM settings WHERE name = 'x'`));

for (const { name, sql, params } of STATEMENTS) {
  const text = Buffer.from(sql);
  const lexer = new Lexer();
  const router = new Router({ topology: () => topology, metadata: () => EMPTY_METADATA });
  for (const other of OTHERS) router.analyze(other, session);
  const cache = new TemplateCache<{ readonly id: number }, object>({ entries: 1_000, bytes: 1 << 20 });
  const scope = { id: 1 };
  lexer.scan(text);
  cache.set(lexer, scope, {}, 0);
  const values = params?.map((p) => Buffer.from(p));
  const bound = values ? { oids: [], formats: values.map(() => 0), values } : null;
  const analyzed = router.analyze(text, session);
  compareContenders(`route: ${name}, ${text.length} bytes`, [
    { contender: 'lexer, scan only', role: 'ours', run: () => lexer.scan(text) },
    { contender: 'look-up after the scan', role: 'ours', run: () => cache.get(lexer, scope) },
    { contender: 'router, analyze', role: 'ours', run: () => router.analyze(text, session) },
    { contender: 'route: key, hash, range', role: 'ours', run: () => router.route(analyzed, 0, bound, topology) },
    {
      contender: 'router, analyze and route',
      role: 'ours',
      run: () => router.route(router.analyze(text, session), 0, bound, topology),
    },
    { contender: 'libpg-query scan', role: 'other', run: () => scanSync(sql) },
    { contender: 'libpg-query fingerprint', role: 'other', run: () => fingerprintSync(sql) },
    { contender: 'libpg-query parse', role: 'reference', run: () => parseSync(sql) },
  ]);
}
