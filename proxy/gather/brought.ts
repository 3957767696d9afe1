import { quoteIdent, quoteTable } from '../../topology/quote.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import { halvesFetches, isHalved } from '../router/gather-halves.js';
import { fetches, type GatheredTable } from '../router/gather-program.js';

/** What comes to a table of the workspace. */
export interface Brought {
  /** The table's there. */
  readonly name: string;
  /** What gives its rows, by shard. */
  readonly texts: ReadonlyMap<ShardName, string>;
  readonly primaryKey: readonly string[] | null;
}

/** With what has its columns, by name and type. */
export interface Formed extends Brought {
  readonly form: string;
  readonly columns: number;
}

/** A gathered table as the workspace has it. */
export interface Planned {
  readonly table: GatheredTable;
  /** What has its columns, by name and type. */
  readonly form: string;
  /** It itself; or both halves of its rows, which are tables of their own there for a while. */
  readonly parts: readonly [whole: Formed] | readonly [base: Formed, hot: Formed];
}

/** What is to be brought for these tables. @param shards those that the query goes to */
export function plannedOf(
  tables: readonly GatheredTable[],
  topology: Topology,
  shards: readonly ShardName[],
): readonly Planned[] {
  const names = new Set(tables.map(({ table }) => table));
  /** No other table of the workspace has it. */
  const free = (name: string): string => {
    if (names.has(name)) return free(`${name}_`);
    names.add(name);
    return name;
  };
  return tables.map((table) => {
    // The hot table may not be at home; its columns are the table's own.
    const formOf = (columns: readonly string[]) =>
      `SELECT ${columns.map(quoteIdent).join(', ')} FROM ${quoteTable(table)}`;
    const form = formOf(table.columns);
    if (!isHalved(table)) {
      const { table: name, primaryKey, columns } = table;
      const texts = fetches(table, topology);
      return { table, form, parts: [{ name, texts, primaryKey, form, columns: columns.length }] };
    }
    const { base, hot } = halvesFetches(table, topology, shards);
    const part = (name: string, { columns, texts }: typeof base): Formed => ({
      name: free(name),
      texts,
      primaryKey: null,
      form: formOf(columns),
      columns: columns.length,
    });
    return { table, form, parts: [part('foreshard_base', base), part('foreshard_hot', hot)] };
  });
}

/** Rows of several tables, and values besides, that a shard gives by one statement: they are of one moment. */
export interface Stage {
  readonly of: readonly Formed[];
  /** Queries of one value each, text. */
  readonly asked: readonly string[];
}

/** What has the columns of a stage. */
export function stageForm({ of, asked }: Stage): string {
  return sideBySide([...of.map(({ form }) => form), ...asked.map(() => 'SELECT CAST(NULL AS pg_catalog.text)')], of);
}

/** What gives its rows on a shard. */
export function stageText({ of, asked }: Stage, shard: ShardName): string {
  return sideBySide([...of.map(({ texts }) => texts.get(shard) as string), ...asked], of);
}

/** From a table with the stage's rows: those of its n-th table, or the n-th value when the tables have been counted. */
export function fromStage({ of }: Stage, n: number, stage: string): string {
  return `SELECT ${columnNames(n, of[n]?.columns ?? 1)} FROM ${stage} WHERE is${n}`;
}

/** What several statements give, as one: the rows of the n-th have true in `isn`, and are in the columns of its `columnNames`. */
function sideBySide(texts: readonly string[], of: Stage['of']): string {
  const [first, ...others] = texts.map(
    (text, i) => `(SELECT true, q.* FROM (${text}) q) s${i} (is${i}, ${columnNames(i, of[i]?.columns ?? 1)})`,
  );
  return `SELECT * FROM ${first}${others.map((other) => ` FULL JOIN ${other} ON false`).join('')}`;
}

function columnNames(n: number, columns: number): string {
  return Array.from({ length: columns }, (_, i) => `c${n}_${i}`).join(', ');
}
