import type { Node, RangeVar } from 'libpg-query';
import { type ShardedTable, type TableName, tableId } from '../../topology/topology.js';
import type { Context } from './analysis.js';
import { strings } from './ast.js';
import { nameOf } from './home-objects.js';
import type { Refusal } from './route.js';

/** Objects of a table that are named after it: table, name. */
const PARTS: ReadonlySet<string> = new Set(['OBJECT_TRIGGER', 'OBJECT_RULE', 'OBJECT_POLICY']);

/** How a table is stored and looked at by the planner, which each half may have as it likes. */
const STORAGE: ReadonlySet<string> = new Set(['AT_SetRelOptions', 'AT_ResetRelOptions', 'AT_SetStatistics']);

/**
 * Why a statement must not change a table whose columns are split, or the table that has them: the two have to be alike, on all shards, and nobody would
 * do the same to the other. Null: it changes neither, or nothing that both have (indexes that are not unique, comments, maintenance).
 */
export function splitDdlRefusal(statement: Node, context: Context): Refusal | null {
  const { tables, schemas } = changed(statement);
  const { metadata, registry, searchPath } = context;
  const isSharded = (table: TableName) => registry.sharded(table) !== null;
  for (const { schemaname, relname } of tables) {
    const relation = metadata.resolveRelation(schemaname || null, relname ?? '', searchPath, isSharded);
    const table = relation && registry.sharded(relation);
    if (table && isHalf(table)) return refusalOf(table);
  }
  if (schemas.length > 0)
    for (const table of metadata.relations.values()) {
      const sharded = schemas.includes(table.schema) ? registry.sharded(table) : null;
      if (sharded && isHalf(sharded)) return refusalOf(sharded);
    }
  return null;
}

const isHalf = (table: ShardedTable) => table.split !== undefined || table.halfOf !== undefined;

function refusalOf(table: ShardedTable): Refusal {
  const whole = table.halfOf ?? table;
  return {
    sqlstate: '0A000',
    message: `cannot change table "${table.table}" while columns of "${whole.table}" are in a table of their own`,
    hint: `Unite the columns first: foreshard migrate plan unite ${tableId(whole)}`,
  };
}

interface Changed {
  readonly tables: readonly Pick<RangeVar, 'schemaname' | 'relname'>[];
  /** All tables in these. */
  readonly schemas: readonly string[];
}

function changed(statement: Node): Changed {
  const of = (...relations: (RangeVar | undefined)[]): Changed => ({
    tables: relations.filter((r) => r !== undefined),
    schemas: [],
  });
  if ('AlterTableStmt' in statement) {
    const { relation, cmds } = statement.AlterTableStmt;
    const isStorage = (cmd: Node) => 'AlterTableCmd' in cmd && STORAGE.has(cmd.AlterTableCmd.subtype ?? '');
    return (cmds ?? []).every(isStorage) ? of() : of(relation);
  }
  if ('RenameStmt' in statement) return of(statement.RenameStmt.relation);
  if ('AlterObjectSchemaStmt' in statement) return of(statement.AlterObjectSchemaStmt.relation);
  if ('CreateTrigStmt' in statement) return of(statement.CreateTrigStmt.relation);
  if ('CreatePolicyStmt' in statement) return of(statement.CreatePolicyStmt.table);
  if ('AlterPolicyStmt' in statement) return of(statement.AlterPolicyStmt.table);
  if ('RuleStmt' in statement) return of(statement.RuleStmt.relation);
  if ('IndexStmt' in statement) return statement.IndexStmt.unique ? of(statement.IndexStmt.relation) : of();
  if ('CreateStmt' in statement) return of(...ranges(statement.CreateStmt.inhRelations));
  if ('DropStmt' in statement) {
    const { removeType, objects } = statement.DropStmt;
    if (removeType === 'OBJECT_SCHEMA') return { tables: [], schemas: strings(objects) };
    const isPart = PARTS.has(removeType ?? '');
    if (!isPart && removeType !== 'OBJECT_TABLE') return of();
    const names = (objects ?? []).map((object) => nameOf(object, isPart ? 1 : 0)).filter((n) => n !== null);
    return { tables: names.map((n) => ({ schemaname: n.schema ?? '', relname: n.name })), schemas: [] };
  }
  if ('GrantStmt' in statement) {
    const { targtype, objtype, objects } = statement.GrantStmt;
    if (objtype !== 'OBJECT_TABLE') return of();
    if (targtype === 'ACL_TARGET_ALL_IN_SCHEMA') return { tables: [], schemas: strings(objects) };
    return targtype === 'ACL_TARGET_OBJECT' ? of(...ranges(objects)) : of();
  }
  return of();
}

function ranges(nodes: readonly Node[] | undefined): RangeVar[] {
  return (nodes ?? []).flatMap((n) => ('RangeVar' in n ? [n.RangeVar] : []));
}
