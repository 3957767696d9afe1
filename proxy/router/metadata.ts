import { createHash } from 'node:crypto';
import NodeCache from 'node-cache';
import type pg from 'pg';
import { type TableName, tableId } from '../../topology/topology.js';

/** What the router must know of the database beyond the catalog: a snapshot, immutable, so that planning is pure. */
export interface Metadata {
  /** Changes exactly when something in the snapshot does. */
  readonly version: string;
  /** The snapshot as plain data. */
  readonly json: MetadataJson;
  /** The relation that PostgreSQL would find under this name (pg_catalog first, as PostgreSQL has it), or null. `exists` tells of tables known from elsewhere. */
  resolveRelation(
    schema: string | null,
    name: string,
    searchPath: readonly string[],
    exists?: (table: TableName) => boolean,
  ): Relation | null;
  /** What holds of all overloads of a function that is not PostgreSQL's own, or null if there is none of that name. */
  userFunction(schema: string | null, name: string, searchPath: readonly string[]): UserFunction | null;
  /** Whether a DO block may change settings for longer than its transaction, by itself or by functions. */
  mayKeepSettings(block: string): boolean;
  /** Operators that are not PostgreSQL's own and whose function is not immutable, by name. */
  readonly volatileOperators: ReadonlySet<string>;
}

export interface Relation extends TableName {
  /** pg_class.relkind; `?` when only the topology knows it. */
  readonly kind: string;
  /** In order; null when only the topology knows the table. */
  readonly columns: readonly string[] | null;
  /** The partitioned or inherited-from tables above it. */
  readonly parents: readonly TableName[];
  /** Defaults of its columns, or checks of its rows, call currval or lastval. */
  readonly asksSequences?: true;
}

export interface UserFunction {
  readonly immutable: boolean;
  /** All overloads are written in C or internal: they cannot read tables unseen, if they are on the list. */
  readonly native: boolean;
  /** The text of one, or of one that it calls, has words of what stays with a session: temporary objects, advisory locks, LISTEN … */
  readonly stateful: boolean;
  /** So for SET, RESET or set_config that last longer than the transaction. */
  readonly keepsSettings: boolean;
}

export interface MetadataJson {
  readonly relations: readonly {
    schema: string;
    table: string;
    kind: string;
    columns: readonly string[];
    parents: readonly (readonly [string, string])[];
    asks?: boolean;
  }[];
  readonly functions: readonly {
    schema: string;
    name: string;
    immutable: boolean;
    native: boolean;
    stateful?: boolean;
    keepsSettings?: boolean;
  }[];
  readonly operators: readonly string[];
}

const EMPTY: MetadataJson = { relations: [], functions: [], operators: [] };

class Snapshot implements Metadata {
  readonly version: string;
  readonly json: MetadataJson;
  readonly volatileOperators: ReadonlySet<string>;
  readonly #relations = new Map<string, Relation>();
  readonly #functions = new Map<string, { schema: string; fact: UserFunction }[]>();
  readonly #settingFunctions: string[] = [];

  constructor(row: MetadataJson, version: string) {
    this.version = version;
    this.json = row;
    this.volatileOperators = new Set(row.operators);
    for (const r of row.relations) {
      this.#relations.set(tableId(r), {
        schema: r.schema,
        table: r.table,
        kind: r.kind,
        columns: r.columns,
        parents: r.parents.map(([schema, table]) => ({ schema, table })),
        ...(r.asks ? { asksSequences: true as const } : {}),
      });
    }
    for (const f of row.functions) {
      const all = this.#functions.get(f.name) ?? [];
      const fact = {
        immutable: f.immutable,
        native: f.native,
        stateful: f.stateful ?? false,
        keepsSettings: f.keepsSettings ?? false,
      };
      all.push({ schema: f.schema, fact });
      this.#functions.set(f.name, all);
      if (fact.keepsSettings) this.#settingFunctions.push(f.name.toLowerCase());
    }
  }

  resolveRelation(
    schema: string | null,
    name: string,
    searchPath: readonly string[],
    exists?: (table: TableName) => boolean,
  ): Relation | null {
    for (const candidate of schema === null ? lookupPath(searchPath) : [schema]) {
      const table: TableName = { schema: candidate, table: name };
      const found = this.#relations.get(tableId(table));
      if (found) return found;
      if (exists?.(table)) return { ...table, kind: '?', columns: null, parents: [] };
    }
    return null;
  }

  userFunction(schema: string | null, name: string, searchPath: readonly string[]): UserFunction | null {
    const all = this.#functions.get(name);
    if (!all) return null;
    const seen = all.filter((f) => (schema === null ? searchPath.includes(f.schema) : f.schema === schema));
    if (seen.length === 0) return null;
    return {
      immutable: seen.every((f) => f.fact.immutable),
      native: seen.every((f) => f.fact.native),
      stateful: seen.some((f) => f.fact.stateful),
      keepsSettings: seen.some((f) => f.fact.keepsSettings),
    };
  }

  mayKeepSettings(block: string): boolean {
    if (SETS.test(block) || CALLS_SET_CONFIG.test(block.replace(SETS_LOCALLY, ''))) return true;
    const lower = block.toLowerCase();
    return this.#settingFunctions.some((name) => lower.includes(name));
  }
}

/** recomputeNamespacePath in namespace.c: pg_catalog comes first unless it is named. Temporary schemas are the session's own matter. */
function lookupPath(searchPath: readonly string[]): readonly string[] {
  return searchPath.includes('pg_catalog') ? searchPath : ['pg_catalog', ...searchPath];
}

/** Nothing known: every table that the topology does not name is taken for one of the home shard's. */
export const EMPTY_METADATA: Metadata = new Snapshot(EMPTY, 'empty');

/** SET or RESET where a statement begins, in a body or in a string that is executed; SET in an UPDATE stands elsewhere. The same in SQL below. */
const SETS = /(^|[;$'"(]|\b(begin|then|else|loop)\b|\*\/|--[^\n]*\n)\s*(set|reset)\s+(?!local\b)/i;
const SETS_LOCALLY = /set_config\s*\([^()]*,\s*true\s*\)/gi;
const CALLS_SET_CONFIG = /\bset_config\b/i;

/**
 * One query, one row. System catalogs and information_schema are in it as relations without columns: they are never
 * sharded, and the lists would be long.
 */
const QUERY = `
WITH RECURSIVE bodies AS MATERIALIZED (
  SELECT p.oid, p.proname, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) AS body
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND l.lanname NOT IN ('c', 'internal')),
stateful AS (
  SELECT oid, proname FROM bodies
  WHERE body ~* '\\m(temp|temporary|pg_temp|pg_(try_)?advisory_\\w+|listen|hold|execute|prepare|deallocate|discard|dblink\\w*)\\M'
  UNION SELECT b.oid, b.proname FROM stateful s JOIN bodies b ON position(s.proname IN b.body) > 0),
setting AS (
  SELECT oid, proname FROM bodies
  WHERE body ~* '(^|[;$''"(]|\\m(begin|then|else|loop)\\M|\\*/|--[^\\n]*\\n)\\s*(set|reset)\\s+(?!local\\M)'
    OR regexp_replace(body, 'set_config\\s*\\([^()]*,\\s*true\\s*\\)', '', 'gi') ~* '\\mset_config\\M'
  UNION SELECT b.oid, b.proname FROM setting s JOIN bodies b ON position(s.proname IN b.body) > 0),
asking AS (
  SELECT adrelid AS oid FROM pg_attrdef WHERE pg_get_expr(adbin, adrelid) ~ '\\m(currval|lastval)\\('
  UNION SELECT conrelid FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0 AND pg_get_expr(conbin, conrelid) ~ '\\m(currval|lastval)\\(')
SELECT jsonb_build_object(
  'relations', (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'schema', n.nspname, 'table', c.relname, 'kind', c.relkind,
      'columns', CASE WHEN n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast') THEN '[]'::jsonb ELSE
        (SELECT coalesce(jsonb_agg(a.attname ORDER BY a.attnum), '[]'::jsonb)
         FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) END,
      'parents', (WITH RECURSIVE up AS (
          SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid
          UNION SELECT i.inhparent FROM pg_inherits i JOIN up ON i.inhrelid = up.inhparent)
        SELECT coalesce(jsonb_agg(jsonb_build_array(pn.nspname, p.relname)), '[]'::jsonb)
        FROM up JOIN pg_class p ON p.oid = up.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace))
      || CASE WHEN asking.oid IS NULL THEN '{}'::jsonb ELSE '{"asks": true}'::jsonb END
    ORDER BY n.nspname, c.relname), '[]'::jsonb)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN asking ON asking.oid = c.oid
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'),
  'functions', (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'schema', schema, 'name', name, 'immutable', immutable, 'native', native, 'stateful', stateful, 'keepsSettings', keeps_settings) ORDER BY schema, name), '[]'::jsonb)
    FROM (SELECT n.nspname AS schema, p.proname AS name, bool_and(p.provolatile = 'i' AND p.prokind = 'f' AND NOT p.proretset) AS immutable, bool_and(l.lanname IN ('c', 'internal')) AS native,
                 bool_or(p.oid IN (SELECT oid FROM stateful)) AS stateful, bool_or(p.oid IN (SELECT oid FROM setting)) AS keeps_settings
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
          WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_temp_' GROUP BY 1, 2) f),
  'operators', (SELECT coalesce(jsonb_agg(DISTINCT o.oprname ORDER BY o.oprname), '[]'::jsonb)
    FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace LEFT JOIN pg_proc p ON p.oid = o.oprcode
    WHERE n.nspname <> 'pg_catalog' AND p.provolatile IS DISTINCT FROM 'i')
)::text AS metadata`;

/** A snapshot from its JSON form; the form of {@link loadMetadata}'s query. */
export function parseMetadata(json: string): Metadata {
  return new Snapshot(JSON.parse(json) as MetadataJson, createHash('sha1').update(json).digest('hex'));
}

/** A snapshot from its plain data. */
export function metadataOf(json: MetadataJson, version: string): Metadata {
  return new Snapshot(json, version);
}

/** Reads a snapshot from a server, in one query. */
export async function loadMetadata(pool: pg.Pool): Promise<Metadata> {
  const { rows } = await pool.query<{ metadata: string }>(QUERY);
  const row = rows[0];
  if (row === undefined) throw new Error('the metadata query gave no row');
  return parseMetadata(row.metadata);
}

/** How long a snapshot is taken for fresh. Changes made through the proxy drop it at once ({@link MetadataCache.drop}). */
const METADATA_LIFETIME_SECONDS = 60;

/**
 * The home shard's metadata, kept for a while. {@link current} never waits: until a fresh snapshot has arrived, the last one
 * serves. Tables and views made behind the proxy's back are therefore seen within the lifetime.
 */
export class MetadataCache {
  readonly #pool: () => pg.Pool;
  readonly #fresh = new NodeCache({ stdTTL: METADATA_LIFETIME_SECONDS, checkperiod: 0, useClones: false });
  readonly #onError: (error: unknown) => void;
  #last: Metadata = EMPTY_METADATA;
  #loading: Promise<Metadata> | null = null;
  #again = false;

  /** `pool`: connections to the home shard, asked anew each time because home may move. `onError` hears of loads that failed in the background. */
  constructor(pool: () => pg.Pool, onError: (error: unknown) => void) {
    this.#pool = pool;
    this.#onError = onError;
  }

  /** The newest snapshot there is; starts loading a fresh one if it is old. */
  current(): Metadata {
    if (!this.#fresh.has('metadata') && this.#loading === null) this.load().catch(this.#onError);
    return this.#last;
  }

  /** A snapshot that is fresh now; waits for it if need be. For the start, and after DDL. */
  async load(): Promise<Metadata> {
    const fresh = this.#fresh.get<Metadata>('metadata');
    if (fresh) return fresh;
    this.#loading ??= this.#read().finally(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  async #read(): Promise<Metadata> {
    do {
      this.#again = false;
      const loaded = await loadMetadata(this.#pool());
      if (loaded.version !== this.#last.version) this.#last = loaded;
    } while (this.#again); // dropped while it was being read: it may be from before the change
    this.#fresh.set('metadata', this.#last);
    return this.#last;
  }

  /** Something changed (DDL passed through): the next look loads again. */
  drop(): void {
    this.#again = true;
    this.#fresh.del('metadata');
  }
}
