import type { FuncCall, Node, RangeVar } from 'libpg-query';
import { UsageError } from '../../topology/errors.js';
import type { KeyType } from '../../topology/key.js';
import { parseTableName } from '../../topology/table-name.js';
import {
  type KeyspaceName,
  type ReferenceTable,
  type ShardedTable,
  type TableName,
  tableId,
} from '../../topology/topology.js';
import { type Literals, qualifiedName, walk } from './ast.js';
import { drawingOf } from './drawing.js';
import { classifyFunction } from './functions.js';
import { hotTableRefusal } from './hot-table.js';
import type { Metadata, Relation } from './metadata.js';
import { Pins, type Variable } from './pins.js';
import { type Reach, reachHome, reachOf, reachSplit, type Use, wholeReached } from './reach.js';
import { beyond, type Registry } from './registry.js';
import { type KeyColumnSource, type KeySource, type Refusal, SETTINGS_OF_FUNCTION } from './route.js';
import type { Ctes, Entry, Level } from './scope.js';
import { behindTells, functionTells } from './telling.js';

/** What planning looks at besides the statement. */
export interface Context {
  readonly registry: Registry;
  readonly metadata: Metadata;
  /** `$user` already replaced. */
  readonly searchPath: readonly string[];
  readonly literals: Literals;
}

/** One occurrence of a sharded table. */
export interface Occurrence {
  readonly table: ShardedTable;
  readonly variables: readonly Variable[];
  /** The name by which its columns are referred to, and those of the key's columns there; null: not known. */
  readonly visible: { readonly name: string; readonly keyColumns: readonly string[] } | null;
  /** INSERT … VALUES: the keys of the rows, in place of what the graph says. */
  rows: readonly KeySource[] | null;
  /** Stands on the nullable side of an outer join of its level. */
  nullable: boolean;
  /** Stands in the outermost query, not in a sub-query of any kind. */
  readonly top: boolean;
  /** Where it is named; missing where it is not. */
  readonly node?: RangeVar;
  /** The table named there, which may be a partition; missing when only the topology knows it. */
  readonly relation?: Relation;
}

/** SET key column = constant. */
export interface Assignment {
  readonly occurrence: Occurrence;
  /** Which of the table's key columns. */
  readonly column: number;
  readonly source: KeyColumnSource;
}

export type TableRole = 'read' | 'write';

/** Key lists longer than this are not followed (a product of IN lists over a composite key). */
const MAX_KEYS = 10_000;

/** What one statement does and touches, gathered while its tree is read. */
export class Analysis {
  readonly pins = new Pins();
  readonly occurrences: Occurrence[] = [];
  readonly referenceReads = new Map<string, TableName>();
  readonly referenceWrites = new Map<string, TableName>();
  /** The sharded table whose triggers, defaults, checks and the like do so. */
  homeBehind: string | null = null;
  /** Reads or writes tables that only the home shard has. */
  home = false;
  /** Keyspaces without a key that it reaches through what only the home shard has. */
  readonly wholeAtHome = new Set<KeyspaceName>();
  /** Its plan depends on a literal's value. */
  ofLiterals = false;
  /** Has something that is exact at home only (a function that uses the home shard's own tables, TABLESAMPLE): the refusal if sharded or reference tables are used too. */
  atHomeOnly: Refusal | null = null;
  /** The first thing that cannot be understood well enough to be exact on several shards. */
  refusal: Refusal | null = null;
  writes = false;
  /** Draws from a sequence by name, or sets it: on the shard of the statement's tables, else at home. */
  sequence = false;
  pin: string | null = null;
  asksSequences = false;
  /** So do defaults of columns, or checks, of a table that is written. */
  defaultsAsk = false;
  /** What it sets off (defaults, triggers, checks) tells when the transaction began, perhaps. */
  setsOffTelling = false;
  /** So do defaults of columns that it may use by DEFAULT. */
  defaultsTell = false;
  /** So does perhaps what it sets off (nextval in a default, a trigger, a function that nobody knows). */
  mayDraw = false;
  unsureOfState = false;
  /** Something runs unseen that executes texts. */
  executesText = false;
  readonly setConfigCalls: FuncCall[] = [];
  notifies = false;
  showsChannels = false;
  /** Why the statement cannot fan out, the first reason. */
  noFanOut: Refusal | null = null;
  /** Why it cannot be answered from copies of its tables, either. */
  noGather: Refusal | null = null;
  /** Tables whose columns are split, and which something that it sets off may reach. */
  readonly halvesBehind = new Set<ShardedTable>();
  /** Refused wherever data is. */
  forbidden: Refusal | null = null;
  /** An UPDATE sets a key column: the new key must equal the old one. */
  sameKey = false;
  /** The constants that UPDATE gives to key columns. */
  readonly assigned: Assignment[] = [];
  /** How deep in sub-queries; 0 is the statement itself. */
  depth = 0;
  readonly #seen = new Set<RangeVar>();
  readonly #types = new Map<Variable, KeyType>();
  /** How often each parameter is compared with, or put into, a key column, and of which type; null: of several. */
  readonly paramUses = new Map<number, { count: number; type: KeyType | null }>();
  /** The same of parameters that are arrays of keys. */
  readonly arrayUses = new Map<number, { count: number; type: KeyType | null }>();

  /** `modification` reads an INSERT, UPDATE, DELETE or MERGE; handed in because it needs this and the query's reader needs it. */
  constructor(
    readonly context: Context,
    readonly modification: (a: Analysis, node: Node, parent: Level | null, ctes: Ctes | null) => void,
  ) {}

  /** Gives up: fine on a sole shard, refused on several. The first reason counts. */
  refuse(message: string, hint?: string): void {
    this.refusal ??= { sqlstate: '0A000', message, ...(hint === undefined ? {} : { hint }) };
  }

  blockFanOut(message: string, hint?: string): void {
    this.noFanOut ??= { sqlstate: '0A000', message, ...(hint === undefined ? {} : { hint }) };
  }

  blockGather(message: string): void {
    this.noGather ??= { sqlstate: '0A000', message };
  }

  /** A new variable for a key column of this table. */
  variable(table: ShardedTable, column: number): Variable {
    const v = this.pins.variable();
    const type = this.context.registry.keyTypes(table)[column];
    if (type) this.#types.set(v, type);
    return v;
  }

  /** The key column can only have these values. */
  restrict(v: Variable, sources: readonly KeyColumnSource[]): void {
    for (const s of sources) this.usesParam(s, this.#types.get(v) ?? null);
    this.pins.restrict(v, sources);
  }

  usesParam(source: KeyColumnSource, type: KeyType | null): void {
    if (source.kind !== 'param') return;
    const uses = source.array ? this.arrayUses : this.paramUses;
    const use = uses.get(source.number);
    if (use) {
      use.count++;
      if (use.type !== type) use.type = null;
    } else uses.set(source.number, { count: 1, type });
  }

  /**
   * Takes note of a table that is read, or changed so, and gives what columns can say about it.
   * @param gives columns to which each row that is inserted is given something, be it DEFAULT; or so many of the first
   */
  table(
    node: RangeVar,
    use: Use,
    gives: readonly (string | null)[] | number = 0,
  ): { entry: Entry; occurrence: Occurrence | null; columns: readonly string[] | null } {
    this.#seen.add(node);
    const role: TableRole = use === 'read' ? 'read' : 'write';
    const { registry, metadata, searchPath } = this.context;
    const name = node.relname ?? '';
    const relation = metadata.resolveRelation(
      node.schemaname ?? null,
      name,
      searchPath,
      (t) => registry.sharded(t) !== null || registry.reference(t) !== null,
    );
    const columns = relation?.columns && relation.columns.length > 0 ? relation.columns : null;
    const renamed = node.alias?.colnames ?? [];
    const names = columns?.map((c, i) => {
      const alias = renamed[i];
      return alias && 'String' in alias ? (alias.String.sval ?? '') : c;
    });
    const sharded =
      relation && (registry.sharded(relation) ?? this.#partitioned(relation) ?? this.#wholeOwner(relation));
    let occurrence: Occurrence | null = null;
    const keys = new Map<string, Variable>();
    const as = node.alias?.aliasname ?? name;
    if (role === 'write') this.writes = true;
    if (role === 'write' && relation?.asksSequences) this.defaultsAsk = true;
    if (relation === null || !drawingOf(metadata).drawsNothing(relation, role)) this.mayDraw = true;
    if (relation) {
      const reach = reachOf(metadata, registry);
      for (const f of reach.functionsRun(relation, use)) this.#runs(f);
      const given = typeof gives === 'number' ? (columns ?? []).slice(0, gives) : gives;
      const tells = behindTells({ metadata, reach }, relation, use, given);
      if (tells === 'always') this.setsOffTelling = true;
      else if (tells === 'by-default') this.defaultsTell = true;
    }
    if (relation && (sharded || registry.reference(relation))) this.#checkTypes(relation);
    if (sharded?.halfOf !== undefined && role === 'write') this.forbidden ??= hotTableRefusal(sharded, sharded.halfOf);
    if (sharded) {
      if (relation) this.#checkBehind(relation, sharded, use);
      const visible = sharded.keyColumns.map((column) => {
        const at = columns?.indexOf(column) ?? -1;
        // Column aliases rename by position: without the column list nobody knows which.
        return renamed.length === 0 ? column : at >= 0 ? names?.[at] : undefined;
      });
      occurrence = {
        table: sharded,
        visible: visible.every((column) => column !== undefined) ? { name: as, keyColumns: visible } : null,
        variables: sharded.keyColumns.map((_, i) => this.variable(sharded, i)),
        rows: null,
        nullable: false,
        top: this.depth === 0,
        node,
        ...(relation ? { relation } : {}),
      };
      this.occurrences.push(occurrence);
      for (const [i, column] of visible.entries())
        if (column !== undefined) keys.set(column, occurrence.variables[i] as Variable);
    } else if (relation && registry.reference(relation)) {
      const reference = registry.reference(relation) as ReferenceTable;
      const set = role === 'write' ? this.referenceWrites : this.referenceReads;
      set.set(`${reference.schema}.${reference.table}`, { schema: reference.schema, table: reference.table });
    } else this.#other(relation, name, use);
    const entry: Entry = {
      name: as,
      schema: node.alias ? null : (relation?.schema ?? null),
      columns: names ?? null,
      keys,
      open: true,
    };
    return { entry, occurrence, columns };
  }

  /** A name that turned out to be a common table expression's. */
  sawCte(node: RangeVar): void {
    this.#seen.add(node);
  }

  /** Triggers, rules, policies, defaults, checks and indexes of a sharded table find only what its shard has. */
  #checkBehind(relation: Relation, { keyspace, table }: ShardedTable, use: Use): void {
    const { metadata, registry } = this.context;
    if (reachOf(metadata, beyond(registry, keyspace)).relation(relation, use))
      this.refuse(
        `"${table}" has triggers, rules, policies, defaults, checks or other parts that may reach beyond keyspace "${keyspace}", which is not supported over several shards yet`,
        'Drop them, or let them use tables of the keyspace only.',
      );
    else if (reachHome(metadata, registry).relation(relation, use)) {
      this.home = true;
      this.homeBehind ??= table;
    }
    // What they reach of their keyspace is on their shard, all of it or its base half.
    const splits = registry.splits.filter((split) => split.keyspace === keyspace);
    if (splits.length > 0 && reachSplit(metadata, registry).relation(relation, use))
      for (const split of splits) this.halvesBehind.add(split);
  }

  #other(relation: Relation | null, name: string, use: Use): void {
    this.home = true;
    if (relation === null) return;
    const system =
      relation.schema === 'pg_catalog' ||
      relation.schema === 'information_schema' ||
      relation.schema.startsWith('pg_toast');
    const { registry } = this.context;
    if (system) this.blockGather('system catalogs cannot be read together with rows of several shards');
    const parent = relation.parents.find((p) => registry.sharded(p) !== null || registry.reference(p) !== null);
    if (parent)
      this.refuse(
        `"${name}" is a part of "${parent.table}", and parts of a sharded table cannot be used directly on several shards`,
        `Use "${parent.table}" itself.`,
      );
    else if (!system && !this.#atHomeWith((reach) => reach.relation(relation, use))) {
      const view = { v: 'view', m: 'materialized view', f: 'foreign table' }[relation.kind];
      if (view)
        this.refuse(
          `"${name}" is a ${view} that may use more than the home shard has, which is not supported over several shards yet`,
          'Use the tables themselves.',
        );
      else
        this.refuse(
          `"${name}" has triggers, rules, policies, foreign keys, defaults, checks or other parts that may reach beyond the home shard, which is not supported over several shards yet`,
        );
    }
  }

  /**
   * Something runs at home behind the statement: what it reaches must be there, too.
   * @returns false when it may reach declared tables that have a key, or reference tables
   */
  #atHomeWith(reaches: (reach: Reach) => boolean): boolean {
    const { metadata, registry } = this.context;
    const whole = wholeReached(metadata, registry, reaches);
    if (whole === null) return false;
    for (const name of whole) this.wholeAtHome.add(name);
    if (whole.length > 0) this.home = true;
    return true;
  }

  /** The sharded table that it is a partition of: it has columns of the same names, and each shard its rows of it. */
  #partitioned({ kind, parents }: Relation): ShardedTable | null {
    const { metadata, registry } = this.context;
    if (kind !== 'r' && kind !== 'p') return null;
    for (const parent of parents) {
      const sharded = registry.sharded(parent);
      if (sharded !== null && metadata.relations.get(tableId(parent))?.kind === 'p') return sharded;
    }
    return null;
  }

  /** The table without a key that a sequence belongs to, which goes where the table goes. */
  #wholeOwner(relation: Relation): ShardedTable | null {
    const { registry } = this.context;
    if (relation.kind !== 'S' || registry.keyless.length === 0) return null;
    for (const table of relation.checks) {
      const sharded = registry.sharded(table);
      if (sharded?.keyColumns.length === 0) return sharded;
    }
    return null;
  }

  /** A function is given a sequence by its name. */
  #drawsFrom(call: FuncCall, name: string): void {
    const { registry, metadata, searchPath } = this.context;
    if (registry.keyless.length === 0) return;
    const sequence = sequenceNamed(call);
    if (sequence === null) {
      this.refuse(
        `function ${name}() of a sequence that is not named by a literal is not supported while tables without a key are on other shards`,
        `Write its name: ${name}('…').`,
      );
      return;
    }
    this.ofLiterals = true;
    const relation = metadata.resolveRelation(sequence.schema, sequence.table, searchPath);
    const owner = relation && this.#wholeOwner(relation);
    if (owner)
      this.occurrences.push({ table: owner, variables: [], visible: null, rows: null, nullable: false, top: false });
  }

  /** Judges a call. */
  call(call: FuncCall): void {
    const { schema, name } = qualifiedName(call.funcname);
    const found = classifyFunction(schema, name, this.context.searchPath, this.context.metadata);
    // What is declared to be immutable may still draw.
    if (this.context.metadata.functionsNamed(name).length > 0) this.mayDraw = true;
    if (name === 'pg_notify') this.notifies = true;
    if (name === 'pg_listening_channels') this.showsChannels = true;
    if (call.over) this.blockFanOut('window functions in a query over several shards are not supported', PIN_HINT);
    // With three arguments it only computes; with two it runs a query that is a text.
    if (name === 'ts_rewrite' && call.args?.length === 3 && this.context.metadata.functionsNamed(name).length === 0)
      return;
    switch (found.kind) {
      case 'immutable':
        return;
      case 'stable':
        this.blockFanOut(
          `function ${name}() is not immutable, so a statement that uses it cannot run on several shards`,
          PIN_HINT,
        );
        return;
      case 'aggregate':
        this.blockFanOut('aggregates in a query over several shards are not supported', PIN_HINT);
        return;
      case 'catalog':
        this.home = true;
        this.blockGather(`function ${name}() cannot be used in a query over several shards`);
        return;
      case 'session': {
        this.writes = true;
        this.mayDraw = true;
        if (found.home) this.home = true;
        if (name === 'set_config') this.setConfigCalls.push(call);
        // The weakest reason gives way to any other.
        else if (found.pin !== null && (this.pin === null || this.pin === 'pg_backend_pid')) this.pin = found.pin;
        this.blockFanOut(`function ${name}() cannot run on several shards`, PIN_HINT);
        this.blockGather(`function ${name}() cannot run on several shards`);
        return;
      }
      case 'sequence':
        this.writes = true;
        this.mayDraw = true;
        if (found.prior) this.asksSequences = true;
        else {
          this.sequence = true;
          this.#drawsFrom(call, name);
        }
        this.blockFanOut(`function ${name}() cannot run on several shards`, PIN_HINT);
        this.blockGather(`function ${name}() cannot run on several shards`);
        return;
      case 'unknown': {
        this.writes = true;
        this.mayDraw = true;
        this.#userCall(schema, name);
        const { metadata, searchPath } = this.context;
        const user = metadata.userFunction(schema, name, searchPath);
        const refusal: Refusal = {
          sqlstate: '0A000',
          message: `function ${schema === null ? '' : `${schema}.`}${name}() may read or change anything, so it cannot be used while data is on several shards`,
          hint:
            user === null ? 'Ask each shard directly.' : 'Declare it IMMUTABLE if it only computes from its arguments.',
        };
        if (user !== null && this.#atHomeWith((reach) => reach.function(name))) {
          this.home = true;
          this.atHomeOnly ??= refusal;
        } else this.refusal ??= refusal;
      }
    }
  }

  #userCall(schema: string | null, name: string): void {
    const user = this.context.metadata.userFunction(schema, name, this.context.searchPath);
    // One that is not known may have been made a moment ago.
    const unknown = user === null && schema !== 'pg_catalog' && !name.startsWith('pg_');
    if (unknown || user?.stateful) this.unsureOfState = true;
    if (user !== null && functionTells(this.context.metadata, name)) this.setsOffTelling = true;
    if (user?.keepsSettings) this.pin = SETTINGS_OF_FUNCTION;
    if (user?.executes) this.executesText = true;
    // It mostly draws itself what it then asks for.
    if (user?.asksSequences) this.defaultsAsk = true;
  }

  /** A function of this name runs behind the statement: of a trigger, a default, a view. */
  #runs(name: string): void {
    for (const f of this.context.metadata.functionsNamed(name)) {
      if (f.keepsSettings) this.pin = SETTINGS_OF_FUNCTION;
      if (f.executes) this.executesText = true;
    }
  }

  /** An operator or type in the statement runs functions that it does not name. */
  #unseen(kind: 'operator' | 'type', names: readonly Node[] | undefined): void {
    const { metadata } = this.context;
    const name = nameOf(names);
    for (const f of metadata.unseen(kind, name)) {
      this.mayDraw = true;
      const refusal: Refusal = {
        sqlstate: '0A000',
        message: `${kind} ${name} runs function ${f}(), which may read or change anything, so it cannot be used while data is on several shards`,
        hint: 'Declare the function IMMUTABLE if it only computes from its arguments.',
      };
      this.blockFanOut(refusal.message, refusal.hint);
      if (!this.#atHomeWith((reach) => reach.function(f))) this.refusal ??= refusal;
      else {
        this.home = true;
        this.atHomeOnly ??= refusal;
      }
    }
  }

  /** Columns of a declared table whose types run functions that may look beyond their shard. */
  #checkTypes(relation: Relation): void {
    const { metadata, registry } = this.context;
    if (metadata.unseenFunctions.size === 0) return;
    for (const f of [...relation.calls, ...relation.fires])
      if (metadata.unseenFunctions.has(f) && reachOf(metadata, registry).function(f))
        this.refuse(
          `"${relation.table}" has a column whose type runs function ${f}(), which may read or change anything, so it cannot be used while data is on several shards`,
        );
  }

  /** Whether every table named anywhere in the statement was understood, and every operator and type. */
  checkComplete(statement: Node): void {
    const { unseenFunctions } = this.context.metadata;
    walk(statement, {
      ...(unseenFunctions.size === 0
        ? {}
        : {
            any: (key, value) => {
              const node = value as { name?: Node[]; operName?: Node[]; useOp?: Node[]; typeName?: { names?: Node[] } };
              if (key === 'A_Expr') this.#unseen('operator', node.name);
              else if (key === 'SubLink') this.#unseen('operator', node.operName);
              else if (key === 'SortBy') this.#unseen('operator', node.useOp);
              else if (key === 'TypeCast') this.#unseen('type', node.typeName?.names);
            },
          }),
      rangeVar: (table) => {
        if (!this.#seen.has(table))
          this.refuse(
            `this use of "${table.relname ?? ''}" is not understood well enough to be exact on several shards`,
          );
      },
    });
  }

  /** The keys to which each occurrence is pinned (null when not), and whether all columns of composite keys have values. */
  keysOf(): (readonly KeySource[] | null)[] {
    const known = this.pins.solve();
    return this.occurrences.map((o) => {
      if (o.rows) return o.rows;
      let keys: KeyColumnSource[][] = [[]];
      for (const v of o.variables) {
        const sources = known.get(v);
        if (!sources || keys.length * sources.length > MAX_KEYS) return null;
        keys = keys.flatMap((key) => sources.map((s) => [...key, s]));
      }
      return keys;
    });
  }

  keyspaces(): KeyspaceName[] {
    return [...new Set(this.occurrences.map((o) => o.table.keyspace))];
  }
}

/** The sequence that nextval or setval is given as a constant; null: it is another expression. */
function sequenceNamed({ args }: FuncCall): { schema: string | null; table: string } | null {
  let node = args?.[0];
  while (node && 'TypeCast' in node) node = node.TypeCast.arg;
  const text = node && 'A_Const' in node ? node.A_Const.sval?.sval : undefined;
  if (text === undefined) return null;
  try {
    const { schema, table } = parseTableName(text);
    return { schema: NAMED_SCHEMA.test(text) ? schema : null, table };
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return null;
  }
}

/** A name in two parts. */
const NAMED_SCHEMA = /^\s*("(?:[^"]|"")+"|[^".]+)\s*\./;

/** The last part of a name. */
function nameOf(names: readonly Node[] | undefined): string {
  const last = names?.at(-1);
  return last !== undefined && 'String' in last ? (last.String.sval ?? '') : '';
}

export const PIN_HINT = 'Give the sharding key (key = value) in the WHERE clause, so that one shard can answer.';
