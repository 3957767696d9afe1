import type { FuncCall, Node, RangeVar } from 'libpg-query';
import type { KeyspaceName } from '../../topology/topology.js';
import type { Context } from './analysis.js';
import { qualifiedName, strings } from './ast.js';
import { classifyFunction } from './functions.js';
import type { Relation } from './metadata.js';
import { type Reach, TRIGGER_FUNCTIONS, wholeReached } from './reach.js';

/** What makes a statement about the home shard's own objects one for the home shard, or why it is none. */
export class HomeObjects {
  readonly #context: Context;
  /** Keyspaces without a key of what it names, or may reach: these must be at home, too. */
  readonly whole = new Set<KeyspaceName>();
  /** Of what the statement names, the first that is not the home shard's alone; null: all is. */
  problem: string | null = null;

  constructor(context: Context) {
    this.#context = context;
  }

  /** The relation under a name, as far as it is known. */
  find(schema: string | null, name: string): Relation | null {
    const { metadata, registry, searchPath } = this.#context;
    return metadata.resolveRelation(
      schema,
      name,
      searchPath,
      (t) => registry.sharded(t) !== null || registry.reference(t) !== null,
    );
  }

  /** A table, view, sequence or index that is there, or is not known (made a moment ago, temporary, or not there at all). */
  existing(table: RangeVar, use: 'read' | 'change' = 'change'): void {
    this.existingName(table.schemaname || null, table.relname ?? '', use);
  }

  existingName(schema: string | null, name: string, use: 'read' | 'change' = 'change'): void {
    const relation = this.find(schema, name);
    if (relation === null) return;
    if (this.#reaches((reach) => reach.relation(relation, use))) this.#is(`"${name}"`);
  }

  /** A relation's name that comes into being: where it is looked up, it must not hide a declared table's. */
  newName(name: string): void {
    if (this.#context.registry.names.has(name)) this.#is(`another relation named "${name}"`);
  }

  /** DROP … CASCADE, or of a column. */
  cascade(schema: string | null, name: string): void {
    const relation = this.find(schema, name);
    if (relation !== null && this.#reaches((reach) => reach.cascade(relation))) this.#is(`CASCADE from "${name}"`);
  }

  /** Every table and function in the tree, wherever it stands. */
  everything(tree: unknown): void {
    if (Array.isArray(tree)) {
      for (const item of tree) this.everything(item);
      return;
    }
    if (typeof tree !== 'object' || tree === null) return;
    if ('relname' in tree && typeof tree.relname === 'string') {
      this.existing(tree as RangeVar);
      return;
    }
    for (const [key, value] of Object.entries(tree)) {
      if (key === 'FuncCall') this.#call(value as FuncCall);
      // A copied definition has nothing of its table's rows.
      if (key !== 'TableLikeClause') this.everything(value);
    }
  }

  #call(call: FuncCall): void {
    const { schema, name } = qualifiedName(call.funcname);
    const { searchPath, metadata } = this.#context;
    const { kind } = classifyFunction(schema, name, searchPath, metadata);
    if (kind === 'unknown') this.function(schema, name);
    // Sequences and advisory locks belong to the connection when they are used now; in a definition they do not.
  }

  /** A function that will run at home, now or later. */
  function(schema: string | null, name: string): void {
    if (schema === 'pg_catalog' || this.#context.metadata.functionsNamed(name).length === 0) {
      if (!TRIGGER_FUNCTIONS.has(name)) this.#is(`function ${name}()`);
    } else if (this.#reaches((reach) => reach.function(name))) this.#is(`function ${name}()`);
  }

  /** Functions of event triggers run with every DDL. */
  eventTriggers(): void {
    for (const name of this.#context.metadata.eventTriggers)
      if (this.#reaches((reach) => reach.function(name))) this.#is(`an event trigger with function ${name}()`);
  }

  /** Whether something may reach declared tables that are not whole on one shard; of those that are, takes note. */
  #reaches(reaches: (reach: Reach) => boolean): boolean {
    const { metadata, registry } = this.#context;
    const whole = wholeReached(metadata, registry, reaches);
    for (const name of whole ?? []) this.whole.add(name);
    return whole === null;
  }

  #is(what: string): void {
    this.problem ??= what;
  }
}

/** schema and name from a List of Strings; `drop`: names behind it (a column's, a trigger's). */
export function nameOf(node: Node | undefined, drop = 0): { schema: string | null; name: string } | null {
  const items = node && 'List' in node ? strings(node.List.items) : [];
  const parts = drop === 0 ? items : items.slice(0, -drop);
  const name = parts.at(-1);
  if (name === undefined) return null;
  return { schema: parts.at(-2) ?? null, name };
}
