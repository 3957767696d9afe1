import { quoteLiteral } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import type { Move } from './move.js';
import { one, type Report } from './preflight-finding.js';
import { FUNCTION_JSON, type FunctionInfo, isMade, isSame } from './schema-functions.js';
import type { TableInfo } from './schema-read.js';

/** Names told in a message at most. */
const NAMES = 5;

/** Functions that people made: those of extensions come with the extension. */
const USER_FUNCTIONS = `
SELECT f.oid::regprocedure::text AS signature, CASE WHEN f.prokind <> 'a' THEN md5(pg_get_functiondef(f.oid)) END AS definition
  FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'foreshard_shard') AND n.nspname !~ '^pg_temp_'
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e')
 ORDER BY 1`;

/**
 * A statement that calls a function must find it on the shard that it is sent to. Functions are not copied, but those of triggers: what they do is
 * not known here, and neither is which of them statements call.
 */
export async function checkFunctions(m: Move, tables: readonly TableInfo[], report: Report): Promise<void> {
  type Found = { signature: string; definition: string | null };
  const theirs = new Map(
    (await m.destination.query<Found>(USER_FUNCTIONS)).map(({ signature, definition }) => [signature, definition]),
  );
  const ours = await m.source.query<Found>(USER_FUNCTIONS);
  const ofTables = new Set(tables.flatMap((t) => t.functions.map((f) => f.signature)));
  const others = ours.filter((f) => !ofTables.has(f.signature));
  const missing = others.filter((f) => !theirs.has(f.signature));
  if (missing.length > 0)
    report(
      'blocker',
      `functions of shard "${m.spec.from}" are missing on shard "${m.spec.to}": ${named(missing)}`,
      'Create them there, or drop those that nothing calls.',
    );
  const differing = others.filter((f) => theirs.has(f.signature) && theirs.get(f.signature) !== f.definition);
  if (differing.length > 0)
    report(
      'warning',
      `functions are not the same on shards "${m.spec.from}" and "${m.spec.to}": ${named(differing)}`,
      'See that they do the same: statements and triggers run those of the shard they are on.',
    );
}

function named(functions: readonly { readonly signature: string }[]): string {
  const names = functions.slice(0, NAMES).map((f) => f.signature);
  return names.join(', ') + (functions.length > NAMES ? ` and ${functions.length - NAMES} more` : '');
}

/** What a table's parts call must do the same at the destination, or be made there. */
async function checkOwnFunctions(m: Move, info: TableInfo, report: Report): Promise<void> {
  const name = tableId(info);
  const at = `on shard "${m.spec.to}"`;
  const { found, languages } = await one<{ found: FunctionInfo[]; languages: string[] }>(
    m.destination,
    `SELECT (SELECT coalesce(json_agg(${FUNCTION_JSON}), '[]') FROM pg_proc f
              WHERE f.oid = ANY (SELECT to_regprocedure(s) FROM unnest(${list(info.functions.map((f) => f.signature))}) s)) AS found,
            (SELECT json_agg(lanname) FROM pg_language) AS languages`,
  );
  for (const f of info.functions) {
    const there = found.find((other) => other.signature === f.signature);
    if (there !== undefined) {
      if (!isSame(f, there))
        report(
          'blocker',
          `function ${f.signature} of table "${name}" is another one ${at}`,
          'Make it the same there: its text, its attributes, and its owner if it has the rights of that.',
        );
    } else if (!isMade(f))
      report('blocker', `function ${f.signature} of table "${name}" is missing ${at}`, 'Create it there.');
    else if (!languages.includes(f.language))
      report(
        'blocker',
        `language ${f.language} of function ${f.signature} of table "${name}" is missing ${at}`,
        `CREATE EXTENSION ${f.language} there.`,
      );
  }
}

/** What one table needs at the destination besides itself: roles, extensions, functions, collations, types. */
export async function checkDependencies(m: Move, info: TableInfo, report: Report): Promise<void> {
  const name = tableId(info);
  const roles = [
    ...new Set([
      info.owner,
      ...info.grants.map((g) => g.grantee),
      ...info.sequences.flatMap((s) => [s.owner, ...s.grants.map((g) => g.grantee)]),
      ...info.types.flatMap((y) => [y.owner, ...(y.grants ?? []).map((g) => g.grantee)]),
      ...info.rowSecurity.roles,
      ...info.functions.filter(isMade).flatMap((f) => [f.owner, ...(f.grants ?? []).map((g) => g.grantee)]),
    ]),
  ].filter((r) => r !== '');
  const lacking = await one<{ roles: string[]; extensions: string[]; collations: string[] }>(
    m.destination,
    `SELECT ARRAY(SELECT r FROM unnest(${list(roles)}) r WHERE r NOT IN (SELECT rolname FROM pg_roles)) AS roles,
            ARRAY(SELECT e FROM unnest(${list(info.extensions)}) e WHERE e NOT IN (SELECT extname FROM pg_extension)) AS extensions,
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
  await checkOwnFunctions(m, info, report);
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
