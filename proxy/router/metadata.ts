import { createHash } from 'node:crypto';
import type pg from 'pg';
import { type TableName, tableId } from '../../topology/topology.js';
import { SettingFunctions } from './function-settings.js';

/** What the router must know of the database beyond the catalog: a snapshot, immutable, so that planning is pure. */
export interface Metadata {
  /** Changes exactly when something in the snapshot does. */
  readonly version: string;
  /** The snapshot as JSON: the form that {@link parseMetadata} reads. */
  readonly json: string;
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
  /** Functions, not PostgreSQL's own and not immutable, that an operator of this name runs, or a conversion to a type of this name (casts, checks of domains). */
  unseen(kind: 'operator' | 'type', name: string): readonly string[];
  /** All of these. */
  readonly unseenFunctions: ReadonlySet<string>;
  /** There are casts that are not PostgreSQL's own and whose function is volatile. */
  readonly volatileCasts: boolean;
  /** What PostgreSQL's catalog says of all its own functions of this name; null if it has none. */
  builtin(name: string): BuiltinFunction | null;
  /** Every relation, by {@link tableId}. */
  readonly relations: ReadonlyMap<string, Relation>;
  /** Functions that are not PostgreSQL's own, by name: one fact for each schema. */
  functionsNamed(name: string): readonly UserFunction[];
  /** The names of all functions that are not PostgreSQL's own. */
  readonly functionNames: Iterable<string>;
  /** Whether the text of some function has one of these words (lower case). */
  namedInFunctions(words: ReadonlySet<string>): boolean;
  /** Functions that run with DDL: those of event triggers. */
  readonly eventTriggers: readonly string[];
}

/**
 * `pure`: the same for the same arguments everywhere. `stable`: no side effect, and what it reads is the session's or the moment's.
 * `catalog`: no side effect, but it may read the catalogs, or is about object identifiers, which differ between shards. `other`: may do anything.
 */
export type BuiltinFunction = 'pure' | 'stable' | 'catalog' | 'other';

export interface Relation extends TableName {
  /** pg_class.relkind; `?` when only the topology knows it. */
  readonly kind: string;
  /** In order; null when only the topology knows the table. */
  readonly columns: readonly string[] | null;
  /** Missing: it has none. */
  readonly primaryKey?: readonly string[];
  /** The partitioned or inherited-from tables above it. */
  readonly parents: readonly TableName[];
  /** It has rules, other than that of a view: what changes it may do anything else instead, or as well. */
  readonly ruled?: true;
  /** Defaults of its columns, or checks of its rows, call currval or lastval. */
  readonly asksSequences?: true;
  /** What reading it reads too: tables below it, those of its view or rules and policies; for an index its table. */
  readonly reads: readonly TableName[];
  /** What changing it may change too: tables whose foreign keys point to it; itself, when a DELETE changes rows of it that way (ON DELETE SET NULL or DEFAULT). */
  readonly writes: readonly TableName[];
  /** Of these, tables whose rows foreign keys delete or change when rows of it are deleted; when those are updated. */
  readonly deletes: readonly TableName[];
  readonly updates: readonly TableName[];
  /** What changing it looks at: tables that its foreign keys point to; the table that owns a sequence. */
  readonly checks: readonly TableName[];
  /** Functions that reading it runs: of views, rules, policies. */
  readonly calls: readonly string[];
  /** Functions that changing it runs: of triggers, defaults, constraints, indexes, partition keys, and of the domains of its columns' types. */
  readonly fires: readonly string[];
  /** Of these, those that only triggers run: at which events, as `tgtype` of pg_trigger has them. All others: at any. */
  readonly firesAt?: ReadonlyMap<string, number>;
  /** Of these, PostgreSQL's own that only defaults of its columns call: of which columns. A row that is given a value for all of them does not run it. */
  readonly defaultsOf?: ReadonlyMap<string, readonly string[]>;
}

export interface UserFunction {
  readonly immutable: boolean;
  /** So are all overloads, or at least STABLE; sets of rows included. */
  readonly stable: boolean;
  /** All overloads are written in C or internal: they cannot read tables unseen, if they are on the list. */
  readonly native: boolean;
  /** The text of one, or of one that it calls, has words of what stays with a session: temporary objects, advisory locks, LISTEN … */
  readonly stateful: boolean;
  /** It, or one that it calls, may change settings for longer than the transaction. */
  readonly keepsSettings: boolean;
  /** So for currval or lastval. */
  readonly asksSequences: boolean;
  /** It, or one that it calls, executes texts that are made when it runs. */
  readonly executes: boolean;
  /** Some overload is in a language that is not read here, or is no plain function. */
  readonly opaque: boolean;
  /** The texts of all overloads, with their arguments' defaults. */
  readonly body: string;
}

export interface MetadataJson {
  readonly relations: readonly {
    schema: string;
    table: string;
    kind: string;
    columns: readonly string[];
    key?: readonly string[] | null;
    ruled?: boolean | null;
    parents: readonly (readonly [string, string])[];
  }[];
  readonly functions: readonly {
    schema: string;
    name: string;
    immutable: boolean;
    stable?: boolean;
    native: boolean;
    stateful?: boolean;
    keepsSettings?: boolean;
    asks?: boolean;
    opaque?: boolean;
    body?: string;
  }[];
  readonly operators: readonly string[];
  readonly volatileCasts?: boolean;
  readonly unseen?: readonly { kind: 'operator' | 'type'; name: string; function: string }[];
  /** From one relation to another. */
  readonly edges?: readonly {
    schema: string;
    table: string;
    kind: 'reads' | 'writes' | 'deletes' | 'updates' | 'checks';
    to: readonly [string, string];
  }[];
  /** From a relation to a function, by name; PostgreSQL's own are among them. `events`: see {@link Relation.firesAt}; `columns`: {@link Relation.defaultsOf}. */
  readonly runs?: readonly {
    schema: string;
    table: string;
    kind: 'calls' | 'fires';
    name: string;
    events?: number | null;
    columns?: readonly string[];
  }[];
  readonly builtins?: Readonly<Record<string, BuiltinFunction>>;
  readonly eventTriggers?: readonly string[];
}

const NOTHING = { reads: [], writes: [], deletes: [], updates: [], checks: [], calls: [], fires: [] };

/** A relation that only the topology tells of. */
function unknownRelation(table: TableName): Relation {
  return { ...table, kind: '?', columns: null, parents: [], ...NOTHING };
}

class Snapshot implements Metadata {
  readonly version: string;
  readonly json: string;
  readonly volatileOperators: ReadonlySet<string>;
  readonly volatileCasts: boolean;
  readonly eventTriggers: readonly string[];
  readonly unseenFunctions = new Set<string>();
  readonly #unseen = new Map<string, string[]>();
  readonly #relations = new Map<string, Relation>();
  readonly #builtins: ReadonlyMap<string, BuiltinFunction>;
  readonly #functions = new Map<string, { schema: string; fact: UserFunction }[]>();
  readonly #settings: SettingFunctions;

  constructor(json: string, version: string) {
    const row = JSON.parse(json) as MetadataJson;
    this.version = version;
    this.json = json;
    this.volatileOperators = new Set(row.operators);
    this.volatileCasts = row.volatileCasts ?? false;
    for (const u of row.unseen ?? []) {
      const of = `${u.kind} ${u.name}`;
      this.#unseen.set(of, [...(this.#unseen.get(of) ?? []), u.function]);
      this.unseenFunctions.add(u.function);
    }
    this.eventTriggers = row.eventTriggers ?? [];
    this.#builtins = new Map(Object.entries(row.builtins ?? {}));
    const edges = new Map<string, { [K in keyof typeof NOTHING]: Relation[K][number][] }>();
    const edgesOf = (of: TableName) => {
      const id = tableId(of);
      const all = edges.get(id) ?? {
        reads: [],
        writes: [],
        deletes: [],
        updates: [],
        checks: [],
        calls: [],
        fires: [],
      };
      edges.set(id, all);
      return all;
    };
    for (const e of row.edges ?? []) edgesOf(e)[e.kind].push({ schema: e.to[0], table: e.to[1] });
    const firesAt = new Map<string, Map<string, number>>();
    const defaultsOf = new Map<string, Map<string, readonly string[]>>();
    for (const r of row.runs ?? []) {
      edgesOf(r)[r.kind].push(r.name);
      if (r.columns !== undefined) {
        const of = defaultsOf.get(tableId(r)) ?? new Map<string, readonly string[]>();
        defaultsOf.set(tableId(r), of.set(r.name, r.columns));
      }
      if (r.kind === 'calls' || r.events == null) continue;
      const at = firesAt.get(tableId(r)) ?? new Map<string, number>();
      firesAt.set(tableId(r), at.set(r.name, r.events));
    }
    const asking = new Set(['currval', 'lastval', ...row.functions.filter((f) => f.asks).map((f) => f.name)]);
    for (const r of row.relations) {
      this.#relations.set(tableId(r), {
        schema: r.schema,
        table: r.table,
        kind: r.kind,
        columns: r.columns,
        ...(r.key ? { primaryKey: r.key } : {}),
        ...(r.ruled ? { ruled: true as const } : {}),
        parents: r.parents.map(([schema, table]) => ({ schema, table })),
        ...(edges.get(tableId(r))?.fires.some((f) => asking.has(f)) ? { asksSequences: true as const } : {}),
        ...(edges.get(tableId(r)) ?? NOTHING),
        ...(firesAt.has(tableId(r)) ? { firesAt: firesAt.get(tableId(r)) as Map<string, number> } : {}),
        ...(defaultsOf.has(tableId(r))
          ? { defaultsOf: defaultsOf.get(tableId(r)) as Map<string, readonly string[]> }
          : {}),
      });
    }
    const settings = new SettingFunctions(row.functions);
    this.#settings = settings;
    for (const f of row.functions) {
      const all = this.#functions.get(f.name) ?? [];
      const { schema, name, immutable, native, stable = false, stateful = false, asks = false } = f;
      const { opaque = true, body = '' } = f;
      const fact = {
        immutable,
        stable,
        native,
        stateful,
        asksSequences: asks,
        opaque,
        body,
        // Judged when it is needed: texts have to be read for it.
        get keepsSettings() {
          return settings.keeps(name);
        },
        get executes() {
          return settings.executes(name);
        },
      };
      all.push({ schema, fact });
      this.#functions.set(name, all);
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
      if (exists?.(table)) return unknownRelation(table);
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
      stable: seen.every((f) => f.fact.stable),
      native: seen.every((f) => f.fact.native),
      stateful: seen.some((f) => f.fact.stateful),
      keepsSettings: seen.some((f) => f.fact.keepsSettings),
      asksSequences: seen.some((f) => f.fact.asksSequences),
      executes: seen.some((f) => f.fact.executes),
      opaque: seen.some((f) => f.fact.opaque),
      body: seen.map((f) => f.fact.body).join('\n'),
    };
  }

  unseen(kind: 'operator' | 'type', name: string): readonly string[] {
    return this.#unseen.get(`${kind} ${name}`) ?? [];
  }

  mayKeepSettings(block: string): boolean {
    return this.#settings.block(block);
  }

  get relations(): ReadonlyMap<string, Relation> {
    return this.#relations;
  }

  functionsNamed(name: string): readonly UserFunction[] {
    return (this.#functions.get(name) ?? []).map((f) => f.fact);
  }

  get functionNames(): Iterable<string> {
    return this.#functions.keys();
  }

  namedInFunctions(words: ReadonlySet<string>): boolean {
    for (const all of this.#functions.values())
      for (const { fact } of all)
        if ((fact.body.toLowerCase().match(/[^\s"'.,;()[\]]+/g) ?? []).some((w) => words.has(w))) return true;
    return false;
  }

  builtin(name: string): BuiltinFunction | null {
    return this.#builtins.get(name) ?? null;
  }
}

/** recomputeNamespacePath in namespace.c: pg_catalog comes first unless it is named. Temporary schemas are the session's own matter. */
function lookupPath(searchPath: readonly string[]): readonly string[] {
  return searchPath.includes('pg_catalog') ? searchPath : ['pg_catalog', ...searchPath];
}

/** Nothing known: every table that the topology does not name is taken for one of the home shard's. */
export const EMPTY_METADATA: Metadata = new Snapshot('{"relations":[],"functions":[],"operators":[]}', 'empty');

/** Guards come and go with migrations, and do nothing but refuse: they are none of the schema's triggers. Their schema goes with them, and is looked up as of the same moment: to_regnamespace() is not. */
const NOT_A_GUARD = `tgfoid NOT IN (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'foreshard_shard')`;

/** At which events a trigger fires: the bits of `tgtype` for INSERT, DELETE, UPDATE and TRUNCATE (TRIGGER_TYPE_… in PostgreSQL's pg_trigger.h). */
const EVENTS = 'tgtype & 60';

/** Objects that are not PostgreSQL's own have higher ones (FirstNormalObjectId in transam.h). */
export const FIRST_NORMAL_OID = 16384;

/**
 * What expressions and queries of relations call is read from their trees, where a call has its function's oid: pg_get_viewdef and
 * the like would wait for locks on the relations, and fail for those that are dropped meanwhile. (No catalog says which of PostgreSQL's
 * own functions are called.)
 *
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
  SELECT oid, proname FROM bodies WHERE body ~* '\\m((set|reset)\\s|set_config\\M)'
  UNION SELECT b.oid, b.proname FROM setting s JOIN bodies b ON position(s.proname IN b.body) > 0),
drawing AS (
  SELECT oid, proname FROM bodies WHERE body ~* '\\m(currval|lastval)\\M'
  UNION SELECT b.oid, b.proname FROM drawing s JOIN bodies b ON position(s.proname IN b.body) > 0),
above AS (
  SELECT inhrelid AS rel, inhparent AS parent FROM pg_inherits
  UNION SELECT a.rel, i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.parent),
carriers AS (
  SELECT oid AS type, oid AS domain FROM pg_type WHERE typtype = 'd' AND typnamespace <> 'information_schema'::regnamespace
  UNION SELECT p.type, c.domain FROM carriers c JOIN (
    SELECT oid AS type, typbasetype AS part FROM pg_type WHERE typtype = 'd'
    UNION ALL SELECT oid, typelem FROM pg_type WHERE typelem <> 0 AND typcategory = 'A'
    UNION ALL SELECT rngtypid, rngsubtype FROM pg_range
    UNION ALL SELECT rngmultitypid, rngsubtype FROM pg_range
    UNION ALL SELECT r.reltype, a.atttypid FROM pg_class r JOIN pg_attribute a ON a.attrelid = r.oid WHERE a.atttypid >= ${FIRST_NORMAL_OID} AND a.attnum > 0 AND NOT a.attisdropped) p
    ON p.part = c.type),
domains AS MATERIALIZED (
  SELECT DISTINCT a.attrelid AS rel, c.domain FROM carriers c JOIN pg_attribute a ON a.atttypid = c.type WHERE a.attnum > 0 AND NOT a.attisdropped),
trees AS (
  SELECT ev_class AS rel, 'calls' AS kind, NULL::int AS events, NULL::name AS col, concat(ev_qual, ev_action) AS tree FROM pg_rewrite
  UNION ALL SELECT polrelid, 'calls', NULL, NULL, concat(polqual, polwithcheck) FROM pg_policy
  -- what is generated is so whatever is given
  UNION ALL SELECT adrelid, 'fires', NULL, CASE attgenerated WHEN '' THEN attname END, adbin::text
  FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
  UNION ALL SELECT d.rel, 'fires', NULL, NULL, t.typdefaultbin::text FROM domains d JOIN pg_type t ON t.oid = d.domain WHERE t.typdefaultbin IS NOT NULL
  UNION ALL SELECT d.rel, 'fires', NULL, NULL, c.conbin::text FROM domains d JOIN pg_constraint c ON c.contypid = d.domain WHERE c.contype = 'c'
  UNION ALL SELECT conrelid, 'fires', NULL, NULL, conbin::text FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0
  UNION ALL SELECT tgrelid, 'fires', ${EVENTS}, NULL, concat('{:funcid ', tgfoid, ' ', tgqual) FROM pg_trigger WHERE NOT tgisinternal AND ${NOT_A_GUARD}),
called AS (
  SELECT DISTINCT t.rel, t.kind, t.events, t.col, substring(f.node FROM '^\\d+')::oid AS function
  FROM trees t, string_to_table(replace(replace(t.tree, ':aggfnoid ', ':funcid '), ':winfnoid ', ':funcid '), ':funcid ') WITH ORDINALITY AS f(node, n)
  WHERE f.n > 1
  -- CURRENT_TIMESTAMP and its like (SVFOP_CURRENT_DATE to SVFOP_LOCALTIMESTAMP_N of primnodes.h) are no functions: they count as now().
  UNION SELECT rel, kind, events, col, 'pg_catalog.now()'::regprocedure::oid FROM trees WHERE tree ~ '\\{SQLVALUEFUNCTION :op [0-8] '),
triggered AS (
  SELECT tgrelid AS rel, ${EVENTS} AS events, 'pg_proc'::regclass AS refclassid, tgfoid AS refobjid FROM pg_trigger WHERE NOT tgisinternal AND ${NOT_A_GUARD}
  UNION SELECT tgrelid, ${EVENTS}, d.refclassid, d.refobjid
  FROM pg_trigger t JOIN pg_depend d ON d.classid = 'pg_trigger'::regclass AND d.objid = t.oid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  WHERE NOT tgisinternal AND ${NOT_A_GUARD}),
depends AS MATERIALIZED (
  SELECT r.ev_class AS rel, 'reads' AS kind, d.refclassid, d.refobjid
  FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
  UNION SELECT p.polrelid, 'reads', d.refclassid, d.refobjid
  FROM pg_policy p JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
  UNION SELECT i.inhparent, 'reads', 'pg_class'::regclass, i.inhrelid FROM pg_inherits i
  UNION SELECT i.indexrelid, 'reads', 'pg_class'::regclass, i.indrelid FROM pg_index i
  UNION SELECT c.confrelid, 'writes', 'pg_class'::regclass, c.conrelid FROM pg_constraint c WHERE c.contype = 'f'
  UNION SELECT c.confrelid, 'deletes', 'pg_class'::regclass, c.conrelid FROM pg_constraint c WHERE c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd')
  UNION SELECT c.confrelid, 'updates', 'pg_class'::regclass, c.conrelid FROM pg_constraint c WHERE c.contype = 'f' AND c.confupdtype IN ('c', 'n', 'd')
  UNION SELECT c.conrelid, 'checks', 'pg_class'::regclass, c.confrelid FROM pg_constraint c WHERE c.contype = 'f'
  UNION SELECT d.objid, 'checks', d.refclassid, d.refobjid
  FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  UNION SELECT a.adrelid, 'writes', d.refclassid, d.refobjid
  FROM pg_attrdef a JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  UNION SELECT c.conrelid, 'writes', d.refclassid, d.refobjid
  FROM pg_constraint c JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = c.oid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  WHERE c.conrelid <> 0
  UNION SELECT i.indrelid, 'writes', d.refclassid, d.refobjid
  FROM pg_index i JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  UNION SELECT a.attrelid, 'reads', 'pg_proc'::regclass, k.castfunc
  FROM pg_cast k JOIN pg_type t ON t.oid IN (k.castsource, k.casttarget) AND t.typnamespace <> 'pg_catalog'::regnamespace JOIN pg_attribute a ON a.atttypid = t.oid
  WHERE k.castfunc <> 0 AND k.castcontext <> 'e'
  UNION SELECT p.partrelid, 'writes', d.refclassid, d.refobjid
  FROM pg_partitioned_table p JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = p.partrelid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  UNION SELECT i.indrelid, 'writes', 'pg_proc'::regclass, f.oid
  FROM pg_index i CROSS JOIN unnest(i.indclass) AS u(opclass) JOIN pg_opclass o ON o.oid = u.opclass AND o.oid >= ${FIRST_NORMAL_OID}
    JOIN pg_amproc s ON s.amprocfamily = o.opcfamily JOIN pg_proc f ON f.oid = s.amproc JOIN pg_language l ON l.oid = f.prolang
  WHERE l.lanname NOT IN ('c', 'internal')
  UNION SELECT o.rel, 'writes', d.refclassid, d.refobjid
  FROM domains o JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = o.domain AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
  UNION SELECT o.rel, 'writes', d.refclassid, d.refobjid
  FROM domains o JOIN pg_constraint c ON c.contypid = o.domain
    JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = c.oid AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)),
about AS (
  SELECT n.nspname AS schema, c.relname AS name, d.kind, d.refclassid, d.refobjid
  FROM depends d JOIN pg_class c ON c.oid = d.rel JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp_|toast_temp_)'
    AND NOT (d.refclassid = 'pg_class'::regclass AND d.refobjid = d.rel AND NOT (d.kind = 'writes' AND EXISTS (
      SELECT FROM pg_constraint c WHERE c.contype = 'f' AND c.conrelid = d.rel AND c.confrelid = d.rel AND c.confdeltype IN ('n', 'd')))))
SELECT jsonb_build_object(
  'relations', (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'schema', n.nspname, 'table', c.relname, 'kind', c.relkind,
      'columns', CASE WHEN c.relkind IN ('i', 'I') OR n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast') THEN '[]'::jsonb ELSE
        (SELECT coalesce(jsonb_agg(a.attname ORDER BY a.attnum), '[]'::jsonb)
         FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) END,
      'key', (SELECT jsonb_agg(a.attname ORDER BY k.n) FROM pg_constraint p CROSS JOIN unnest(p.conkey) WITH ORDINALITY AS k(attnum, n)
        JOIN pg_attribute a ON a.attrelid = p.conrelid AND a.attnum = k.attnum WHERE p.conrelid = c.oid AND p.contype = 'p' AND n.nspname <> 'pg_catalog'),
      'ruled', CASE WHEN c.relhasrules AND EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN') THEN true END,
      'parents', coalesce(up.parents, '[]'::jsonb)) ORDER BY n.nspname, c.relname), '[]'::jsonb)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN (SELECT a.rel, jsonb_agg(jsonb_build_array(n.nspname, p.relname) ORDER BY n.nspname, p.relname) AS parents
        FROM above a JOIN pg_class p ON p.oid = a.parent JOIN pg_namespace n ON n.oid = p.relnamespace GROUP BY a.rel) up ON up.rel = c.oid
    WHERE (c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') OR (c.relkind IN ('i', 'I') AND n.nspname <> 'pg_catalog')) AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'),
  'functions', (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'schema', schema, 'name', name, 'immutable', immutable, 'stable', stable, 'native', native, 'stateful', stateful, 'keepsSettings', keeps_settings, 'asks', asks,
      'opaque', opaque, 'body', body) ORDER BY schema, name), '[]'::jsonb)
    FROM (SELECT n.nspname AS schema, p.proname AS name, bool_and(p.provolatile = 'i' AND p.prokind = 'f' AND NOT p.proretset) AS immutable, bool_and(p.provolatile <> 'v' AND p.prokind = 'f') AS stable,
                 bool_and(l.lanname IN ('c', 'internal')) AS native,
                 bool_or(p.oid IN (SELECT oid FROM stateful)) AS stateful, bool_or(p.oid IN (SELECT oid FROM setting)) AS keeps_settings, bool_or(p.oid IN (SELECT oid FROM drawing)) AS asks,
                 bool_or(l.lanname NOT IN ('sql', 'plpgsql') OR p.prokind NOT IN ('f', 'p')) AS opaque,
                 coalesce(string_agg(CASE WHEN l.lanname IN ('sql', 'plpgsql') AND p.prokind IN ('f', 'p')
                   THEN concat_ws(E';\\n', pg_get_function_arguments(p.oid), coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)) END, E';\\n' ORDER BY p.oid), '') AS body
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
          WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_temp_' GROUP BY 1, 2) f),
  'operators', (SELECT coalesce(jsonb_agg(DISTINCT o.oprname ORDER BY o.oprname), '[]'::jsonb)
    FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace LEFT JOIN pg_proc p ON p.oid = o.oprcode
    WHERE n.nspname <> 'pg_catalog' AND p.provolatile IS DISTINCT FROM 'i'),
  'unseen', (SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('kind', u.kind, 'name', u.name, 'function', p.proname)), '[]'::jsonb)
    FROM (SELECT 'operator' AS kind, oprname AS name, oprcode::oid AS function FROM pg_operator
          UNION ALL SELECT 'type', t.typname, k.castfunc FROM pg_cast k JOIN pg_type t ON t.oid = k.casttarget
          UNION ALL SELECT 'type', t.typname, d.refobjid
            FROM pg_constraint c JOIN pg_type t ON t.oid = c.contypid
              JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_proc'::regclass
            WHERE c.contypid <> 0) u
      JOIN pg_proc p ON p.oid = u.function JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.provolatile <> 'i' AND l.lanname NOT IN ('c', 'internal')),
  'volatileCasts', EXISTS (SELECT FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc
    WHERE p.pronamespace <> 'pg_catalog'::regnamespace AND p.provolatile = 'v'),
  'edges', (SELECT coalesce(jsonb_agg(jsonb_build_object('schema', a.schema, 'table', a.name, 'kind', a.kind,
      'to', jsonb_build_array(n.nspname, c.relname)) ORDER BY a.schema, a.name, a.kind, n.nspname, c.relname), '[]'::jsonb)
    FROM about a JOIN pg_class c ON a.refclassid = 'pg_class'::regclass AND c.oid = a.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')),
  'runs', (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('schema', schema, 'table', "table", 'kind', kind, 'name', name, 'events', events, 'columns', columns))
      ORDER BY schema, "table", kind, name), '[]'::jsonb)
    FROM (SELECT schema, "table", kind, name, CASE WHEN bool_and(events IS NOT NULL) THEN bit_or(events) END AS events,
                 CASE WHEN bool_and(col IS NOT NULL) THEN jsonb_agg(DISTINCT col ORDER BY col) END AS columns FROM (
      SELECT a.schema, a.name AS "table", CASE a.kind WHEN 'reads' THEN 'calls' ELSE 'fires' END AS kind, NULL::int AS events, NULL::name AS col, p.proname AS name
      FROM about a LEFT JOIN pg_operator o ON a.refclassid = 'pg_operator'::regclass AND o.oid = a.refobjid
        JOIN pg_proc p ON p.oid = CASE WHEN a.refclassid = 'pg_proc'::regclass THEN a.refobjid ELSE o.oprcode::oid END
      UNION ALL SELECT n.nspname, c.relname, 'fires', t.events, NULL, p.proname
      FROM triggered t LEFT JOIN pg_operator o ON t.refclassid = 'pg_operator'::regclass AND o.oid = t.refobjid
        JOIN pg_proc p ON p.oid = CASE WHEN t.refclassid = 'pg_proc'::regclass THEN t.refobjid ELSE o.oprcode::oid END
        JOIN pg_class c ON c.oid = t.rel JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp_|toast_temp_)'
      UNION ALL SELECT n.nspname, c.relname, d.kind, d.events, d.col, p.proname
      FROM called d JOIN pg_proc p ON p.oid = d.function AND p.pronamespace = 'pg_catalog'::regnamespace
        JOIN pg_class c ON c.oid = d.rel JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp_|toast_temp_)') each
      GROUP BY schema, "table", kind, name) r),
  'eventTriggers', (SELECT coalesce(jsonb_agg(p.proname ORDER BY p.proname), '[]'::jsonb)
    FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid WHERE e.evtenabled <> 'D'),
  'builtins', (SELECT jsonb_object_agg(name, CASE WHEN other THEN 'other' WHEN about_objects THEN 'catalog' WHEN pure THEN 'pure' ELSE 'stable' END)
    FROM (SELECT p.proname AS name,
                 bool_or(p.provolatile = 'v' OR p.prokind <> 'f' OR l.lanname NOT IN ('internal', 'sql')) AS other,
                 bool_or(EXISTS (SELECT FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]) || p.prorettype) AS u(t)
                   WHERE format_type(u.t, NULL) ~ '^(oid|oidvector|reg\\w+|internal|cstring|aclitem|xid8?|cid|tid|pg_snapshot|txid_snapshot|pg_node_tree)(\\[\\])?$'))
                   OR bool_or(l.lanname <> 'internal' AND p.provolatile <> 'i') OR p.proname ~ '^(pg_|has_|txid_)' AND bool_or(p.provolatile <> 'i') AS about_objects,
                 bool_and(p.provolatile = 'i' AND NOT p.proretset AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[] || p.prorettype) AS u(t)
                   WHERE format_type(u.t, NULL) ~ '^(any|record$|any\\w*enum|anyrange|anymultirange|anyarray|anycompat)')) AS pure
          FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
          WHERE p.pronamespace = 'pg_catalog'::regnamespace GROUP BY p.proname) b)
)::text AS metadata`;

/** A snapshot from its JSON form; the form of {@link loadMetadata}'s query. */
export function parseMetadata(json: string): Metadata {
  return new Snapshot(json, versionOf(json));
}

function versionOf(json: string): string {
  return createHash('sha1').update(json).digest('hex');
}

/** What PostgreSQL says when it is to describe something that has been dropped since the query began: internal errors, of caches and relations. */
const DROPPED_MEANWHILE = new Set(['XX000', '42P01']);
/** Each is of a moment of its own: that something is dropped during all of them is no coincidence. */
const READINGS = 10;

/** Reads a snapshot from a server, in one query. @param last what comes back if nothing is different */
export async function loadMetadata(
  pool: pg.Pool | Pick<pg.ClientBase, 'query'>,
  last: Metadata = EMPTY_METADATA,
): Promise<Metadata> {
  for (let left = READINGS - 1; ; left--) {
    try {
      const { rows } = await pool.query<{ metadata: string }>(QUERY);
      const row = rows[0];
      if (row === undefined) throw new Error('the metadata query gave no row');
      const version = versionOf(row.metadata);
      return version === last.version ? last : new Snapshot(row.metadata, version);
    } catch (error) {
      if (left === 0 || !DROPPED_MEANWHILE.has((error as { code?: string }).code ?? '')) throw error;
    }
  }
}

/**
 * The same as long as nothing has changed of what {@link loadMetadata} reads, and much cheaper: of each catalog how many rows there are,
 * and the sum of the transactions that have written them. Whoever changes a row writes it anew; only VACUUM and ANALYZE
 * do not. pg_depend needs no look: what depends is written with it. Temporary tables come and go, and are not read.
 */
const SIGNATURE = `
WITH temporary AS MATERIALIZED (SELECT oid FROM pg_class WHERE relpersistence = 't')
SELECT concat_ws(' ', ${[
  ['pg_class', 'oid'],
  ['pg_attribute', 'attnum > 0 AND attrelid'],
  ['pg_attrdef', 'adrelid'],
  ['pg_constraint', 'conrelid'],
  ['pg_inherits', 'inhrelid'],
  ['pg_policy', 'polrelid'],
  ['pg_rewrite', 'ev_class'],
  ['pg_sequence', 'seqrelid'],
  ['pg_trigger', 'tgrelid'],
  ['pg_event_trigger', 'oid'],
  ['pg_namespace', `nspname !~ '^pg_' AND oid`],
  ['pg_operator', 'oid'],
  ['pg_proc', 'oid'],
  ['pg_cast', 'oid'],
  ['pg_type', `typtype = 'd' AND oid`],
]
  .map(
    ([catalog, of]) =>
      `(SELECT concat(count(*), ':', sum(xmin::text::bigint)) FROM ${catalog} WHERE ${of} NOT IN (SELECT oid FROM temporary))`,
  )
  .join(',\n')}) AS signature`;

/** See {@link loadMetadata}: to be asked before it. */
export async function schemaSignature(pool: pg.Pool): Promise<string> {
  const { rows } = await pool.query<{ signature: string }>(SIGNATURE);
  const row = rows[0];
  if (row === undefined) throw new Error('the signature query gave no row');
  return row.signature;
}
