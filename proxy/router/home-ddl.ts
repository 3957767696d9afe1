import type { Node, RangeVar } from 'libpg-query';
import type { Context } from './analysis.js';
import { strings } from './ast.js';
import { HomeObjects, nameOf } from './home-objects.js';

/** Kinds of objects that are relations, by ObjectType. */
const RELATIONS: ReadonlySet<string> = new Set([
  'OBJECT_TABLE',
  'OBJECT_VIEW',
  'OBJECT_MATVIEW',
  'OBJECT_SEQUENCE',
  'OBJECT_INDEX',
]);

/** Kinds that belong to a relation and are named after it: table, name. */
const PARTS: ReadonlySet<string> = new Set([
  'OBJECT_COLUMN',
  'OBJECT_TRIGGER',
  'OBJECT_RULE',
  'OBJECT_POLICY',
  'OBJECT_TABCONSTRAINT',
]);

/**
 * DDL, privileges and maintenance of relations that only the home shard has. The answer: what it is about, with what in it is not the home
 * shard's alone; null if the statement is of another kind, about which the same cannot be said: it is for all shards, or names nothing.
 */
export function homeObjectsOf(statement: Node, context: Context): HomeObjects | null {
  const objects = new HomeObjects(context);
  return look(statement, objects) ? objects : null;
}

function look(statement: Node, o: HomeObjects): boolean {
  if ('CreateStmt' in statement) {
    const { relation, ...rest } = statement.CreateStmt;
    if (rest.ofTypename) return false;
    return create(o, relation, rest);
  }
  if ('IndexStmt' in statement) {
    if (statement.IndexStmt.idxname) o.newName(statement.IndexStmt.idxname);
    return ddl(o, statement);
  }
  if ('ViewStmt' in statement) {
    const { view, ...rest } = statement.ViewStmt;
    return create(o, view, rest);
  }
  if ('CreateSeqStmt' in statement) {
    const { sequence, options } = statement.CreateSeqStmt;
    ownedBy(options, o);
    return create(o, sequence, options);
  }
  if ('AlterSeqStmt' in statement) {
    ownedBy(statement.AlterSeqStmt.options, o);
    return ddl(o, statement.AlterSeqStmt.sequence);
  }
  if ('CreateTrigStmt' in statement) {
    const names = strings(statement.CreateTrigStmt.funcname);
    o.function(names.at(-2) ?? null, names.at(-1) ?? '');
    return ddl(o, statement);
  }
  if (
    'RefreshMatViewStmt' in statement ||
    'RuleStmt' in statement ||
    'CreateStatsStmt' in statement ||
    'CreatePolicyStmt' in statement ||
    'AlterPolicyStmt' in statement
  )
    return ddl(o, statement);
  if ('AlterTableStmt' in statement) {
    const { relation, cmds, objtype } = statement.AlterTableStmt;
    if (!RELATIONS.has(objtype ?? '')) return false;
    for (const cmd of cmds ?? []) {
      if (!('AlterTableCmd' in cmd)) return false;
      if (cmd.AlterTableCmd.behavior === 'DROP_CASCADE') cascade(relation, o);
    }
    return ddl(o, [{ RangeVar: relation }, cmds]);
  }
  if ('RenameStmt' in statement) {
    const { relation, renameType, relationType, newname, behavior } = statement.RenameStmt;
    const whole = RELATIONS.has(renameType ?? '');
    if (!relation || (!whole && !PARTS.has(renameType ?? ''))) return false;
    if (renameType === 'OBJECT_COLUMN' && !RELATIONS.has(relationType ?? '')) return false;
    if (whole) o.newName(newname ?? '');
    if (behavior === 'DROP_CASCADE') cascade(relation, o);
    return ddl(o, { RangeVar: relation });
  }
  if ('AlterObjectSchemaStmt' in statement) {
    const { relation, objectType } = statement.AlterObjectSchemaStmt;
    if (!relation || !RELATIONS.has(objectType ?? '')) return false;
    o.newName(relation.relname ?? '');
    return ddl(o, { RangeVar: relation });
  }
  if ('DropStmt' in statement) {
    const { removeType, objects, behavior } = statement.DropStmt;
    const part = PARTS.has(removeType ?? '');
    if (!part && !RELATIONS.has(removeType ?? '')) return false;
    for (const object of objects ?? []) {
      const named = nameOf(object, part ? 1 : 0);
      if (named === null) return false;
      o.existingName(named.schema, named.name);
      if (behavior === 'DROP_CASCADE') o.cascade(named.schema, named.name);
    }
    o.eventTriggers();
    return true;
  }
  if ('CommentStmt' in statement) {
    const { objtype, object } = statement.CommentStmt;
    const part = PARTS.has(objtype ?? '');
    if (!part && !RELATIONS.has(objtype ?? '')) return false;
    const named = nameOf(object, part ? 1 : 0);
    if (named === null) return false;
    o.existingName(named.schema, named.name);
    o.eventTriggers();
    return true;
  }
  if ('GrantStmt' in statement) {
    const { targtype, objtype, objects } = statement.GrantStmt;
    if (targtype !== 'ACL_TARGET_OBJECT' || !['OBJECT_TABLE', 'OBJECT_SEQUENCE'].includes(objtype ?? '')) return false;
    return (objects ?? []).length > 0 && ddl(o, objects);
  }
  if ('VacuumStmt' in statement) {
    const { rels } = statement.VacuumStmt;
    if (!rels?.length) return false;
    o.everything(rels);
    return true;
  }
  if ('ReindexStmt' in statement || 'ClusterStmt' in statement) {
    const relation = 'ReindexStmt' in statement ? statement.ReindexStmt.relation : statement.ClusterStmt.relation;
    if (!relation) return false;
    o.existing(relation);
    return true;
  }
  return false;
}

function create(o: HomeObjects, created: RangeVar | undefined, rest: unknown): boolean {
  if (!created) return false;
  o.newName(created.relname ?? '');
  return ddl(o, [{ RangeVar: created }, rest]);
}

function ddl(o: HomeObjects, tree: unknown): boolean {
  o.everything(tree);
  o.eventTriggers();
  return true;
}

function cascade(relation: RangeVar | undefined, o: HomeObjects): void {
  if (relation) o.cascade(relation.schemaname || null, relation.relname ?? '');
}

/** OWNED BY table.column. */
function ownedBy(options: readonly Node[] | undefined, o: HomeObjects): void {
  for (const option of options ?? []) {
    if (!('DefElem' in option) || option.DefElem.defname !== 'owned_by') continue;
    const table = nameOf(option.DefElem.arg, 1);
    if (table) o.existingName(table.schema, table.name);
  }
}
