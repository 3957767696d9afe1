import { quoteLiteral } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import type { Move } from './move.js';
import { one, type Report } from './preflight-finding.js';
import type { TableInfo } from './schema-read.js';

/** Names told in a message at most. */
const NAMES = 5;

/** Functions that people made: those of extensions come with the extension. */
const USER_FUNCTIONS = `
SELECT p.oid::regprocedure::text AS signature FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'foreshard_shard') AND n.nspname !~ '^pg_temp_'
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
 ORDER BY 1`;

/**
 * A statement that calls a function must find it on the shard that it is sent to. Functions are not copied: what they do is
 * not known here, and neither is which of them statements call.
 */
export async function checkFunctions(m: Move, report: Report): Promise<void> {
  const signatures = (await m.source.query<{ signature: string }>(USER_FUNCTIONS)).map((f) => f.signature);
  if (signatures.length === 0) return;
  const { missing } = await one<{ missing: string[] }>(
    m.destination,
    `SELECT ARRAY(SELECT f FROM unnest(${list(signatures)}) f WHERE to_regprocedure(f) IS NULL) AS missing`,
  );
  if (missing.length === 0) return;
  const names = missing.slice(0, NAMES).join(', ');
  const more = missing.length > NAMES ? ` and ${missing.length - NAMES} more` : '';
  report(
    'blocker',
    `functions of shard "${m.spec.from}" are missing on shard "${m.spec.to}": ${names}${more}`,
    'Create them there, or drop those that nothing calls.',
  );
}

/** What one table needs at the destination besides itself: roles, extensions, functions, collations, types. */
export async function checkDependencies(m: Move, info: TableInfo, report: Report): Promise<void> {
  const name = tableId(info);
  const roles = [
    ...new Set([
      info.owner,
      ...info.grants.map((g) => g.grantee),
      ...info.sequences.flatMap((s) => [s.owner, ...s.grants.map((g) => g.grantee)]),
    ]),
  ].filter((r) => r !== '');
  const lacking = await one<{ roles: string[]; extensions: string[]; functions: string[]; collations: string[] }>(
    m.destination,
    `SELECT ARRAY(SELECT r FROM unnest(${list(roles)}) r WHERE r NOT IN (SELECT rolname FROM pg_roles)) AS roles,
            ARRAY(SELECT e FROM unnest(${list(info.extensions)}) e WHERE e NOT IN (SELECT extname FROM pg_extension)) AS extensions,
            ARRAY(SELECT f FROM unnest(${list(info.functions)}) f WHERE to_regprocedure(f) IS NULL) AS functions,
            ARRAY(SELECT c FROM unnest(${list(info.collations)}) c WHERE to_regcollation(c) IS NULL) AS collations`,
  );
  const on = `on shard "${m.spec.to}"`;
  for (const r of lacking.roles)
    report(
      'blocker',
      `role "${r}" of table "${name}" does not exist ${on}`,
      `Create it there: "foreshard shard add" copies roles.`,
    );
  for (const e of lacking.extensions)
    report('blocker', `extension "${e}" of table "${name}" is missing ${on}`, `CREATE EXTENSION ${e} there.`);
  for (const f of lacking.functions)
    report('blocker', `function ${f} of table "${name}" is missing ${on}`, 'Create it there.');
  for (const c of lacking.collations)
    report('blocker', `collation ${c} of table "${name}" is missing ${on}`, 'Create it there.');
  for (const t of info.types)
    if (t.kind === 'other')
      report(
        'blocker',
        `type "${t.schema}.${t.name}" of table "${name}" cannot be copied`,
        'Only enums, domains and types of extensions can.',
      );
  for (const i of info.indexes)
    if (!i.valid) report('blocker', `index "${i.name}" of table "${name}" is invalid`, 'REINDEX or drop it.');
}

function list(items: readonly string[]): string {
  return `ARRAY[${items.map(quoteLiteral).join(', ')}]::text[]`;
}
