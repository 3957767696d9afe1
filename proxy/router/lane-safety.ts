import type { Node, TypeName } from 'libpg-query';
import { tableId } from '../../topology/topology.js';
import type { Context } from './analysis.js';
import { qualifiedName, strings } from './ast.js';
import { classifyBuiltin } from './functions.js';
import type { Metadata, Relation, UserFunction } from './metadata.js';

const words = (text: string): ReadonlySet<string> => new Set(text.trim().split(/\s+/));

/** Volatile, and yet they neither change anything nor tell of the server connection: PostgreSQL's own, and those of uuid-ossp and pgcrypto. */
const HARMLESS = words(`
array_sample array_shuffle clock_timestamp gen_random_uuid random random_normal timeofday uuidv4 uuidv7`);
const HARMLESS_EXTENSIONS = words('uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 gen_random_bytes gen_salt');

/** Declared STABLE and written in C: what the others do (tablefunc's crosstab runs a text) nobody can see. */
const STABLE_EXTENSIONS = words('similarity word_similarity show_trgm unaccent');

/**
 * They only read, but what they tell is the server connection's or its transaction's, or takes as long as it likes. Lanes are read-only, which
 * nobody who asks for settings is to see.
 */
const OF_THE_CONNECTION = words(`
current_setting pg_show_all_settings
pg_sleep pg_sleep_for pg_sleep_until pg_backend_pid pg_current_xact_id pg_current_xact_id_if_assigned pg_current_snapshot txid_current
txid_current_if_assigned txid_current_snapshot inet_client_addr inet_client_port inet_server_addr inet_server_port pg_listening_channels
pg_my_temp_schema pg_cursor pg_prepared_statement pg_notification_queue_usage pg_input_is_valid pg_input_error_info ts_rewrite ts_stat`);

/** Types whose input and casts are PostgreSQL's own. */
const TYPES = words(`
int2 int4 int8 numeric float4 float8 money bool text varchar bpchar char name bytea date time timetz timestamp timestamptz interval uuid json jsonb
jsonpath inet cidr macaddr macaddr8 bit varbit tsvector tsquery point line lseg box path polygon circle int4range int8range numrange tsrange tstzrange
daterange int4multirange int8multirange nummultirange tsmultirange tstzmultirange datemultirange xml oid`);

/** Comparisons that are used where none is written: GROUP BY, ORDER BY, USING, IN, BETWEEN. */
const COMPARISONS = ['=', '<>', '<', '>', '<=', '>='];

/** Kinds of nodes that are understood; a statement with another takes a lease. */
const NODES = words(`
SelectStmt ResTarget ColumnRef A_Star A_Const ParamRef A_Expr BoolExpr NullTest BooleanTest FuncCall TypeCast SubLink CaseExpr CaseWhen CoalesceExpr
MinMaxExpr A_ArrayExpr A_Indirection A_Indices RowExpr List String Integer Float Boolean BitString JoinExpr RangeVar RangeSubselect RangeFunction
SortBy WindowDef CommonTableExpr GroupingSet GroupingFunc CollateClause SQLValueFunction NamedArgExpr`);

/** Kinds of relations that are read without anybody else's help. */
const PLAIN = new Set(['r', 'p', 'm', 'v']);

/**
 * Whether a query may run between those of other clients on one server connection: it changes nothing, locks nothing, leaves nothing
 * behind, and tells nothing of the connection, whatever its values are. Errs towards no: a statement that is not understood, or
 * uses something that the metadata does not know, is not safe.
 */
export function isLaneSafe(statement: Node, context: Context): boolean {
  const { searchPath, metadata } = context;
  // Then a type, an operator or a relation of the user's own may stand before PostgreSQL's of the same name.
  if (searchPath.includes('pg_catalog') && searchPath[0] !== 'pg_catalog') return false;
  if (metadata.volatileCasts || COMPARISONS.some((op) => metadata.volatileOperators.has(op))) return false;
  return new Reader(context).safe(statement);
}

class Reader {
  readonly #context: Context;
  readonly #ctes = new Set<string>();
  readonly #safety: Safety;

  constructor(context: Context) {
    this.#context = context;
    this.#safety = safetyOf(context.metadata);
  }

  safe(statement: Node): boolean {
    this.#noteCtes(statement);
    return this.#node(statement);
  }

  #noteCtes(value: unknown): void {
    if (typeof value !== 'object' || value === null) return;
    for (const [key, inner] of Object.entries(value)) {
      if (key === 'CommonTableExpr') this.#ctes.add((inner as { ctename?: string }).ctename ?? '');
      this.#noteCtes(inner);
    }
  }

  #node(value: unknown): boolean {
    if (typeof value !== 'object' || value === null) return true;
    if (Array.isArray(value)) return value.every((v) => this.#node(v));
    for (const [key, inner] of Object.entries(value) as [string, Node][]) {
      if (typeof inner !== 'object' || inner === null) continue;
      if (key === 'intoClause' || key === 'lockingClause') return false;
      if (key === 'typeName') {
        if (!isKnownType(inner as unknown as TypeName)) return false;
        continue;
      }
      if (/^[A-Z]/.test(key) && !(NODES.has(key) && this.#own(key, inner))) return false;
      if (!this.#node(inner)) return false;
    }
    return true;
  }

  /** Whether a node is safe as far as it is itself concerned. */
  #own(kind: string, value: object): boolean {
    const { metadata, searchPath } = this.#context;
    switch (kind) {
      case 'FuncCall': {
        const { schema, name } = qualifiedName((value as { funcname?: Node[] }).funcname);
        return this.#safety.call(schema, name, searchPath);
      }
      case 'RangeVar':
        return this.#relation(value as { schemaname?: string; relname?: string; catalogname?: string });
      case 'A_Expr':
        return this.#operator((value as { name?: Node[] }).name);
      case 'SubLink':
        return this.#operator((value as { operName?: Node[] }).operName);
      case 'SortBy':
        return this.#operator((value as { useOp?: Node[] }).useOp);
      // row.f is f(row) where the row has no such column
      case 'ColumnRef':
        return strings((value as { fields?: Node[] }).fields)
          .slice(1)
          .every((name) => this.#safety.attribute(name));
      case 'A_Indirection':
        return strings((value as { indirection?: Node[] }).indirection).every((name) => this.#safety.attribute(name));
      case 'JoinExpr':
        return !metadata.volatileOperators.has('=');
      default:
        return true;
    }
  }

  #operator(names: readonly Node[] | undefined): boolean {
    return strings(names).every((name) => !this.#context.metadata.volatileOperators.has(name));
  }

  #relation(table: { schemaname?: string; relname?: string; catalogname?: string }): boolean {
    const { metadata, searchPath } = this.#context;
    const name = table.relname ?? '';
    const relation = metadata.resolveRelation(table.schemaname ?? null, name, searchPath);
    if (relation === null) return table.schemaname === undefined && this.#ctes.has(name);
    return this.#safety.relation(relation);
  }
}

function isKnownType(type: TypeName): boolean {
  const { schema, name } = qualifiedName(type.names);
  return !type.setof && !type.pct_type && (schema === null || schema === 'pg_catalog') && TYPES.has(name);
}

const known = new WeakMap<Metadata, Safety>();

function safetyOf(metadata: Metadata): Safety {
  let safety = known.get(metadata);
  if (safety === undefined) {
    safety = new Safety(metadata);
    known.set(metadata, safety);
  }
  return safety;
}

/** What follows from one state of the schema: which functions and relations are safe. */
class Safety {
  readonly #metadata: Metadata;
  readonly #functions = new Map<string, boolean>();
  readonly #relations = new Map<string, boolean>();
  #byName: ReadonlyMap<string, readonly Relation[]> | null = null;

  constructor(metadata: Metadata) {
    this.#metadata = metadata;
  }

  /** A call by this name, with or without a schema: whichever function PostgreSQL takes for it. */
  call(schema: string | null, name: string, searchPath: readonly string[]): boolean {
    const builtin = this.#builtin(name);
    if (schema === 'pg_catalog') return builtin === true;
    const user = this.#metadata.userFunction(schema, name, searchPath);
    if (schema !== null) return user !== null && this.named(name);
    if (user !== null && !this.named(name)) return false;
    return builtin ?? user !== null;
  }

  /** All functions of this name that are not PostgreSQL's own, wherever they are. */
  named(name: string): boolean {
    const judged = this.#functions.get(name);
    if (judged !== undefined) return judged;
    // Not safe until found so: functions that call one another in a circle are not followed.
    this.#functions.set(name, false);
    const safe = this.#metadata.functionsNamed(name).every((f) => this.#user(name, f));
    if (safe) this.#functions.set(name, true);
    return safe;
  }

  attribute(name: string): boolean {
    return this.#metadata.functionsNamed(name).length === 0 || this.named(name);
  }

  relation(relation: Relation): boolean {
    const id = tableId(relation);
    const judged = this.#relations.get(id);
    if (judged !== undefined) return judged;
    this.#relations.set(id, false);
    const safe = this.#readable(relation);
    if (safe) this.#relations.set(id, true);
    return safe;
  }

  #readable(relation: Relation): boolean {
    const { schema, kind, calls, reads } = relation;
    if (schema === 'pg_catalog' || schema === 'information_schema' || schema.startsWith('pg_') || !PLAIN.has(kind))
      return false;
    // The words of a view's definition are among the names: a column's may be that of a function.
    if (!calls.every((name) => this.#builtin(name) !== false && this.named(name))) return false;
    return reads.every((table) => {
      const inner = this.#metadata.relations.get(tableId(table));
      return inner !== undefined && (inner.kind === 'i' || inner.kind === 'I' || this.relation(inner));
    });
  }

  /** PostgreSQL's own functions of this name; null: it has none. */
  #builtin(name: string): boolean | null {
    if (HARMLESS.has(name)) return true;
    if (OF_THE_CONNECTION.has(name)) return false;
    const volatility = this.#metadata.builtin(name);
    switch (classifyBuiltin(name, this.#metadata).kind) {
      case 'aggregate':
      case 'immutable':
        return true;
      case 'stable':
        if (volatility !== null) return volatility === 'pure' || volatility === 'stable';
        // Extensions' are among the router's names.
        return null;
      default:
        if (volatility === 'pure' || volatility === 'stable') return true;
        return volatility === null && !name.startsWith('pg_') ? null : false;
    }
  }

  #user(name: string, f: UserFunction): boolean {
    if (f.native) return f.immutable || HARMLESS_EXTENSIONS.has(name) || STABLE_EXTENSIONS.has(name);
    return f.stable && !f.opaque && !f.stateful && !f.keepsSettings && this.#body(f.body);
  }

  /** Whether a body has no word that is a name of something unsafe, be it in a comment. */
  #body(text: string): boolean {
    const lower = text.toLowerCase();
    // Names in quotes need not be words.
    if (lower.includes('"')) return false;
    for (const op of this.#metadata.volatileOperators) if (lower.includes(op)) return false;
    for (const word of new Set(lower.match(/[\p{L}\p{N}_$]+/gu) ?? [])) {
      if (this.#builtin(word) === false || !this.attribute(word)) return false;
      for (const relation of this.#named().get(word) ?? []) if (!this.relation(relation)) return false;
    }
    return true;
  }

  /** Relations by their names; indexes are not named in a query. */
  #named(): ReadonlyMap<string, readonly Relation[]> {
    if (this.#byName !== null) return this.#byName;
    const byName = new Map<string, Relation[]>();
    for (const r of this.#metadata.relations.values()) {
      if (r.kind === 'i' || r.kind === 'I') continue;
      byName.set(r.table, [...(byName.get(r.table) ?? []), r]);
    }
    this.#byName = byName;
    return byName;
  }
}
