import type { HalveSpec } from '../topology/migration.js';
import type { TableInfo } from './schema-read.js';

/**
 * The hot table of a table whose columns are split, as `createTableSql` makes it: primary key and hot columns as the table has them, the checks that
 * are about these alone, owner and privileges. Nobody inserts a row of it without all values: the key needs no defaults.
 */
export function hotTableInfo(table: TableInfo, { hot, columns }: Pick<HalveSpec, 'hot' | 'columns'>): TableInfo {
  const key = primaryKeyOf(table);
  const kept = new Set([...key, ...columns]);
  return {
    ...table,
    ...hot,
    oid: '0',
    rowSecurity: { enabled: false, forced: false, policies: [], roles: [], reads: [] },
    replicaIdentity: 'd',
    options: null,
    comment: null,
    columns: table.columns
      .filter((c) => kept.has(c.name))
      .map((c) => (key.includes(c.name) ? { ...c, default: null, identity: '', generated: '' } : c)),
    constraints: table.constraints.flatMap((c) => {
      if (c.type === 'p')
        return [
          {
            ...c,
            name: `${hot.table}_pkey`,
            definition: c.definition.replace(/ INCLUDE .*$/, ''),
            replicaIdentity: false,
          },
        ];
      return c.type === 'c' && c.columns.length > 0 && c.columns.every((name) => kept.has(name)) ? [c] : [];
    }),
    indexes: [],
    sequences: [],
    triggers: [],
    clones: [],
    foreignKeysSwitched: false,
    rules: [],
    grants: table.grants.filter((g) => g.column === null),
  };
}

/** In the order of the key; empty: it has none. */
export function primaryKeyOf(table: TableInfo): readonly string[] {
  return table.constraints.find((c) => c.type === 'p')?.columns ?? [];
}
