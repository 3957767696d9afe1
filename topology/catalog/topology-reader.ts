import type pg from 'pg';
import { ForeshardError } from '../errors.js';
import { comparePositions, type KeyType, type Method } from '../key.js';
import { positionFromJson } from '../key-codec.js';
import type {
  Epoch,
  Hold,
  Keyspace,
  KeyspaceName,
  Range,
  RangeReplica,
  ReferenceTable,
  Shard,
  ShardedTable,
  ShardName,
  TableName,
  Topology,
} from '../topology.js';
import { tableId } from '../topology.js';
import { timedQuery } from './timed-query.js';

/** One statement, hence one snapshot. Every bigint travels as text: JSON numbers would lose digits. */
const READ_TOPOLOGY = `
SELECT m.epoch::text, m.schema_generation::text AS "schemaGeneration", m.database,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('name', s.name, 'url', s.url, 'home', s.home,
            'capacity', s.capacity_ms_per_second) ORDER BY s.name), '[]') FROM foreshard.shard s) AS shards,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('name', k.name, 'method', k.method, 'keyTypes', k.key_types)
            ORDER BY k.name), '[]') FROM foreshard.keyspace k) AS keyspaces,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('schema', t.schema_name, 'table', t.table_name, 'keyspace', t.keyspace,
            'keyColumns', t.key_columns) ORDER BY t.schema_name, t.table_name), '[]') FROM foreshard.sharded_table t) AS tables,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('table', jsonb_build_object('schema', s.schema_name, 'table', s.table_name),
            'hot', jsonb_build_object('schema', s.hot_schema, 'table', s.hot_table), 'columns', s.columns, 'primaryKey', s.primary_key)
            ORDER BY s.schema_name, s.table_name), '[]') FROM foreshard.column_split s) AS splits,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('id', r.id::text, 'keyspace', r.keyspace, 'lo', r.lo, 'hi', r.hi,
            'shard', r.shard)), '[]') FROM foreshard.range r) AS ranges,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('schema', t.schema_name, 'table', t.table_name, 'shards',
            (SELECT coalesce(jsonb_agg(c.shard ORDER BY c.shard), '[]') FROM foreshard.reference_copy c
              WHERE c.schema_name = t.schema_name AND c.table_name = t.table_name))
            ORDER BY t.schema_name, t.table_name), '[]') FROM foreshard.reference_table t) AS refs,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('id', h.id::text, 'keyspace', h.keyspace, 'lo', h.lo, 'hi', h.hi,
            'referenceTables', h.reference_tables, 'endsTransactions', h.ends_transactions,
            'remainingMs', extract(epoch FROM h.deadline - clock_timestamp()) * 1000) ORDER BY h.id), '[]')
     FROM foreshard.hold h WHERE h.deadline > clock_timestamp()) AS holds,
  (SELECT coalesce(jsonb_agg(jsonb_build_object('id', p.migration_id::text, 'since', p.since::text, 'keyspace', p.keyspace, 'lo', p.lo,
            'hi', p.hi, 'source', p.source, 'shard', p.shard, 'marker', jsonb_build_object('schema', p.marker_schema, 'table', p.marker_table),
            'referenceTables', p.reference_tables, 'schemaGeneration', p.schema_generation::text,
            'maxStalenessMs', p.max_staleness_ms, 'readPercent', p.read_percent) ORDER BY p.migration_id), '[]')
     FROM foreshard.range_replica p WHERE p.since IS NOT NULL) AS replicas
FROM foreshard.meta m`;

interface HoldRow {
  id: string;
  keyspace: string;
  lo: string[] | null;
  hi: string[] | null;
  referenceTables: boolean;
  endsTransactions: boolean;
  remainingMs: number;
}

interface Row {
  epoch: string;
  schemaGeneration: string;
  database: string;
  shards: { name: string; url: string; home: boolean; capacity: number | null }[];
  keyspaces: { name: string; method: Method; keyTypes: KeyType[] }[];
  tables: { schema: string; table: string; keyspace: string; keyColumns: string[] }[];
  splits: { table: TableName; hot: TableName; columns: string[]; primaryKey: string[] }[];
  ranges: { id: string; keyspace: string; lo: string[] | null; hi: string[] | null; shard: string }[];
  refs: { schema: string; table: string; shards: string[] }[];
  holds: HoldRow[];
  replicas: {
    id: string;
    since: string;
    keyspace: string;
    lo: string[] | null;
    hi: string[] | null;
    source: string;
    shard: string;
    marker: TableName;
    referenceTables: TableName[];
    schemaGeneration: string;
    maxStalenessMs: number;
    readPercent: number;
  }[];
}

/** Reads the topology over any connection; inside a transaction it is the transaction's view. */
export async function readTopology(db: Pick<pg.ClientBase, 'query'> | pg.Pool): Promise<Topology> {
  const row = (await (db as pg.Pool).query<Row>(timedQuery(READ_TOPOLOGY, [], 'foreshard topology'))).rows[0];
  if (row === undefined) throw damaged('foreshard.meta is empty');
  return buildTopology(row);
}

function damaged(what: string): ForeshardError {
  return new ForeshardError('XX001', `the catalog is damaged: ${what}`, { hint: 'Restore the catalog from a backup.' });
}

function buildTopology(row: Row): Topology {
  const shards = new Map<ShardName, Shard>();
  let home: ShardName | null = null;
  for (const s of row.shards) {
    const name = s.name as ShardName;
    shards.set(name, { name, url: s.url, home: s.home, capacityMsPerSecond: s.capacity });
    if (s.home) home = name;
  }

  const shardedTables = new Map<string, ShardedTable>();
  for (const t of row.tables) {
    const table = { schema: t.schema, table: t.table, keyspace: t.keyspace as KeyspaceName, keyColumns: t.keyColumns };
    shardedTables.set(tableId(table), table);
  }
  for (const { table, ...split } of row.splits) {
    const [whole, hot] = [table, split.hot].map((t) => shardedTables.get(tableId(t)));
    if (whole === undefined || hot === undefined)
      throw damaged(`the columns of "${tableId(table)}" are split, and it is not sharded`);
    shardedTables.set(tableId(table), { ...whole, split });
    shardedTables.set(tableId(hot), { ...hot, halfOf: table });
  }

  const keyspaces = new Map<KeyspaceName, Keyspace>();
  for (const k of row.keyspaces) keyspaces.set(k.name as KeyspaceName, buildKeyspace(k, row, shardedTables));

  const referenceTables = new Map<string, ReferenceTable>();
  for (const r of row.refs) referenceTables.set(tableId(r), { ...r, shards: r.shards as ShardName[] });

  const holds = row.holds.map((h) => {
    const hold = buildHold(h, keyspaces);
    if (hold === null) throw damaged(`hold ${h.id} names no keyspace`);
    return hold;
  });

  const replicas: RangeReplica[] = row.replicas.map((r) => {
    const keyspace = keyspaces.get(r.keyspace as KeyspaceName);
    if (keyspace === undefined) throw damaged(`replica ${r.id} names no keyspace`);
    return {
      ...r,
      id: BigInt(r.id),
      since: BigInt(r.since) as Epoch,
      keyspace: keyspace.name,
      lo: positionFromJson(keyspace, r.lo),
      hi: positionFromJson(keyspace, r.hi),
      source: r.source as ShardName,
      shard: r.shard as ShardName,
      schemaGeneration: BigInt(r.schemaGeneration),
    };
  });

  return {
    epoch: BigInt(row.epoch) as Epoch,
    schemaGeneration: BigInt(row.schemaGeneration),
    database: row.database,
    shards,
    // Before the first shard is added there is no home; the empty name matches no shard.
    home: home ?? ('' as ShardName),
    keyspaces,
    shardedTables,
    referenceTables,
    holds,
    replicas,
  };
}

/** Null: of no keyspace. */
function buildHold(h: HoldRow, keyspaces: Topology['keyspaces']): Hold | null {
  const keyspace = keyspaces.get(h.keyspace as KeyspaceName);
  if (keyspace === undefined) return null;
  return {
    id: BigInt(h.id),
    keyspace: keyspace.name,
    lo: positionFromJson(keyspace, h.lo),
    hi: positionFromJson(keyspace, h.hi),
    referenceTables: h.referenceTables,
    endsTransactions: h.endsTransactions,
    remainingMs: Number(h.remainingMs),
  };
}

/**
 * The hold that an announcement tells of. Null: another announcement, or one of another epoch than `topology`, which is to be read; or none that a catalog makes, for
 * anybody who can connect to its database can send one.
 */
export function announcedHold(announcement: string, topology: Topology): Hold | null {
  if (!announcement.startsWith('{')) return null;
  try {
    const { epoch, hold } = JSON.parse(announcement) as { readonly epoch: string; readonly hold: HoldRow };
    return epoch === topology.epoch.toString() ? buildHold(hold, topology.keyspaces) : null;
  } catch {
    return null;
  }
}

function buildKeyspace(k: Row['keyspaces'][number], row: Row, tables: ReadonlyMap<string, ShardedTable>): Keyspace {
  const scheme = { method: k.method, keyTypes: k.keyTypes };
  const ranges: Range[] = row.ranges
    .filter((r) => r.keyspace === k.name)
    .map((r) => ({
      id: BigInt(r.id),
      keyspace: k.name as KeyspaceName,
      lo: positionFromJson(scheme, r.lo),
      hi: positionFromJson(scheme, r.hi),
      shard: r.shard as ShardName,
    }))
    .sort((a, b) => (a.lo === null ? -1 : b.lo === null ? 1 : comparePositions(a.lo, b.lo)));
  assertCovers(k.name, ranges);
  return {
    name: k.name as KeyspaceName,
    ...scheme,
    tables: [...tables.values()].filter((t) => t.keyspace === k.name),
    ranges,
  };
}

/** A gap or an overlap would send a key nowhere or to two shards: better no topology than that one. */
function assertCovers(keyspace: string, ranges: readonly Range[]): void {
  let expected: Range['lo'] = null;
  ranges.forEach((range, i) => {
    const first = i === 0;
    const joins = first
      ? range.lo === null
      : range.lo !== null && expected !== null && comparePositions(range.lo, expected) === 0;
    if (!joins) throw damaged(`the ranges of keyspace "${keyspace}" leave a gap or overlap at range ${range.id}`);
    expected = range.hi;
  });
  if (ranges.length === 0 || expected !== null)
    throw damaged(`the ranges of keyspace "${keyspace}" do not reach the end`);
}
