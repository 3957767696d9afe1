import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import type { Move } from './move.js';
import { createFunctionAction, isMade } from './schema-functions.js';
import { type Grant, grantsSql, privilegesSql } from './schema-grants.js';
import type { TableInfo } from './schema-read.js';

/** Makes the functions of the tables' triggers at the destination, unless they are there, in schemas like the source's. @param schemas others that are to be there */
export async function makeFunctions(
  m: Move,
  tables: readonly TableInfo[],
  schemas: readonly string[] = [],
): Promise<void> {
  const functions = tables.flatMap((t) => t.functions.filter(isMade));
  for (const name of new Set([...functions.map((f) => f.schema), ...schemas]))
    await m.exec.perform({
      name: 'create-schema',
      on: 'destination',
      text: `create schema ${name}`,
      mode: 'transaction',
      cleanup: [{ kind: 'schema', shard: m.spec.to, object: { name } }],
      present: `SELECT to_regnamespace(${quoteLiteral(quoteIdent(name))}) IS NOT NULL AS present`,
      sql: await schemaSql(m, name),
    });
  for (const f of functions) await m.exec.perform(createFunctionAction(f, m.spec.to));
}

async function schemaSql(m: Move, name: string): Promise<string[]> {
  const rows = await m.source.query<{ owner: string; grants: Grant[] | null }>(
    `SELECT pg_get_userbyid(n.nspowner) AS owner, ${grantsSql('n.nspacl')} AS grants
       FROM pg_namespace n WHERE n.nspname = $1`,
    [name],
  );
  const schema = rows[0];
  if (schema === undefined) return [`CREATE SCHEMA ${quoteIdent(name)}`];
  return [
    `CREATE SCHEMA ${quoteIdent(name)} AUTHORIZATION ${quoteIdent(schema.owner)}`,
    ...privilegesSql('SCHEMA', quoteIdent(name), schema.grants),
  ];
}
