import type pg from 'pg';
import { refuseHalves, refuseHotKeyspace } from '../column-split.js';
import { errorCode } from '../connection.js';
import { ConflictError, ForeshardError, UsageError } from '../errors.js';
import { sameLayout } from '../layout.js';
import type { Separation } from '../separation.js';
import { withShard } from '../shard-client.js';
import { readTableFacts, type TableFacts } from '../table-facts.js';
import {
  isKeyless,
  type Keyspace,
  type KeyspaceName,
  type Shard,
  shardsOf,
  type TableName,
  type Topology,
  tableId,
} from '../topology.js';
import type { Catalog } from './catalog.js';
import { audit, type CatalogClient, inCatalogTransaction, raiseEpoch } from './change.js';
import { KEYSPACE_NAME, refuseRegistered, unknownThing } from './registry.js';

/** Something that ties the tables to those that stay, so that they cannot be separated. */
export interface Tie {
  readonly text: string;
  readonly remedy: string;
}

/** What the new keyspace has like the old one, by table of the catalog. */
const COPIED = [
  ['range', 'lo, hi, shard'],
  ['segment', 'lo, hi'],
] as const;

/** States of a migration that has nothing on any shard (any more). What is planned begins at no other epoch than it was planned at. */
const AT_REST = ['planned', 'done', 'rolled_back', 'aborted'];

/**
 * What would tie the tables to those that stay, on the servers: foreign keys, inheritance, sequences. Empty: they can be separated. Only reads.
 * @throws UsageError when the names do not fit the topology
 */
export async function findTies(topology: Topology, separation: Separation): Promise<Tie[]> {
  const keyspace = checkSeparation(topology, separation);
  const going = new Set(separation.tables.map(tableId));
  const ties = new Map<string, Tie>();
  for (const name of keyspace === null ? [topology.home] : shardsOf(keyspace)) {
    const shard = topology.shards.get(name) as Shard;
    for (const tie of await withShard(shard, (client) =>
      tiesOn(client, topology, name, keyspace, separation.tables, going),
    ))
      ties.set(tie.text, tie);
  }
  return [...ties.values()];
}

/**
 * Gives tables a keyspace of their own, with the same key and the same ranges on the same shards: nothing moves, and every statement runs
 * as before. From then on the ranges of the two are moved each on their own.
 * @throws UsageError, ForeshardError (2BP01) when something ties them to the others, (55006) when a migration is under way, ConflictError
 */
export async function separateTables(catalog: Catalog, actor: string, separation: Separation): Promise<void> {
  const { keyspace, tables, as } = separation;
  const topology = await catalog.loadTopology();
  const [tie, ...more] = await findTies(topology, separation);
  if (tie !== undefined)
    throw new ForeshardError('2BP01', more.length === 0 ? tie.text : `${tie.text} (and ${more.length} more)`, {
      hint: tie.remedy,
    });
  await regroup(catalog, topology, async (client) => {
    if (keyspace !== null) await refuseUnderWay(client, keyspace, 'tables cannot be separated from it');
    for (const { sql, values } of separationStatements(separation)) await client.query(sql, [...values]);
    const detail = { as, tables: tables.map(tableId) };
    await audit(client, { actor, action: 'keyspace separate', object: keyspace ?? 'no keyspace', detail });
  });
}

interface SeparationStatement {
  readonly text: string;
  readonly sql: string;
  readonly values: readonly string[];
}

/** Of tables that have been in no keyspace. */
function adoptionStatements(tables: readonly TableName[], as: string): SeparationStatement[] {
  return [
    {
      text: `a keyspace "${as}" without a key`,
      sql: "INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ($1, 'range', '{}')",
      values: [as],
    },
    {
      text: 'its range is on the home shard',
      sql: 'INSERT INTO foreshard.range (keyspace, shard) SELECT $1, name FROM foreshard.shard WHERE home',
      values: [as],
    },
    {
      text: 'it has a segment for it',
      sql: 'INSERT INTO foreshard.segment (keyspace) VALUES ($1)',
      values: [as],
    },
    ...tables.map((t) => ({
      text: `table "${tableId(t)}" is in it`,
      sql: "INSERT INTO foreshard.sharded_table (schema_name, table_name, keyspace, key_columns) VALUES ($2, $3, $1, '{}')",
      values: [as, t.schema, t.table],
    })),
  ];
}

/** What a separation changes in the catalog besides the epoch. */
export function separationStatements({ keyspace, tables, as }: Separation): SeparationStatement[] {
  if (keyspace === null) return adoptionStatements(tables, as);
  return [
    {
      text: `a keyspace "${as}" with the key of "${keyspace}"`,
      sql: 'INSERT INTO foreshard.keyspace (name, method, key_types) SELECT $2, method, key_types FROM foreshard.keyspace WHERE name = $1',
      values: [keyspace, as],
    },
    ...COPIED.map(([table, columns]) => ({
      text: `it has a ${table} for each of the other, with the same bounds`,
      sql: `INSERT INTO foreshard.${table} (keyspace, ${columns}) SELECT $2, ${columns} FROM foreshard.${table} WHERE keyspace = $1`,
      values: [keyspace, as],
    })),
    ...tables.map((t) => ({
      text: `table "${tableId(t)}" is in it`,
      sql: 'UPDATE foreshard.sharded_table SET keyspace = $1 WHERE schema_name = $2 AND table_name = $3',
      values: [as, t.schema, t.table],
    })),
  ];
}

/**
 * The way back from `separateTables`: the tables of `keyspace` go to `into`, and `keyspace` is no more. Only while both have all keys on
 * the same shards.
 * @throws UsageError, ForeshardError (55006) when their ranges are on different shards or a migration is under way, ConflictError
 */
export async function joinKeyspaces(catalog: Catalog, actor: string, keyspace: string, into: string): Promise<void> {
  const topology = await catalog.loadTopology();
  const leaving = keyspaceOf(topology, keyspace);
  const staying = keyspaceOf(topology, into);
  if (leaving === staying)
    throw new UsageError(`"${keyspace}" cannot be joined to itself`, 'Name the keyspace that its tables are to go to.');
  refuseHalves(topology, leaving.tables, 'cannot leave its keyspace');
  refuseHotKeyspace(staying);
  if (leaving.method !== staying.method || leaving.keyTypes.join() !== staying.keyTypes.join())
    throw new ForeshardError('55006', `keyspaces "${keyspace}" and "${into}" have different keys`, {
      hint: 'Only keyspaces of the same method and key types can be joined.',
    });
  if (!sameLayout(leaving, staying))
    throw new ForeshardError(
      '55006',
      `keyspaces "${keyspace}" and "${into}" have rows with the same keys on different shards`,
      {
        hint: `Move the ranges of "${keyspace}" to where those of "${into}" are; see "foreshard topology show".`,
      },
    );
  await regroup(catalog, topology, async (client) => {
    for (const name of [keyspace, into]) await refuseUnderWay(client, name, 'it cannot be joined');
    await client.query('UPDATE foreshard.sharded_table SET keyspace = $2 WHERE keyspace = $1', [keyspace, into]);
    await client.query(KEEP_LOAD, [keyspace, into]);
    for (const table of ['segment', 'range'])
      await client.query(`DELETE FROM foreshard.${table} WHERE keyspace = $1`, [keyspace]);
    // Of a migration that has ended.
    await client.query('DELETE FROM foreshard.hold WHERE keyspace = $1', [keyspace]);
    await client.query('DELETE FROM foreshard.keyspace WHERE name = $1', [keyspace]);
    const detail = { into, tables: leaving.tables.map(tableId) };
    await audit(client, { actor, action: 'keyspace join', object: keyspace, detail });
  });
}

/**
 * The way back for tables that came into a keyspace without a key: they belong to no keyspace again. Only while they are on the home shard.
 * @throws UsageError, ForeshardError (55006) when they are not, or a migration is under way, ConflictError
 */
export async function releaseTables(catalog: Catalog, actor: string, name: string): Promise<void> {
  const topology = await catalog.loadTopology();
  const keyspace = keyspaceOf(topology, name);
  if (!isKeyless(keyspace))
    throw new UsageError(`the tables of keyspace "${name}" have a key`, 'Name the keyspace that they are to go to.');
  const [range] = keyspace.ranges;
  if (range?.shard !== topology.home)
    throw new ForeshardError('55006', `the tables of keyspace "${name}" are on shard "${range?.shard}"`, {
      hint: `Move them to the home shard first: "foreshard migrate plan move ${name} --to ${topology.home}".`,
    });
  await regroup(catalog, topology, async (client) => {
    await refuseUnderWay(client, name, 'its tables cannot leave it');
    for (const table of ['sharded_table', 'segment', 'range', 'hold'])
      await client.query(`DELETE FROM foreshard.${table} WHERE keyspace = $1`, [name]);
    await client.query('DELETE FROM foreshard.keyspace WHERE name = $1', [name]);
    const detail = { into: null, tables: keyspace.tables.map(tableId) };
    await audit(client, { actor, action: 'keyspace join', object: name, detail });
  });
}

/** Where both have counted by the same segments, which they have if no one has refined one of them since, the load is that of both. */
export const KEEP_LOAD = `
INSERT INTO foreshard.load AS l (step_seconds, at, segment_id, reads, writes, rows, bytes, server_ms)
SELECT o.step_seconds, o.at, s.id, o.reads, o.writes, o.rows, o.bytes, o.server_ms
  FROM foreshard.load o JOIN foreshard.segment t ON t.id = o.segment_id AND t.keyspace = $1
  JOIN foreshard.segment s ON s.keyspace = $2 AND s.lo IS NOT DISTINCT FROM t.lo AND s.hi IS NOT DISTINCT FROM t.hi
ON CONFLICT (step_seconds, segment_id, at) DO UPDATE SET
  reads = l.reads + excluded.reads, writes = l.writes + excluded.writes, rows = l.rows + excluded.rows,
  bytes = l.bytes + excluded.bytes, server_ms = l.server_ms + excluded.server_ms`;

/** @returns the keyspace that the tables are in; null: none. @throws UsageError when the names do not fit the topology */
export function checkSeparation(topology: Topology, { keyspace: name, tables, as }: Separation): Keyspace | null {
  const keyspace = name === null ? null : keyspaceOf(topology, name);
  if (!KEYSPACE_NAME.test(as))
    throw new UsageError(
      `"${as}" cannot be the name of a keyspace`,
      'Use 1 to 40 lower-case letters, digits and "_", beginning with a letter.',
    );
  if (topology.keyspaces.has(as as KeyspaceName))
    throw new UsageError(`keyspace "${as}" exists already`, 'Choose another name.');
  if (tables.length === 0)
    throw new UsageError('no tables are given', 'Name those that are to get a keyspace of their own.');
  if (keyspace === null) {
    for (const table of tables) refuseRegistered(topology, table);
    return null;
  }
  const own = new Set(keyspace.tables.map(tableId));
  for (const table of tables)
    if (!own.has(tableId(table)))
      throw new UsageError(
        `table "${tableId(table)}" is not in keyspace "${name}"`,
        `It has: ${[...own].join(', ') || 'none'}.`,
      );
  refuseHalves(topology, tables, 'cannot leave its keyspace');
  const going = new Set(tables.map(tableId));
  if (going.size === own.size)
    throw new UsageError(`these are all tables of keyspace "${name}"`, 'Leave at least one where it is.');
  return keyspace;
}

function keyspaceOf(topology: Topology, name: string): Keyspace {
  const keyspace = topology.keyspaces.get(name as KeyspaceName);
  if (keyspace === undefined) throw unknownThing('keyspace', name, topology.keyspaces.keys());
  return keyspace;
}

async function tiesOn(
  client: pg.Client,
  topology: Topology,
  shard: string,
  keyspace: Keyspace | null,
  tables: readonly TableName[],
  going: ReadonlySet<string>,
): Promise<Tie[]> {
  // Of the home shard's own tables whatever is tied to them stays behind, but reference tables are everywhere.
  const stays = (t: TableName) =>
    !going.has(tableId(t)) &&
    (keyspace === null
      ? !topology.referenceTables.has(tableId(t))
      : keyspace.tables.some((own) => tableId(own) === tableId(t)));
  const ties: Tie[] = [];
  for (const table of tables) {
    const id = tableId(table);
    const facts = await readTableFacts(client, table);
    if (facts === null) {
      ties.push({ text: `table "${id}" does not exist on shard "${shard}"`, remedy: 'Create it there first.' });
      continue;
    }
    if (facts.kind !== 'r' && facts.kind !== 'p')
      ties.push({
        text: `"${id}" is not a table`,
        remedy: 'Name tables only: views and sequences do not move by themselves.',
      });
    if (facts.partitionOf !== null)
      ties.push({
        text: `table "${id}" is a partition of "${tableId(facts.partitionOf)}"`,
        remedy: `Name "${tableId(facts.partitionOf)}", whose partitions go with it, or DETACH PARTITION.`,
      });
    if (facts.inherits)
      ties.push({
        text: `table "${id}" is part of an inheritance`,
        remedy: 'Only tables that stand alone can move: ALTER TABLE … NO INHERIT.',
      });
    ties.push(...foreignKeyTies(facts, stays));
  }
  ties.push(...(await sequenceTies(client, tables, going)));
  if (keyspace === null) ties.push(...(await strayNumbers(client, tables)));
  return ties;
}

/** After the first move of a range, neither side could look the other's rows up. */
function foreignKeyTies(facts: TableFacts, stays: (t: TableName) => boolean): Tie[] {
  const id = tableId(facts);
  const drop = (from: string, to: string, name: string): Tie => ({
    text: `foreign key "${name}" from "${from}" to "${to}" would cross keyspaces`,
    remedy: `Let both tables go, or neither, or ALTER TABLE ${from} DROP CONSTRAINT ${name}.`,
  });
  return [
    ...facts.foreignKeys.filter((f) => stays(f.references)).map((f) => drop(id, tableId(f.references), f.name)),
    ...facts.referencedBy.filter((f) => stays(f.from)).map((f) => drop(tableId(f.from), id, f.name)),
  ];
}

/** Which columns take numbers from which sequence, by default or as identity, where the sequence belongs to, or serves, one of the tables. */
const SEQUENCES = `
WITH used AS (
  SELECT d.refobjid AS sequence, a.adrelid AS relation
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
   WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
  UNION
  SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d
   WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
)
SELECT s.relname AS sequence, json_agg(DISTINCT n.nspname || '.' || t.relname) AS tables
  FROM used u JOIN pg_catalog.pg_class s ON s.oid = u.sequence AND s.relkind = 'S'
  JOIN pg_catalog.pg_class t ON t.oid = coalesce(pg_catalog.pg_partition_root(u.relation), u.relation) JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 GROUP BY s.oid, s.relname
HAVING bool_or(n.nspname || '.' || t.relname = ANY ($1)) AND NOT bool_and(n.nspname || '.' || t.relname = ANY ($1))
 ORDER BY 1`;

/** On two shards a sequence would give the same numbers twice. */
async function sequenceTies(
  client: pg.Client,
  tables: readonly TableName[],
  going: ReadonlySet<string>,
): Promise<Tie[]> {
  const { rows } = await client.query<{ sequence: string; tables: string[] }>(SEQUENCES, [tables.map(tableId)]);
  return rows.map(({ sequence, tables: users }) => ({
    text: `sequence "${sequence}" serves "${users.filter((t) => going.has(t)).join('", "')}" and also "${users.filter((t) => !going.has(t)).join('", "')}"`,
    remedy: 'Give each side a sequence of its own (ALTER TABLE … ALTER … SET DEFAULT nextval(…)).',
  }));
}

/** Sequences that number a column of one of the tables, and belong to no table. */
const UNOWNED = `
SELECT DISTINCT sn.nspname || '.' || s.relname AS sequence, n.nspname || '.' || t.relname AS table, c.attname AS column
  FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
  JOIN pg_catalog.pg_attribute c ON c.attrelid = a.adrelid AND c.attnum = a.adnum
  JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
  JOIN pg_catalog.pg_class t ON t.oid = a.adrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND n.nspname || '.' || t.relname = ANY ($1)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend o WHERE o.classid = 'pg_catalog.pg_class'::regclass AND o.objid = s.oid
                     AND o.refclassid = 'pg_catalog.pg_class'::regclass AND o.deptype IN ('a', 'i'))
 ORDER BY 1`;

/** A statement that draws from a sequence by name is sent where the table is to which the sequence belongs. */
async function strayNumbers(client: pg.Client, tables: readonly TableName[]): Promise<Tie[]> {
  const { rows } = await client.query<{ sequence: string; table: string; column: string }>(UNOWNED, [
    tables.map(tableId),
  ]);
  return rows.map(({ sequence, table, column }) => ({
    text: `sequence "${sequence}" numbers "${table}", and does not belong to it`,
    remedy: `ALTER SEQUENCE ${sequence} OWNED BY ${table}.${column}.`,
  }));
}

/** Gives up before the server takes two that wait for each other for a deadlock, and perhaps ends a flip. */
const LOCK_TIMEOUT_MS = 500;

/** One transaction under a new epoch, in which no migration begins or goes on. */
async function regroup(
  catalog: Catalog,
  checked: Topology,
  work: (client: CatalogClient) => Promise<void>,
): Promise<void> {
  try {
    await inCatalogTransaction(catalog.pool, async (client) => {
      await client.query(`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`);
      // Whoever begins one reads the topology when this is committed.
      await client.query('LOCK TABLE foreshard.migration IN SHARE MODE');
      await raiseEpoch(client, checked.epoch);
      await work(client);
    });
  } catch (error) {
    if (errorCode(error) !== '55P03') throw error;
    throw new ConflictError('the catalog is being changed by another', 'Try again in a moment.');
  }
}

async function refuseUnderWay(client: CatalogClient, keyspace: string, what: string): Promise<void> {
  const { rows } = await client.query<{ id: string; state: string }>(
    `SELECT id, state FROM foreshard.migration WHERE state <> ALL ($2) AND spec->>'keyspace' = $1 ORDER BY id LIMIT 1`,
    [keyspace, AT_REST],
  );
  const found = rows[0];
  if (found !== undefined)
    throw new ForeshardError('55006', `migration ${found.id} of keyspace "${keyspace}" is ${found.state}: ${what}`, {
      hint: `Wait for it, or abort it: "foreshard migrate abort ${found.id}".`,
    });
}
