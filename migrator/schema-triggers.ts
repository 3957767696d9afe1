import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import { type TableName, tableId } from '../topology/topology.js';
import { type CleanupRecord, type CleanupSpec, tableOf } from './migration-row.js';
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
  readonly reads: readonly TableName[];
}

/** Columns of a query over pg_class `t` and its pg_namespace `n`; the session's search_path must be pg_catalog. Of a partitioned table only what is its own, not its parts'. */
export const READ_TRIGGERS = `
  (SELECT coalesce(json_agg(json_build_object('name', g.tgname, 'definition', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled,
      'shapesRows', g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0, 'comment', obj_description(g.oid, 'pg_trigger')) ORDER BY g.tgname), '[]')
     FROM pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgname !~ '${OURS}') AS triggers,
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
    'reads', (SELECT coalesce(json_agg(DISTINCT jsonb_build_object('schema', rn.nspname, 'table', rc.relname)), '[]')
       FROM pg_policy p JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass
       JOIN pg_class rc ON rc.oid = d.refobjid JOIN pg_namespace rn ON rn.oid = rc.relnamespace
      WHERE p.polrelid = t.oid AND rc.oid <> t.oid AND rn.nspname <> 'pg_catalog')) AS "rowSecurity"`;

/** What is read of a table here. */
interface Guarded extends TableName {
  readonly triggers: readonly TriggerInfo[];
  readonly rowSecurity: RowSecurityInfo;
}

/** Triggers and policies, one line each, so that two tables can be compared. */
export function behaviourOf({ triggers, rowSecurity: { enabled, forced, policies } }: Guarded): string[] {
  return [
    ...triggers.map((t) => `${t.definition}${MODES[t.enabled]}`),
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

const alter = (table: TableName, how: string, name: string) =>
  `ALTER TABLE ${quoteTable(table)} ${how} TRIGGER ${quoteIdent(name)}`;

/** Fires for what is replicated, and for rows that are copied or removed by us. */
const isLoud = ({ enabled }: TriggerInfo): boolean => enabled === 'A' || enabled === 'R';

/**
 * Has the triggers fire for ordinary sessions only, as they do for these anyway: what they would do to rows that are copied, replicated or
 * removed has been done where the rows were written. Empty: they do already.
 */
export function quietSql(table: Guarded): string[] {
  return table.triggers.filter(isLoud).map((t) => alter(table, t.enabled === 'A' ? 'ENABLE' : 'DISABLE', t.name));
}

/** The opposite of `quietSql`. */
export function loudSql(table: Guarded): string[] {
  return table.triggers.filter(isLoud).map((t) => switchSql(table, t.name, t.enabled));
}

const switchSql = (table: TableName, name: string, mode: TriggerMode) =>
  alter(table, mode === 'A' ? 'ENABLE ALWAYS' : 'ENABLE REPLICA', name);

/** What the clean-up has to restore: null when nothing is quieted. */
export function loudRecord(table: Guarded, shard: string): CleanupSpec | null {
  const loud = table.triggers.filter(isLoud);
  if (loud.length === 0) return null;
  const modes = JSON.stringify(loud.map((t) => [t.name, t.enabled]));
  return { kind: 'triggers', shard, object: { schema: table.schema, table: table.table, modes } };
}

type Modes = readonly (readonly [name: string, mode: TriggerMode])[];

const modesOf = ({ object }: CleanupRecord): Modes => JSON.parse(object.modes as string) as Modes;

/** Gives the triggers that a record names their modes back. @param there those that the table has */
export function restoreSql(record: CleanupRecord, there: readonly string[] | null): string[] {
  return modesOf(record)
    .filter(([name]) => there?.includes(name) !== false)
    .map(([name, mode]) => switchSql(tableOf(record), name, mode));
}

/** A table as its owner has made it: with the modes that its triggers had before they were quieted for a migration. */
export function asMeant<T extends Guarded>(table: T, own: readonly CleanupRecord[], shard: string): T {
  const modes = new Map(
    own
      .filter((r) => r.kind === 'triggers' && !r.done && r.shard === shard && tableId(tableOf(r)) === tableId(table))
      .flatMap(modesOf),
  );
  return { ...table, triggers: table.triggers.map((t) => ({ ...t, enabled: modes.get(t.name) ?? t.enabled })) };
}

/** Triggers and policies of a table that has just been made like this one; the triggers quiet. */
export function behaviourSql(table: Guarded): string[] {
  const name = quoteTable(table);
  const { enabled, forced, policies } = table.rowSecurity;
  const comments = (kind: string, items: readonly { readonly name: string; readonly comment: string | null }[]) =>
    items.flatMap(({ name: item, comment }) =>
      comment === null ? [] : [`COMMENT ON ${kind} ${quoteIdent(item)} ON ${name} IS ${quoteLiteral(comment)}`],
    );
  return [
    ...table.triggers.map((t) => t.definition),
    ...table.triggers.filter((t) => 'DR'.includes(t.enabled)).map((t) => alter(table, 'DISABLE', t.name)),
    ...comments('TRIGGER', table.triggers),
    ...policies.map((p) => p.definition),
    ...comments('POLICY', policies),
    ...(enabled ? [`ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY`] : []),
    ...(forced ? [`ALTER TABLE ${name} FORCE ROW LEVEL SECURITY`] : []),
  ];
}
