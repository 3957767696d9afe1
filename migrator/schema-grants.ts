import { quoteIdent, quoteLiteral } from '../topology/quote.js';

export interface Grant {
  /** Empty: PUBLIC. */
  readonly grantee: string;
  readonly privilege: string;
  readonly grantable: boolean;
  readonly column: string | null;
}

/** A JSON array of the grants of an `aclitem[]`, null for a null one; the session's search_path must be pg_catalog. */
export function grantsSql(acl: string): string {
  return `(SELECT CASE WHEN ${acl} IS NOT NULL THEN coalesce(json_agg(json_build_object('grantee', CASE g.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(g.grantee) END,
    'privilege', g.privilege_type, 'grantable', g.is_grantable, 'column', NULL)), '[]') END FROM aclexplode(${acl}) g)`;
}

/** Where the catalogs have what is of a kind: its oid by name, its owner, and its privileges. */
const CATALOGS = {
  TABLE: ['pg_class', 'to_regclass', 'relowner', 'relacl', 'r'],
  SEQUENCE: ['pg_class', 'to_regclass', 'relowner', 'relacl', 's'],
  FUNCTION: ['pg_proc', 'to_regprocedure', 'proowner', 'proacl', 'f'],
  TYPE: ['pg_type', 'to_regtype', 'typowner', 'typacl', 'T'],
  SCHEMA: ['pg_namespace', 'to_regnamespace', 'nspowner', 'nspacl', 'n'],
} as const;

/**
 * Takes from all but the owner what the server gives them of something that has just been made (`ALTER DEFAULT PRIVILEGES`, and PostgreSQL's own default): nobody is to have more
 * rights on one shard than on another.
 * @param name as it stands in statements
 */
export function withoutDefaults(kind: keyof typeof CATALOGS, name: string): string {
  const [catalog, find, owner, acl, letter] = CATALOGS[kind];
  const it = quoteLiteral(name);
  return `DO $foreshard$ DECLARE who text; BEGIN
    FOR who IN SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END
                 FROM ${catalog} c, aclexplode(coalesce(c.${acl}, acldefault('${letter}', c.${owner}))) g WHERE c.oid = ${find}(${it}) AND g.grantee <> c.${owner}
    LOOP EXECUTE format('REVOKE ALL ON ${kind} %s FROM %s', ${it}, who); END LOOP; END $foreshard$`;
}

export function grantSql(kind: keyof typeof CATALOGS, name: string, g: Grant): string {
  const columns = g.column === null ? '' : ` (${quoteIdent(g.column)})`;
  const to = g.grantee === '' ? 'PUBLIC' : quoteIdent(g.grantee);
  return `GRANT ${g.privilege}${columns} ON ${kind} ${name} TO ${to}${g.grantable ? ' WITH GRANT OPTION' : ''}`;
}

/** What PostgreSQL by itself lets everybody do. */
const BY_ITSELF = { FUNCTION: 'EXECUTE', TYPE: 'USAGE', SCHEMA: null } as const;

/** Of something that has just been made, and has its owner: privileges like the source's, and no others. @param grants null: nobody has said any there */
export function privilegesSql(kind: keyof typeof BY_ITSELF, name: string, grants: readonly Grant[] | null): string[] {
  const revoke = withoutDefaults(kind, name);
  if (grants !== null) return [revoke, ...grants.map((g) => grantSql(kind, name, g))];
  const [catalog, find, , acl] = CATALOGS[kind];
  const everybody = BY_ITSELF[kind];
  const grant = everybody === null ? [] : [`GRANT ${everybody} ON ${kind} ${name} TO PUBLIC`];
  return [
    `DO $$ BEGIN IF EXISTS (SELECT FROM ${catalog} c WHERE c.oid = ${find}(${quoteLiteral(name)}) AND c.${acl} IS NOT NULL) THEN
    ${[revoke, ...grant].map((sql) => `EXECUTE ${quoteLiteral(sql)};`).join('\n    ')} END IF; END $$`,
  ];
}
