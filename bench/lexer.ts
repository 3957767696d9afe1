/**
 * How long the template's key of a statement takes, against libpg-query's ways to the same end.
 * Run: npx tsc && node dist/bench/lexer.js
 */
import { cpus } from 'node:os';
import { fingerprintSync, loadModule, parseSync, scanSync } from 'libpg-query';
import { Lexer } from '../proxy/router/lexer.js';
import { EMPTY_METADATA } from '../proxy/router/metadata.js';
import { Router } from '../proxy/router/router.js';
import type { Epoch, Keyspace, KeyspaceName, ShardedTable, ShardName, Topology } from '../topology/topology.js';
import { compareContenders } from './measure.js';

const STATEMENTS: readonly (readonly [name: string, sql: string])[] = [
  ['pgbench select', 'SELECT abalance FROM pgbench_accounts WHERE aid = 4711;'],
  ['short, parameters', 'select id, total from orders where tenant_id = $1 and id = $2'],
  [
    'ORM select',
    'SELECT "orders"."id", "orders"."tenant_id", "orders"."note", "orders"."total" FROM "orders" INNER JOIN "items" ON ("items"."tenant_id" = "orders"."tenant_id" AND "items"."order_id" = "orders"."id") WHERE ("orders"."tenant_id" = 42 AND "orders"."note" LIKE \'a%\') ORDER BY "orders"."id" DESC LIMIT 20',
  ],
  [
    'insert, 100 rows',
    `INSERT INTO orders (tenant_id, id, note) VALUES ${Array.from({ length: 100 }, (_, i) => `(42, ${i}, 'note ${i}')`).join(', ')}`,
  ],
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
const shop: Keyspace = {
  name: orders.keyspace,
  method: 'range',
  keyTypes: ['int8'],
  tables: [orders, items, accounts],
  ranges: [
    { id: 1n, keyspace: orders.keyspace, lo: null, hi: [100n], shard: home },
    { id: 2n, keyspace: orders.keyspace, lo: [100n], hi: null, shard: 'b' as ShardName },
  ],
};
const topology: Topology = {
  epoch: 1n as Epoch,
  database: 'bench',
  shards: new Map(),
  home,
  keyspaces: new Map([[shop.name, shop]]),
  shardedTables: new Map(shop.tables.map((t) => [`public.${t.table}`, t])),
  referenceTables: new Map(),
  holds: [],
  schemaGeneration: 0n,
};
const params = { oids: [], formats: [0, 0], values: [Buffer.from('42'), Buffer.from('7')] };
const session = { searchPath: ['public'], user: 'app' };

for (const [name, sql] of STATEMENTS) {
  const text = Buffer.from(sql);
  const lexer = new Lexer();
  const router = new Router({ topology: () => topology, metadata: () => EMPTY_METADATA });
  compareContenders(`route: ${name}, ${text.length} bytes`, [
    { contender: 'lexer, scan only', role: 'ours', run: () => lexer.scan(text) },
    {
      contender: 'lexer, with the key',
      role: 'ours',
      run: () => {
        lexer.scan(text);
        lexer.key();
      },
    },
    {
      contender: 'router, analyze and route',
      role: 'ours',
      run: () => {
        router.route(router.analyze(text, session), 0, params, topology);
      },
    },
    { contender: 'libpg-query scan', role: 'other', run: () => scanSync(sql) },
    { contender: 'libpg-query fingerprint', role: 'other', run: () => fingerprintSync(sql) },
    { contender: 'libpg-query parse', role: 'reference', run: () => parseSync(sql) },
  ]);
}
