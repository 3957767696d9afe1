import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import type { TableName } from '../topology/topology.js';
import { OURS } from './names.js';

/** `pg_trigger.tgenabled`: for which sessions a trigger fires. Of ORIGIN, of none (DISABLED), of REPLICA, of all (ALWAYS). */
export type TriggerMode = 'O' | 'D' | 'R' | 'A';

/** A trigger that is not one of ours, nor a foreign key's. */
export interface TriggerInfo {
  readonly name: string;
  /** The CREATE statement, all names with their schemas. */
  readonly definition: string;
  readonly enabled: TriggerMode;
  /** BEFORE each row of an INSERT or UPDATE: what is stored may be another row than the statement's. */
  readonly shapesRows: boolean;
  readonly comment: string | null;
}

/** A trigger that a partition has from its parent: of its own are only its mode and its comment. */
export interface ClonedTrigger {
  readonly name: string;
  readonly enabled: TriggerMode;
  readonly comment: string | null;
}

export interface PolicyInfo {
  readonly name: string;
  /** The CREATE statement, all names with their schemas. */
  readonly definition: string;
  readonly comment: string | null;
}

export interface RowSecurityInfo {
  readonly enabled: boolean;
  /** It holds for the table's owner, too. */
  readonly forced: boolean;
  readonly policies: readonly PolicyInfo[];
  /** Roles that policies are for. */
  readonly roles: readonly string[];
  /** What policies read besides the table itself. */
  readonly reads: readonly (TableName & { readonly isPartition: boolean })[];
}

/** Columns of a query over pg_class `t` and its pg_namespace `n`; the session's search_path must be pg_catalog. Of a partitioned table only what is its own, not its parts'. */
export const READ_TRIGGERS = `
  (SELECT coalesce(json_agg(json_build_object('name', g.tgname, 'definition', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled,
      'shapesRows', g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0, 'comment', obj_description(g.oid, 'pg_trigger')) ORDER BY g.tgname), '[]')
     FROM pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgname !~ '${OURS}') AS triggers,
  (SELECT coalesce(json_agg(json_build_object('name', g.tgname, 'enabled', g.tgenabled, 'comment', obj_description(g.oid, 'pg_trigger')) ORDER BY g.tgname), '[]')
     FROM pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgparentid <> 0 AND g.tgname !~ '${OURS}') AS clones,
  EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND g.tgisinternal AND g.tgenabled <> 'O') AS "foreignKeysSwitched",
  json_build_object('enabled', t.relrowsecurity, 'forced', t.relforcerowsecurity,
    'policies', (SELECT coalesce(json_agg(json_build_object('name', p.polname, 'comment', obj_description(p.oid, 'pg_policy'),
        'definition', format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s', p.polname, n.nspname, t.relname,
            CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
            CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
            (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ' ORDER BY pg_get_userbyid(r)) FROM unnest(p.polroles) r))
          || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
          || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')) ORDER BY p.polname), '[]')
       FROM pg_policy p WHERE p.polrelid = t.oid),
    'roles', (SELECT coalesce(json_agg(DISTINCT pg_get_userbyid(r)), '[]') FROM pg_policy p, unnest(p.polroles) r WHERE p.polrelid = t.oid AND r <> 0),
    'reads', (SELECT coalesce(json_agg(DISTINCT jsonb_build_object('schema', rn.nspname, 'table', rc.relname, 'isPartition', rc.relispartition)), '[]')
       FROM pg_policy p JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass
       JOIN pg_class rc ON rc.oid = d.refobjid JOIN pg_namespace rn ON rn.oid = rc.relnamespace
      WHERE p.polrelid = t.oid AND rc.oid <> t.oid AND rn.nspname <> 'pg_catalog')) AS "rowSecurity"`;

/** What is read of a table here. */
export interface Guarded extends TableName {
  readonly triggers: readonly TriggerInfo[];
  readonly clones: readonly ClonedTrigger[];
  readonly rowSecurity: RowSecurityInfo;
}

/** The same with its partitions, each behind its parent, if they have been read. */
export interface GuardedTree extends Guarded {
  readonly partitions?: readonly { readonly table: Guarded; readonly parent: TableName }[];
}

/** A table and its partitions, each behind its parent. */
export function relationsOf(tree: GuardedTree): Guarded[] {
  return [tree, ...(tree.partitions ?? []).map((p) => p.table)];
}

/** Triggers and policies, one line each, so that two tables can be compared. A partition has its parent's triggers, but for the modes in which it has them. */
export function behaviourOf({ triggers, clones, rowSecurity: { enabled, forced, policies } }: Guarded): string[] {
  return [
    ...triggers.map((t) => `${t.definition}${MODES[t.enabled]}`),
    ...clones.filter((t) => t.enabled !== 'O').map((t) => `trigger ${t.name} of its parent${MODES[t.enabled]}`),
    ...policies.map((p) => p.definition),
    ...(enabled ? ['row level security enabled'] : []),
    ...(forced ? ['row level security forced'] : []),
  ];
}

const MODES: Readonly<Record<TriggerMode, string>> = {
  O: '',
  D: ' (disabled)',
  R: ' (enabled for replicas)',
  A: ' (enabled always)',
};

const HOW: Readonly<Record<TriggerMode, string>> = {
  O: 'ENABLE',
  D: 'DISABLE',
  R: 'ENABLE REPLICA',
  A: 'ENABLE ALWAYS',
};

/** Of one relation alone: partitions have modes of their own. */
export function switchSql(table: TableName, name: string, mode: TriggerMode): string {
  return `ALTER TABLE ONLY ${quoteTable(table)} ${HOW[mode]} TRIGGER ${quoteIdent(name)}`;
}

/** As which a trigger does not fire for what is replicated, and fires for ordinary sessions as before. */
export function quietMode(mode: TriggerMode): TriggerMode {
  return mode === 'A' ? 'O' : mode === 'R' ? 'D' : mode;
}

/** Triggers and policies of a table, and of its partitions, that have just been made like these; the triggers quiet. */
export function behaviourSql(tree: GuardedTree): string[] {
  const relations = relationsOf(tree);
  // What is made on a parent is made on its partitions with it, firing for ordinary sessions.
  return [
    ...relations.flatMap((r) => r.triggers.map((t) => t.definition)),
    ...relations.flatMap((r) => modesSql(r, () => 'O')),
    ...relations.flatMap(ownSql),
  ];
}

/** The same of a partition that has just been made below a parent whose triggers are quiet. @param parent as it is meant to be */
export function partitionBehaviourSql(partition: Guarded, parent: Guarded): string[] {
  const above = new Map([...parent.triggers, ...parent.clones].map((t) => [t.name, quietMode(t.enabled)]));
  return [
    ...partition.triggers.map((t) => t.definition),
    ...modesSql(partition, (name) => above.get(name) ?? 'O'),
    ...ownSql(partition),
  ];
}

/** @param cloned the mode in which it has got a trigger from its parent */
function modesSql(table: Guarded, cloned: (name: string) => TriggerMode): string[] {
  const as = (name: string, now: TriggerMode, mode: TriggerMode) =>
    now === mode ? [] : [switchSql(table, name, mode)];
  return [
    ...table.triggers.flatMap((t) => as(t.name, 'O', quietMode(t.enabled))),
    ...table.clones.flatMap((t) => as(t.name, cloned(t.name), quietMode(t.enabled))),
  ];
}

/** Policies, and comments on all of it. */
function ownSql(table: Guarded): string[] {
  const name = quoteTable(table);
  const { enabled, forced, policies } = table.rowSecurity;
  const comments = (kind: string, items: readonly { readonly name: string; readonly comment: string | null }[]) =>
    items.flatMap(({ name: item, comment }) =>
      comment === null ? [] : [`COMMENT ON ${kind} ${quoteIdent(item)} ON ${name} IS ${quoteLiteral(comment)}`],
    );
  return [
    ...comments('TRIGGER', [...table.triggers, ...table.clones]),
    ...policies.map((p) => p.definition),
    ...comments('POLICY', policies),
    ...(enabled ? [`ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY`] : []),
    ...(forced ? [`ALTER TABLE ${name} FORCE ROW LEVEL SECURITY`] : []),
  ];
}
