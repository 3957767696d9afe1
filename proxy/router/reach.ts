import { type KeyspaceName, type TableName, tableId } from '../../topology/topology.js';
import { classifyBuiltin, isKnownNative } from './functions.js';
import type { Metadata, Relation, UserFunction } from './metadata.js';
import type { Registry } from './registry.js';

/** Events of triggers: as `tgtype` of pg_trigger has them. */
const INSERT = 4;
export const DELETE = 8;
export const UPDATE = 16;
const TRUNCATE = 32;
const ANY = INSERT | DELETE | UPDATE | TRUNCATE;

/**
 * What a statement does with a relation: to change it runs its triggers and follows its foreign keys, too. `upsert`: INSERT … ON CONFLICT DO UPDATE; `change`:
 * whatever there is.
 */
export type Use = 'read' | 'insert' | 'update' | 'upsert' | 'delete' | 'change';

const EVENTS: Readonly<Record<Use, number>> = {
  read: 0,
  insert: INSERT,
  update: UPDATE,
  upsert: INSERT | UPDATE,
  delete: DELETE,
  change: ANY,
};

function firedAt(relation: Relation, events: number): readonly string[] {
  if (events === 0) return [];
  const { fires, firesAt } = relation;
  const all = withMoves(relation, events);
  return firesAt === undefined ? fires : fires.filter((f) => ((firesAt.get(f) ?? ANY) & all) !== 0);
}

/** An update may take a row to another partition: there it is inserted, and deleted where it was. */
function withMoves({ kind }: Relation, events: number): number {
  return kind === 'p' && (events & UPDATE) !== 0 ? events | INSERT | DELETE : events;
}

/**
 * Words in the body of a function that make it one whose doings nobody can foresee: statements made of text, changes of what
 * there is, numbers of the connection's own, settings on which the meaning of names depends.
 */
const UNFORESEEN: ReadonlySet<string> = new Set(
  `execute prepare create alter drop grant revoke cascade copy import security reassign refresh reindex load discard call
  commit rollback currval lastval search_path set_config reset dblink pg_temp`.split(/\s+/),
);

/**
 * Those that count in what is declared IMMUTABLE, too: PostgreSQL refuses all commands there that are not read-only (CommandIsReadOnly in
 * utility.c), so that the others are names or literals.
 */
const UNFORESEEN_IN_QUERIES: ReadonlySet<string> = new Set(
  'execute currval lastval search_path set_config dblink pg_temp'.split(' '),
);

/** Without these words a query uses no relation; `%ROWTYPE` and `%TYPE` need one, too. */
const READS_RELATIONS = /\b(from|table|rowtype|type|nextval|setval)\b/;

/** SET as a statement: how a session's settings are would not be known any more. */
const SETS = /(^|;|\$|'|\b(begin|then|else|loop|atomic)\b)\s*set\b/i;

/** Something that is used while a statement runs. */
interface Happening {
  readonly name: TableName;
  readonly relation: Relation | null;
  /** As `tgtype` of pg_trigger has them. */
  readonly events: number;
}

const reaches = new WeakMap<Metadata, WeakMap<Registry, Reach>>();

/** What follows from one state of the schema for one set of declared tables. */
export function reachOf(metadata: Metadata, registry: Registry): Reach {
  let byRegistry = reaches.get(metadata);
  if (!byRegistry) {
    byRegistry = new WeakMap();
    reaches.set(metadata, byRegistry);
  }
  let reach = byRegistry.get(registry);
  if (!reach) {
    reach = new Reach(metadata, registry);
    byRegistry.set(registry, reach);
  }
  return reach;
}

const homes = new WeakMap<Metadata, WeakMap<Registry, Reach>>();

/**
 * For what tables of a keyspace run on their shard: whether it may reach tables of no keyspace, which are on the home shard. Their foreign
 * keys are none of it: moves ask for them.
 */
export function reachHome(metadata: Metadata, registry: Registry): Reach {
  let byRegistry = homes.get(metadata);
  if (!byRegistry) {
    byRegistry = new WeakMap();
    homes.set(metadata, byRegistry);
  }
  let reach = byRegistry.get(registry);
  if (!reach) {
    reach = new Reach(metadata, registry, (table) => isHomes(table, metadata, registry));
    byRegistry.set(registry, reach);
  }
  return reach;
}

const halves = new WeakMap<Metadata, WeakMap<Registry, Reach>>();

/**
 * For what tables of a keyspace run on their shard: whether it may reach tables whose columns are split, other than the one it starts from. That their
 * foreign keys are checked is nothing, which need no hot columns.
 */
export function reachSplit(metadata: Metadata, registry: Registry): Reach {
  let byRegistry = halves.get(metadata);
  if (!byRegistry) {
    byRegistry = new WeakMap();
    halves.set(metadata, byRegistry);
  }
  let reach = byRegistry.get(registry);
  if (!reach) {
    reach = new Reach(metadata, registry, (table) => registry.sharded(table)?.split !== undefined, true);
    byRegistry.set(registry, reach);
  }
  return reach;
}

function isHomes(table: TableName, metadata: Metadata, registry: Registry): boolean {
  const relation = metadata.relations.get(tableId(table));
  const declared = (t: TableName) => registry.sharded(t) !== null || registry.reference(t) !== null;
  return (
    relation !== undefined &&
    'rpmf'.includes(relation.kind) &&
    !/^(pg_|information_schema$|foreshard)/.test(relation.schema) &&
    ![relation, ...relation.parents].some(declared)
  );
}

/**
 * Whether something of the home shard's own may reach sharded or reference tables behind the statement's back: through
 * views, rules, triggers, foreign keys, policies and the bodies of functions. Errs towards yes: a body counts as soon as
 * it has a word that is a declared table's name anywhere, be it in a comment.
 */
export class Reach {
  readonly #metadata: Metadata;
  readonly #registry: Registry;
  readonly #functions = new Map<string, boolean>();
  readonly #relations = new Map<string, boolean>();
  readonly #isHomes: ((table: TableName) => boolean) | null;
  readonly #behindOnly: boolean;
  #byName: Map<string, Relation[]> | null = null;

  /**
   * @param isHomes instead of declared tables these are looked for, and foreign keys from and to them are nothing
   * @param behindOnly but what foreign keys do is something, and the table that it starts from is not
   */
  constructor(
    metadata: Metadata,
    registry: Registry,
    isHomes: ((table: TableName) => boolean) | null = null,
    behindOnly = false,
  ) {
    this.#behindOnly = behindOnly;
    this.#metadata = metadata;
    this.#registry = registry;
    this.#isHomes = isHomes;
  }

  declared(table: TableName): boolean {
    if (this.#isHomes !== null) return this.#isHomes(table);
    return this.#registry.sharded(table) !== null || this.#registry.reference(table) !== null;
  }

  /** Whether using the relation so may reach declared tables, or do what nobody can foresee. */
  relation(start: Relation, use: Use): boolean {
    const id = `${use} ${tableId(start)}`;
    const known = this.#relations.get(id);
    if (known !== undefined) return known;
    // Innocent until found otherwise: views, rules and functions may lead to one another in a circle.
    this.#relations.set(id, false);
    if (!this.#search(start, use)) return false;
    this.#forgetInnocence();
    this.#relations.set(id, true);
    return true;
  }

  #search(start: Relation, use: Use): boolean {
    for (const { name, relation: r, events } of this.#happenings(start, use)) {
      if (this.declared(name) && !(this.#behindOnly && r === start)) return true;
      if (r === null) continue;
      if (r.kind === 'f' || r.parents.some((p) => this.declared(p))) return true;
      if (r.calls.some((f) => this.function(f)) || firedAt(r, events).some((f) => this.function(f))) return true;
      if (events !== 0 && this.#isHomes === null && r.checks.some((t) => this.declared(t))) return true;
    }
    return false;
  }

  /** Functions that using the relation so runs, or may run behind it: of views, rules and policies, triggers for what happens, defaults, constraints and indexes. */
  functionsRun(start: Relation, use: Use): ReadonlySet<string> {
    const functions = new Set<string>();
    for (const { relation, events } of this.#happenings(start, use))
      if (relation !== null) for (const f of [...relation.calls, ...firedAt(relation, events)]) functions.add(f);
    return functions;
  }

  /** The same by relation: `calls` of its views, rules and policies, and what it `fires`. */
  *runs(
    start: Relation,
    use: Use,
  ): Iterable<{ readonly relation: Relation; readonly calls: readonly string[]; readonly fires: readonly string[] }> {
    for (const { relation, events } of this.#happenings(start, use))
      if (relation !== null) yield { relation, calls: relation.calls, fires: firedAt(relation, events) };
  }

  /** Where rows may be made behind views and rules when the relation is used so: by their defaults, whatever columns the statement names. */
  rowsMade(start: Relation, use: Use): ReadonlySet<Relation> {
    const made = new Set<Relation>();
    const queue = use === 'read' ? [] : [start];
    for (const r of queue) {
      const through = r.kind === 'v' && (made.has(r) || (use !== 'update' && use !== 'delete'));
      if (!through && r.ruled !== true) continue;
      for (const next of r.reads) {
        const found = this.#metadata.relations.get(tableId(next));
        if (found === undefined || made.has(found)) continue;
        made.add(found);
        queue.push(found);
      }
    }
    return made;
  }

  /** All that is used behind the relation's back, and what happens to each, as events of triggers; again, as soon as more may. `relation`: null when it is not known. */
  *#happenings(start: Relation, use: Use): Iterable<Happening> {
    const happens = new Map<Relation, number>([[start, EVENTS[use]]]);
    for (const queue = [start]; queue.length > 0; ) {
      const r = queue.shift() as Relation;
      const events = happens.get(r) as number;
      yield { name: r, relation: r, events };
      for (const [next, then] of this.#behind(r, events)) {
        const found = this.#metadata.relations.get(tableId(next));
        if (found === undefined) {
          yield { name: next, relation: null, events: then };
          continue;
        }
        const before = happens.get(found);
        if (before !== undefined && (before | then) === before) continue;
        happens.set(found, (before ?? 0) | then);
        queue.push(found);
      }
    }
  }

  /** What else is used, and for what, when this happens to the relation. */
  *#behind(r: Relation, events: number): Iterable<readonly [TableName, number]> {
    for (const next of r.reads) {
      const below = this.#metadata.relations.get(tableId(next));
      const isPart = below?.parents.some((p) => p.table === r.table && p.schema === r.schema) === true;
      // A rule, or a view, may do anything with what it names.
      yield [next, events === 0 ? 0 : isPart ? withMoves(r, events) : ANY];
    }
    if (this.#behindOnly) {
      if (events & DELETE) for (const next of r.deletes) yield [next, DELETE | UPDATE];
      if (events & UPDATE) for (const next of r.updates) yield [next, UPDATE];
      return;
    }
    // Rows that refer to a new one are not touched; those that refer to one that goes, go too, or are changed.
    let then = 0;
    if (events & DELETE) then |= DELETE | UPDATE;
    if (events & UPDATE) then |= UPDATE;
    if (events & TRUNCATE) then |= TRUNCATE;
    if (then !== 0) for (const next of r.writes) if (this.#isHomes?.(next) !== true) yield [next, then];
  }

  /** Whether dropping the relation with CASCADE may take something of a declared table with it, or a function. */
  cascade(start: Relation): boolean {
    const seen = new Map<string, Relation>([[tableId(start), start]]);
    const words = new Set<string>();
    for (const r of seen.values()) {
      if (this.declared(r)) return true;
      words.add(r.table.toLowerCase());
      for (const other of this.#metadata.relations.values())
        for (const to of [...other.reads, ...other.checks, ...other.parents])
          if (to.table === r.table && to.schema === r.schema) seen.set(tableId(other), other);
    }
    // A function whose arguments or body have the table's row type would go on this shard only.
    return this.#metadata.namedInFunctions(words);
  }

  /** Whether some function of this name that is not PostgreSQL's own may; one of PostgreSQL's when it may do anything. */
  function(name: string): boolean {
    const known = this.#functions.get(name);
    if (known !== undefined) return known;
    this.#functions.set(name, false);
    const user = this.#metadata.functionsNamed(name);
    const builtin = this.#metadata.builtin(name);
    const bad =
      (user.length === 0 && builtin === null) ||
      user.some((f) => this.#unsafe(name, f)) ||
      (builtin !== null && classifyBuiltin(name, this.#metadata).kind === 'unknown' && !TRIGGER_FUNCTIONS.has(name));
    if (!bad) return false;
    this.#forgetInnocence();
    this.#functions.set(name, true);
    return true;
  }

  /** What was found innocent may have leant on what is not. (Whatever is being judged right now leads to it, and will be found so.) */
  #forgetInnocence(): void {
    for (const map of [this.#functions, this.#relations]) for (const [key, found] of map) if (!found) map.delete(key);
  }

  #unsafe(name: string, f: UserFunction): boolean {
    // What is declared IMMUTABLE reads tables all the same, at times. It is believed where it cannot be read.
    if (f.immutable) return f.body !== '' && this.body(f.body, true);
    return !isKnownNative(name, f) && (f.opaque || this.body(f.body));
  }

  /**
   * Whether a body in SQL or PL/pgSQL may reach declared tables, or do what nobody can foresee.
   * @param readOnly it can only be a query or compute: it is declared IMMUTABLE
   */
  body(text: string, readOnly = false): boolean {
    const lower = text.toLowerCase();
    // Names written with escapes, and those that are no words, are looked for as they are.
    if (/u&["']/.test(lower)) return true;
    const bare = lower.replace(/--[^\n]*/g, ' ').replace(/\/\*[\s\S]*?\*\//g, ' ');
    if (!readOnly && (SETS.test(lower) || SETS.test(bare))) return true;
    for (const op of this.#metadata.volatileOperators) if (lower.includes(op)) return true;
    const words = new Set(lower.match(WORD) ?? []);
    const unforeseen = readOnly ? UNFORESEEN_IN_QUERIES : UNFORESEEN;
    for (const word of words) if (unforeseen.has(word)) return true;
    if (!readOnly || READS_RELATIONS.test(lower)) {
      if (this.#isHomes === null)
        for (const name of this.#registry.names) if (mentions(lower, words, name)) return true;
      for (const [name, all] of this.#named())
        if (
          mentions(lower, words, name) &&
          all.some((r) => (this.#behindOnly && this.declared(r)) || this.relation(r, readOnly ? 'read' : 'change'))
        )
          return true;
    }
    for (const name of this.#metadata.functionNames)
      if (mentions(lower, words, name) && this.function(name)) return true;
    for (const word of words)
      if (this.#metadata.builtin(word) !== null && classifyBuiltin(word, this.#metadata).kind === 'unknown')
        return true;
    return false;
  }

  /** The relations of user's schemas, by name. */
  #named(): Map<string, Relation[]> {
    if (this.#byName) return this.#byName;
    const byName = new Map<string, Relation[]>();
    for (const r of this.#metadata.relations.values()) {
      if (r.schema === 'pg_catalog' || r.schema === 'information_schema' || r.kind === 'i' || r.kind === 'I') continue;
      byName.set(r.table, [...(byName.get(r.table) ?? []), r]);
    }
    this.#byName = byName;
    return byName;
  }
}

/** They only look at the row they are called for. */
export const TRIGGER_FUNCTIONS: ReadonlySet<string> = new Set([
  'suppress_redundant_updates_trigger',
  'tsvector_update_trigger',
  'tsvector_update_trigger_column',
]);

/**
 * Keyspaces without a key whose tables something may reach behind a statement's back: it is exact where these are on the home shard. Empty: it
 * reaches nothing that is declared; null: it may reach other declared tables.
 * @param reaches whether it may reach anything declared
 */
export function wholeReached(
  metadata: Metadata,
  registry: Registry,
  reaches: (reach: Reach) => boolean,
): readonly KeyspaceName[] | null {
  if (!reaches(reachOf(metadata, registry))) return [];
  const { keyless } = registry;
  if (keyless.length === 0 || reaches(reachOf(metadata, registry.without(keyless)))) return null;
  return keyless.filter((name) =>
    reaches(reachOf(metadata, registry.without(keyless.filter((other) => other !== name)))),
  );
}

const WORD = /[\p{L}\p{N}_]+/gu;

function mentions(lower: string, words: ReadonlySet<string>, name: string): boolean {
  const n = name.toLowerCase();
  return /^[\p{L}\p{N}_]+$/u.test(n) ? words.has(n) : lower.includes(n.replaceAll('"', '""')) || lower.includes(n);
}
