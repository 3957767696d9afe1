import { checkUrl } from '../check-url.js';
import { refuseHotKeyspace } from '../column-split.js';
import { errorCode, redactUrl } from '../connection.js';
import { ForeshardError, UsageError } from '../errors.js';
import { KEY_TYPES, type KeyType, type Method } from '../key.js';
import { readPrepared } from '../prepared-transactions.js';
import { withShard } from '../shard-client.js';
import {
  isKeyless,
  type Keyspace,
  type KeyspaceName,
  type ReferenceTable,
  type Shard,
  type ShardedTable,
  type ShardName,
  type TableName,
  type Topology,
  tableId,
} from '../topology.js';
import type { Catalog } from './catalog.js';
import { audit, type CatalogClient, inCatalogTransaction, raiseEpoch } from './change.js';
import { Decisions } from './decisions.js';
import { raiseSchemaGeneration } from './schema-generation.js';
import { checkNewShard } from './shard-check.js';
import { checkReferenceTable, checkShardedTable } from './table-check.js';

const SHARD_NAME = /^[a-z][a-z0-9_-]{0,39}$/;
export const KEYSPACE_NAME = /^[a-z][a-z0-9_]{0,39}$/;
const REFUSED = '55006';
/** States of a migration in which it owns no object on any shard. */
const IDLE_STATES = ['planned', 'approved', 'done', 'rolled_back', 'aborted'];

export interface NewShard {
  readonly name: string;
  /** libpq URL with user and, unless it is given apart, password: what the catalog keeps. */
  readonly url: string;
  /** To connect with now. Not kept: whoever uses the shard has it from the configuration. */
  readonly password?: string;
  /** Runs when all checks have passed, before the catalog is changed: what the server needs to become a shard. */
  readonly prepare?: () => Promise<void>;
  /** The first shard is home whatever this says; later ones cannot be. */
  readonly home?: boolean;
  /** Milliseconds of busy backend per second. */
  readonly capacity?: number;
}

export interface ShardListing {
  readonly name: ShardName;
  /** Without its password. */
  readonly url: string;
  readonly home: boolean;
  readonly capacityMsPerSecond: number | null;
  /** Ranges it owns. */
  readonly ranges: number;
  /** Reference tables of which it has a copy. */
  readonly referenceTables: number;
}

export interface NewKeyspace {
  readonly name: string;
  readonly method: Method;
  readonly keyTypes: readonly KeyType[];
}

export interface NewTable {
  readonly table: TableName;
  readonly keyspace: string;
  /** In the order of the keyspace's key types. */
  readonly keyColumns: readonly string[];
}

/** What was registered, with what will stand in the way of a move. */
export interface Registered {
  readonly warnings: readonly string[];
}

/**
 * What the topology consists of, as people declare it. Every change is checked against the real servers first, then
 * written in one transaction together with its audit entry and a new epoch: all of it, or nothing.
 */
export class Registry {
  readonly #catalog: Catalog;
  readonly #actor: string;

  /** @param actor who is named in the audit trail */
  constructor(catalog: Catalog, actor: string) {
    this.#catalog = catalog;
    this.#actor = actor;
  }

  async addShard(shard: NewShard): Promise<void> {
    if (!SHARD_NAME.test(shard.name))
      throw new UsageError(
        `"${shard.name}" cannot be the name of a shard`,
        'Use 1 to 40 lower-case letters, digits, "_" and "-", beginning with a letter.',
      );
    checkUrl(shard.url, `shard "${shard.name}"`);
    const { capacity } = shard;
    if (capacity !== undefined && !(capacity > 0 && Number.isFinite(capacity)))
      throw new UsageError(
        `${capacity} cannot be a capacity`,
        'Give milliseconds of busy backend per second, more than 0.',
      );

    const topology = await this.#catalog.loadTopology();
    if (topology.shards.has(shard.name as ShardName)) throw shardExists(shard.name);
    const first = topology.shards.size === 0;
    if (shard.home === true && !first)
      throw new UsageError(
        `shard "${topology.home}" is home already`,
        'There is one home shard, the first; leave out the option.',
      );
    await checkNewShard({ name: shard.name, url: connectUrl(shard) }, [...topology.shards.values()]);
    await shard.prepare?.();

    await this.#change(topology, async (client) => {
      try {
        await client.query(
          'INSERT INTO foreshard.shard (name, url, home, capacity_ms_per_second) VALUES ($1, $2, $3, $4)',
          [shard.name, shard.url, first, capacity ?? null],
        );
      } catch (error) {
        throw errorCode(error) === '23505' ? shardExists(shard.name) : error;
      }
      const detail = { url: redactUrl(shard.url), home: first, capacityMsPerSecond: capacity ?? null };
      await audit(client, { actor: this.#actor, action: 'shard add', object: shard.name, detail });
    });
  }

  async listShards(): Promise<ShardListing[]> {
    const topology = await this.#catalog.loadTopology();
    return [...topology.shards.values()].map((shard) => ({
      name: shard.name,
      url: redactUrl(shard.url),
      home: shard.home,
      capacityMsPerSecond: shard.capacityMsPerSecond,
      ranges: [...topology.keyspaces.values()].flatMap((k) => k.ranges).filter((r) => r.shard === shard.name).length,
      referenceTables: [...topology.referenceTables.values()].filter((t) => t.shards.includes(shard.name)).length,
    }));
  }

  /** Forgets a shard that holds nothing. Nothing on the server itself is touched. */
  async removeShard(name: string): Promise<void> {
    const listing = (await this.listShards()).find((shard) => shard.name === name);
    const topology = await this.#catalog.loadTopology();
    if (listing === undefined) throw unknownThing('shard', name, topology.shards.keys());
    const keep = (why: string, hint: string): ForeshardError =>
      new ForeshardError(REFUSED, `shard "${name}" cannot be removed: it ${why}`, { hint });
    if (listing.home) throw keep('is the home shard', 'The home shard stays as long as the catalog.');
    if (listing.ranges > 0) throw keep(`owns ${listing.ranges} range(s)`, 'Move them to other shards first.');
    if (listing.referenceTables > 0)
      throw keep(`has copies of ${listing.referenceTables} reference table(s)`, 'Drop these copies first.');
    await this.#refuseOpenTransactions(topology.shards.get(listing.name) as Shard, keep);

    await this.#change(topology, async (client) => {
      const busy = await client.query<{ id: string }>(
        `SELECT id FROM foreshard.migration
          WHERE state <> ALL ($2) AND $1 IN (spec->>'from', spec->>'to', spec->>'shard') ORDER BY id LIMIT 1`,
        [name, IDLE_STATES],
      );
      if (busy.rows[0] !== undefined)
        throw keep(`takes part in migration ${busy.rows[0].id}`, 'Wait for the migration, or abort it.');
      await client.query('DELETE FROM foreshard.shard WHERE name = $1', [name]);
      await audit(client, { actor: this.#actor, action: 'shard remove', object: name, detail: { url: listing.url } });
    });
  }

  /**
   * Without the shard nobody would end what transactions on several shards have prepared there. What is decided to be committed is still prepared there or
   * is committed, so that the server tells; if it does not answer, the catalog tells what is decided.
   */
  async #refuseOpenTransactions(shard: Shard, keep: (why: string, hint: string) => ForeshardError): Promise<void> {
    try {
      const prepared = await withShard(shard, readPrepared);
      if (prepared.length > 0)
        throw keep(
          `has ${prepared.length} transaction(s) on several shards that are prepared there`,
          'A proxy ends them within seconds; if they stay, "foreshard migrate audit" says why, and --repair ends them.',
        );
      return;
    } catch (error) {
      if (!(error instanceof ForeshardError) || error.sqlstate === REFUSED) throw error;
    }
    const decided = await new Decisions(this.#catalog.pool).countOn(shard.name);
    if (decided > 0)
      throw keep(
        `does not answer, and ${decided} transaction(s) may have to be committed there yet`,
        'Bring it back: a proxy commits them within seconds. If it never comes back, neither does their part there: delete them from foreshard.decision in the catalog.',
      );
  }

  /** A new keyspace: one range from minus to plus infinity, on the home shard. */
  async createKeyspace(keyspace: NewKeyspace): Promise<void> {
    if (!KEYSPACE_NAME.test(keyspace.name))
      throw new UsageError(
        `"${keyspace.name}" cannot be the name of a keyspace`,
        'Use 1 to 40 lower-case letters, digits and "_", beginning with a letter.',
      );
    if (keyspace.method !== 'range' && keyspace.method !== 'hash')
      throw new UsageError(`"${String(keyspace.method)}" is not a method`, 'Use "range" or "hash".');
    const unknown = keyspace.keyTypes.find((type) => !KEY_TYPES.includes(type));
    if (unknown !== undefined || keyspace.keyTypes.length === 0)
      throw new UsageError(
        unknown === undefined ? 'a keyspace needs a key type' : `"${unknown}" cannot be a key type`,
        `Key types are ${KEY_TYPES.join(', ')}.`,
      );

    const topology = await this.#catalog.loadTopology();
    if (topology.shards.size === 0)
      throw new UsageError('there is no shard yet', 'Add one first: foreshard shard add.');
    if (topology.keyspaces.has(keyspace.name as KeyspaceName))
      throw new UsageError(`keyspace "${keyspace.name}" exists already`, 'Choose another name.');

    await this.#change(topology, async (client) => {
      const { name, method, keyTypes } = keyspace;
      await client.query('INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ($1, $2, $3)', [
        name,
        method,
        keyTypes,
      ]);
      await client.query('INSERT INTO foreshard.range (keyspace, shard) VALUES ($1, $2)', [name, topology.home]);
      await client.query('INSERT INTO foreshard.segment (keyspace) VALUES ($1)', [name]);
      await audit(client, {
        actor: this.#actor,
        action: 'keyspace create',
        object: name,
        detail: { method, keyTypes },
      });
    });
  }

  async listKeyspaces(): Promise<Keyspace[]> {
    return [...(await this.#catalog.loadTopology()).keyspaces.values()];
  }

  /** Declares that a table's rows belong where their key says. */
  async addTable(table: NewTable): Promise<Registered> {
    const topology = await this.#catalog.loadTopology();
    const keyspace = topology.keyspaces.get(table.keyspace as KeyspaceName);
    if (keyspace === undefined) throw unknownThing('keyspace', table.keyspace, topology.keyspaces.keys());
    refuseRegistered(topology, table.table);
    if (isKeyless(keyspace))
      throw new UsageError(
        `keyspace "${keyspace.name}" has no key: its tables came into it from the home shard`,
        `Give the table a keyspace of its own ("foreshard migrate plan vertical"), which moves it to the same shard, and join the two ("foreshard keyspace join").`,
      );
    refuseHotKeyspace(keyspace);
    const warnings = await checkShardedTable(topology, keyspace, table.table, table.keyColumns);

    await this.#change(topology, async (client) => {
      await refuseDuringMigration(client, keyspace.name, table.table);
      await client.query('INSERT INTO foreshard.sharded_table VALUES ($1, $2, $3, $4)', [
        table.table.schema,
        table.table.table,
        keyspace.name,
        table.keyColumns,
      ]);
      const detail = { keyspace: keyspace.name, keyColumns: table.keyColumns, warnings };
      await audit(client, { actor: this.#actor, action: 'table add', object: tableId(table.table), detail });
    });
    return { warnings };
  }

  /**
   * Declares a reference table. Its one copy is the home shard's; a migration brings copies to the shards that need them,
   * under a hold, for that alone keeps a write from missing one.
   */
  async addReferenceTable(table: TableName): Promise<Registered> {
    const topology = await this.#catalog.loadTopology();
    refuseRegistered(topology, table);
    const warnings = await checkReferenceTable(topology, table);

    await this.#change(topology, async (client) => {
      const name = [table.schema, table.table];
      await client.query('INSERT INTO foreshard.reference_table VALUES ($1, $2)', name);
      await client.query('INSERT INTO foreshard.reference_copy VALUES ($1, $2, $3)', [...name, topology.home]);
      await audit(client, {
        actor: this.#actor,
        action: 'table add reference',
        object: tableId(table),
        detail: { warnings },
      });
    });
    return { warnings };
  }

  async listTables(): Promise<{ sharded: ShardedTable[]; reference: ReferenceTable[] }> {
    const topology = await this.#catalog.loadTopology();
    return { sharded: [...topology.shardedTables.values()], reference: [...topology.referenceTables.values()] };
  }

  /** One transaction under a new epoch; refused when the topology that was checked is no longer the current one. */
  async #change(checked: Topology, work: (client: CatalogClient) => Promise<void>): Promise<void> {
    await inCatalogTransaction(this.#catalog.pool, async (client) => {
      await raiseEpoch(client, checked.epoch);
      // Tables are made on the shards directly, with whatever depends on them, before they are declared.
      await raiseSchemaGeneration(client);
      await work(client);
    });
  }
}

function connectUrl({ url, password }: NewShard): string {
  if (password === undefined) return url;
  const parsed = new URL(url);
  parsed.password = encodeURIComponent(password);
  return parsed.href;
}

function shardExists(name: string): UsageError {
  return new UsageError(`shard "${name}" exists already`, 'Choose another name, or remove that shard first.');
}

export function unknownThing(what: string, name: string, known: Iterable<string>): UsageError {
  const names = [...known];
  return new UsageError(
    `there is no ${what} "${name}"`,
    names.length === 0 ? `There is none yet.` : `There is: ${names.join(', ')}.`,
  );
}

export function refuseRegistered(topology: Topology, table: TableName): void {
  const id = tableId(table);
  const sharded = topology.shardedTables.get(id);
  if (sharded !== undefined)
    throw new UsageError(`table "${id}" is in keyspace "${sharded.keyspace}" already`, 'See foreshard table list.');
  if (topology.referenceTables.has(id))
    throw new UsageError(`table "${id}" is a reference table already`, 'See foreshard table list.');
}

/** A table that joins in mid-move would be missing from the publication, and its rows would stay behind. */
async function refuseDuringMigration(client: CatalogClient, keyspace: string, table: TableName): Promise<void> {
  const { rows } = await client.query<{ id: string }>(
    `SELECT id FROM foreshard.migration WHERE state <> ALL ($2) AND spec->>'keyspace' = $1 ORDER BY id LIMIT 1`,
    [keyspace, IDLE_STATES],
  );
  if (rows[0] !== undefined)
    throw new ForeshardError(
      '55006',
      `table "${tableId(table)}" cannot join keyspace "${keyspace}" during migration ${rows[0].id}`,
      {
        hint: 'Wait for the migration, or abort it.',
      },
    );
}
