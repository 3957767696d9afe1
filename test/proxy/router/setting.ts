import { type MetadataJson, parseMetadata } from '../../../proxy/router/metadata.js';
import type { BoundParams, Route } from '../../../proxy/router/route.js';
import { Router } from '../../../proxy/router/router.js';
import type { TextReader } from '../../../proxy/router/text-reader.js';
import type { KeyType, Position } from '../../../topology/key.js';
import type {
  Epoch,
  Keyspace,
  KeyspaceName,
  Range,
  ReferenceTable,
  ShardedTable,
  ShardName,
  Topology,
} from '../../../topology/topology.js';
import { tableId } from '../../../topology/topology.js';

const shard = (name: string) => name as ShardName;
const A = shard('a');
const B = shard('b');
const C = shard('c');

function keyspace(
  name: string,
  keyTypes: readonly KeyType[],
  tables: readonly [schema: string, table: string, columns: readonly string[]][],
  cuts: readonly (readonly [Position, ShardName])[],
  first: ShardName,
  method: 'range' | 'hash' = 'range',
): Keyspace {
  const bounds: (Position | null)[] = [null, ...cuts.map(([p]) => p), null];
  const owners = [first, ...cuts.map(([, s]) => s)];
  const ranges: Range[] = owners.map((s, i) => ({
    id: BigInt(i + 1),
    keyspace: name as KeyspaceName,
    lo: bounds[i] ?? null,
    hi: bounds[i + 1] ?? null,
    shard: s,
  }));
  const sharded: ShardedTable[] = tables.map(([schema, table, keyColumns]) => ({
    schema,
    table,
    keyColumns,
    keyspace: name as KeyspaceName,
  }));
  return { name: name as KeyspaceName, method, keyTypes, tables: sharded, ranges };
}

/**
 * Three shards a (home), b and c. Keyspace shop by int8: a below 100, b from 100, c from 200. Keyspace docs by (text,
 * date): a below "m", b from there. Keyspace hashed by hash of a uuid: c below 0, a from 0. countries has copies on a and b, currencies on all.
 */
export function spreadTopology(): Topology {
  return topologyOf([
    keyspace(
      'shop',
      ['int8'],
      [
        ['public', 'tenants', ['id']],
        ['public', 'orders', ['tenant_id']],
        ['public', 'items', ['tenant_id']],
        ['app', 'Notes', ['Tenant']],
      ],
      [
        [[100n], B],
        [[200n], C],
      ],
      A,
    ),
    keyspace('docs', ['text', 'date'], [['public', 'docs', ['owner', 'day']]], [[['m'], B]], A),
    keyspace('hashed', ['uuid'], [['public', 'events', ['id']]], [[[0n], A]], C, 'hash'),
    keyspace('times', ['timestamptz'], [['public', 'ticks', ['at']]], [[[0n], B]], A),
  ]);
}

/** The same tables, all on shard a. */
export function soleTopology(): Topology {
  const spread = spreadTopology();
  return topologyOf(
    [...spread.keyspaces.values()].map((k) => ({ ...k, ranges: k.ranges.map((r) => ({ ...r, shard: A })) })),
  );
}

function topologyOf(keyspaces: readonly Keyspace[]): Topology {
  const references: ReferenceTable[] = [
    { schema: 'public', table: 'countries', shards: [A, B] },
    { schema: 'public', table: 'currencies', shards: [A, B, C] },
    { schema: 'public', table: 'units', shards: [B] },
  ];
  return {
    epoch: 1n as Epoch,
    database: 'shop',
    shards: new Map(
      [A, B, C].map((name) => [
        name,
        { name, url: `postgres://${name}/shop`, home: name === A, capacityMsPerSecond: null },
      ]),
    ),
    home: A,
    keyspaces: new Map(keyspaces.map((k) => [k.name, k])),
    shardedTables: new Map(keyspaces.flatMap((k) => k.tables.map((t) => [tableId(t), t]))),
    referenceTables: new Map(references.map((t) => [tableId(t), t])),
    holds: [],
    replicas: [],
    schemaGeneration: 0n,
  };
}

const relation = (
  schema: string,
  table: string,
  kind: string,
  columns: readonly string[],
  parents: readonly (readonly [string, string])[] = [],
) => ({
  schema,
  table,
  kind,
  columns,
  parents,
});

const body = (name: string, text: string) => ({
  schema: 'public',
  name,
  immutable: false,
  native: false,
  opaque: false,
  body: text,
});

export const METADATA: MetadataJson = {
  relations: [
    relation('public', 'tenants', 'r', ['id', 'name', 'country']),
    relation('public', 'orders', 'r', ['tenant_id', 'id', 'note', 'total', 'country', 'placed_at']),
    relation('public', 'items', 'r', ['tenant_id', 'order_id', 'sku', 'qty']),
    relation('public', 'docs', 'r', ['owner', 'day', 'body']),
    relation('public', 'events', 'r', ['id', 'body']),
    relation('public', 'ticks', 'r', ['at', 'value']),
    relation('app', 'Notes', 'r', ['Tenant', 'body']),
    relation('public', 'countries', 'r', ['code', 'name']),
    relation('public', 'currencies', 'r', ['code', 'name']),
    relation('public', 'units', 'r', ['code']),
    relation('public', 'settings', 'r', ['name', 'value']),
    relation('public', 'other', 'r', ['tenant_id', 'x']),
    relation('public', 'paid_orders', 'v', ['tenant_id', 'id']),
    relation('public', 'totals', 'm', ['tenant_id', 'total']),
    relation('public', 'orders_part', 'r', ['tenant_id', 'id'], [['public', 'orders']]),
    relation('public', 'setting_names', 'v', ['name']),
    relation('public', 'audited', 'r', ['x']),
    relation('public', 'tenant_notes', 'r', ['tenant_id']),
    relation('public', 'kinds', 'r', ['kind']),
    relation('public', 'family', 'r', ['x']),
    relation('public', 'sized', 'v', ['bytes']),
    relation('public', 'orders_pkey', 'i', []),
    relation('public', 'settings_pkey', 'i', []),
    relation('public', 'orders_id_seq', 'S', []),
    relation('public', 'invoice', 'S', []),
    relation('public', 'settings_id', 'S', []),
    relation('pg_catalog', 'pg_class', 'r', []),
    relation('pg_catalog', 'pg_namespace', 'r', []),
    relation('information_schema', 'tables', 'v', []),
  ],
  functions: [
    { schema: 'public', name: 'tax', immutable: true, native: false },
    { schema: 'public', name: 'tenant_total', immutable: false, native: false },
    { schema: 'public', name: 'uuid_generate_v4', immutable: false, native: true },
    body('set_value', "BEGIN UPDATE settings SET value = 'x'; PERFORM read_value(); RETURN now(); END"),
    body('read_value', 'SELECT value FROM settings; /* calls set_value() */'),
    body('circle', 'SELECT set_value(), leads_out()'),
    body('leads_out', 'SELECT circle(), count(*) FROM public."orders"'),
    body('through_view', 'SELECT * FROM paid_orders'),
    body('through_trigger', 'INSERT INTO audited VALUES (1)'),
    body('dynamic', "BEGIN EXECUTE 'SELECT 1'; END"),
    body('sets', 'BEGIN\n  SET work_mem = 100; END'),
    body('sizes', "SELECT pg_relation_size('settings')"),
    body('escaped', 'SELECT * FROM U&"\\006frders"'),
    body('audit', 'BEGIN INSERT INTO Orders VALUES (1); RETURN NEW; END'),
    body('stamp', 'BEGIN NEW.x := 1; RETURN NEW; END'),
    { schema: 'public', name: 'in_c', immutable: false, native: true, opaque: true },
  ],
  operators: ['<#>'],
  edges: [
    { schema: 'public', table: 'paid_orders', kind: 'reads', to: ['public', 'orders'] },
    { schema: 'public', table: 'totals', kind: 'reads', to: ['public', 'paid_orders'] },
    { schema: 'public', table: 'setting_names', kind: 'reads', to: ['public', 'settings'] },
    { schema: 'public', table: 'tenant_notes', kind: 'checks', to: ['public', 'tenants'] },
    { schema: 'public', table: 'kinds', kind: 'writes', to: ['public', 'items'] },
    { schema: 'public', table: 'items', kind: 'checks', to: ['public', 'kinds'] },
    { schema: 'public', table: 'family', kind: 'reads', to: ['public', 'orders'] },
    { schema: 'public', table: 'orders_pkey', kind: 'reads', to: ['public', 'orders'] },
    { schema: 'public', table: 'settings_pkey', kind: 'reads', to: ['public', 'settings'] },
    { schema: 'public', table: 'orders_id_seq', kind: 'checks', to: ['public', 'orders'] },
    { schema: 'public', table: 'settings_id', kind: 'checks', to: ['public', 'settings'] },
  ],
  runs: [
    { schema: 'public', table: 'audited', kind: 'fires', name: 'audit' },
    { schema: 'public', table: 'sized', kind: 'calls', name: 'pg_relation_size' },
  ],
  builtins: {
    now: 'stable',
    count: 'other',
    nummultirange: 'pure',
    textanycat: 'stable',
    pg_filenode_relation: 'catalog',
    pg_relation_size: 'other',
    pg_switch_wal: 'other',
    table_to_xml: 'catalog',
  },
};

export function makeRouter(topology: () => Topology, reader?: TextReader): Router {
  const metadata = parseMetadata(JSON.stringify(METADATA));
  return new Router({ topology, metadata: () => metadata, ...(reader === undefined ? {} : { reader }) });
}

export const SESSION = { searchPath: ['$user', 'public'], user: 'app' };

/** Parameters in text form, without declared types. */
export function texts(...values: (string | null)[]): BoundParams {
  return { oids: [], formats: values.map(() => 0), values: values.map((v) => (v === null ? null : Buffer.from(v))) };
}

/** One word and the shards: what a table of expectations holds. */
export function summary(route: Route): string {
  switch (route.kind) {
    case 'shard':
      return route.hot === undefined ? route.shard : `hot ${route.shard}`;
    case 'halves':
      return `halves ${route.shard} ${route.hotShard}`;
    case 'refused':
      return `refused ${route.refusal.sqlstate}: ${route.refusal.message}`;
    default:
      return `${route.kind} ${route.shards.join(' ')}`;
  }
}
