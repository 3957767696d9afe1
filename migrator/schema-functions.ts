import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import type { Action } from './action.js';
import { type Grant, grantsSql, privilegesSql } from './schema-grants.js';

/** A function, not an extension's nor PostgreSQL's own, that a table's parts call. */
export interface FunctionInfo {
  /** As `regprocedure` prints it, with its schema. */
  readonly signature: string;
  readonly schema: string;
  /** Null: an aggregate's cannot be had. */
  readonly definition: string | null;
  readonly language: string;
  readonly owner: string;
  /** It has the rights of its owner. */
  readonly definer: boolean;
  /** It returns `trigger`: only triggers call it. */
  readonly trigger: boolean;
  /** Null: everybody may call it. */
  readonly grants: readonly Grant[] | null;
  readonly comment: string | null;
}

/** An object for each function of pg_proc `f`; the session's search_path must be pg_catalog. */
export const FUNCTION_JSON = `json_build_object('signature', f.oid::regprocedure::text, 'schema', (SELECT nspname FROM pg_namespace WHERE oid = f.pronamespace),
  'definition', CASE WHEN f.prokind <> 'a' THEN pg_get_functiondef(f.oid) END, 'language', (SELECT lanname FROM pg_language WHERE oid = f.prolang),
  'owner', pg_get_userbyid(f.proowner), 'definer', f.prosecdef, 'trigger', f.prorettype = 'trigger'::regtype,
  'grants', ${grantsSql('f.proacl')}, 'comment', obj_description(f.oid, 'pg_proc'))`;

/**
 * Whether a function that the destination lacks is made there. Only what triggers alone call: whatever else uses functions may do so
 * before they can be made, or in statements. What is in C needs its library.
 */
export function isMade({ trigger, language }: FunctionInfo): boolean {
  return trigger && language !== 'c' && language !== 'internal';
}

/** Whether both do the same: by their texts and attributes, and their owners where these lend them their rights. */
export function isSame(a: FunctionInfo, b: FunctionInfo): boolean {
  return a.definition === b.definition && (!a.definer || a.owner === b.owner);
}

export function createFunctionAction(f: FunctionInfo, shard: string): Action {
  const on = `FUNCTION ${f.signature}`;
  return {
    name: 'create-function',
    on: 'destination',
    text: `create function ${f.signature}`,
    mode: 'transaction',
    cleanup: [{ kind: 'function', shard, object: { signature: f.signature } }],
    present: `SELECT to_regprocedure(${quoteLiteral(f.signature)}) IS NOT NULL AS present`,
    sql: [
      // What its text names may not be there yet.
      'SET LOCAL check_function_bodies = off',
      f.definition as string,
      `ALTER ${on} OWNER TO ${quoteIdent(f.owner)}`,
      ...privilegesSql('FUNCTION', f.signature, f.grants),
      ...(f.comment === null ? [] : [`COMMENT ON ${on} IS ${quoteLiteral(f.comment)}`]),
    ],
  };
}
