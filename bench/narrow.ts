/**
 * What it costs that each shard of a SELECT over several gets the text with a condition that leaves it the rows that it owns: making the
 * conditions (a part of the route), finding their place in the text, and putting them in. To compare: looking the template up.
 * Run: npx tsc && node dist/bench/narrow.js
 */
import { cpus } from 'node:os';
import { loadModule } from 'libpg-query';
import { EMPTY_METADATA } from '../proxy/router/metadata.js';
import { Narrowable } from '../proxy/router/narrow.js';
import { Router } from '../proxy/router/router.js';
import type { Epoch, Keyspace, KeyspaceName, ShardedTable, ShardName, Topology } from '../topology/topology.js';
import { compareContenders } from './measure.js';

const SHARDS = ['a', 'b', 'c', 'd'] as ShardName[];
const RANGES = 64;

/** With ranges that go round the shards: no two neighbours are on one. */
function keyspace(method: 'range' | 'hash', table: string): Keyspace {
  const name = method as KeyspaceName;
  const cut = (i: number) =>
    i === 0 || i === RANGES ? null : [method === 'hash' ? (BigInt(i) - 32n) << 58n : BigInt(i) * 1000n];
  const sharded: ShardedTable = { schema: 'public', table, keyColumns: ['tenant_id'], keyspace: name };
  return {
    name,
    method,
    keyTypes: ['int8'],
    tables: [sharded],
    ranges: Array.from({ length: RANGES }, (_, i) => ({
      id: BigInt(i),
      keyspace: name,
      lo: cut(i),
      hi: cut(i + 1),
      shard: SHARDS[i % SHARDS.length] as ShardName,
    })),
  };
}

const keyspaces = [keyspace('range', 'orders'), keyspace('hash', 'events')];
const topology: Topology = {
  epoch: 1n as Epoch,
  database: 'bench',
  shards: new Map(),
  home: 'a' as ShardName,
  keyspaces: new Map(keyspaces.map((k) => [k.name, k])),
  shardedTables: new Map(keyspaces.flatMap((k) => k.tables).map((t) => [`public.${t.table}`, t])),
  referenceTables: new Map(),
  holds: [],
  replicas: [],
  schemaGeneration: 0n,
};
const session = { searchPath: ['public'], user: 'app' };

await loadModule();
console.log(`${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} cores; Node ${process.version}`);
for (const table of ['orders', 'events'])
  for (const [name, sql] of [
    ['short', `SELECT id FROM ${table} WHERE note = 'a'`],
    [
      '300 bytes',
      `SELECT ${Array.from({ length: 16 }, (_, i) => `t.column_${i}`).join(', ')} FROM ${table} AS t WHERE t.note = 'a' AND t.total > 100`,
    ],
  ] as const) {
    const router = new Router({ topology: () => topology, metadata: () => EMPTY_METADATA });
    const text = Buffer.from(sql);
    const analyzed = router.analyze(text, session);
    const route = router.route(analyzed, 0, null, topology);
    if (route.kind !== 'fanout') throw new Error(`${sql}: ${JSON.stringify(route)}`);
    const { own } = route;
    compareContenders(
      `SELECT over ${SHARDS.length} shards, ${RANGES} ranges, ${table === 'orders' ? 'by range' : 'by hash'}: ${name}`,
      [
        { contender: 'router, analyze', role: 'other', run: () => router.analyze(text, session) },
        { contender: 'route, with conditions', role: 'ours', run: () => router.route(analyzed, 0, null, topology) },
        { contender: 'places in the text', role: 'ours', run: () => new Narrowable(analyzed) },
        {
          contender: 'places, and the texts of all',
          role: 'ours',
          run: () => {
            const narrowable = new Narrowable(analyzed);
            for (const shard of SHARDS) narrowable.to(own.get(shard) as string);
          },
        },
      ],
    );
  }
