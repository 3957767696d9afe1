import type { TableName } from '../topology/topology.js';
import type { Move } from './move.js';
import { guardTriggers, OURS } from './names.js';
import type { ShardSession } from './shard-session.js';

/** A partition on one side. */
export interface Partition {
  /** Of the table that moves, in the order of `m.tables`. */
  readonly of: number;
  readonly name: TableName;
  readonly parent: TableName;
  readonly bound: string;
  /** It has the guard of TRUNCATE. */
  readonly guarded: boolean;
  /** Its rows may be other ones than those of the statements, and no guard of ours looks behind the triggers that make them so. */
  readonly unseen: boolean;
  /** It has triggers that fire for what is replicated. */
  readonly loud: boolean;
  /** Row-level security holds for its owner, too. */
  readonly forced: boolean;
}

const NAME = (schema: string, relation: string) => `json_build_object('schema', ${schema}, 'table', ${relation})`;
const USERS = `EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgname !~ '${OURS}'`;
const PARTITIONS = `
SELECT (t.n - 1)::int AS of, ${NAME('n.nspname', 'c.relname')} AS name, ${NAME('pn.nspname', 'p.relname')} AS parent,
       pg_get_expr(c.relpartbound, c.oid) AS bound,
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = $2) AS guarded,
       c.relkind = 'r' AND ${USERS} AND g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0)
         AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = $3) AS unseen,
       ${USERS} AND g.tgenabled IN ('A', 'R')) AS loud, c.relrowsecurity AND c.relforcerowsecurity AS forced
  FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n) CROSS JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS part
  JOIN pg_class c ON c.oid = part.relid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = part.parentrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE part.level > 0 ORDER BY t.n, part.level, n.nspname, c.relname`;

/** Those of all moving tables, each behind its parent. */
export function listPartitions(m: Move, session: ShardSession): Promise<Partition[]> {
  const { truncate, storedInsert } = guardTriggers(m.names);
  return session.query<Partition & Record<string, unknown>>(PARTITIONS, [
    m.tables.map((t) => t.sql),
    truncate,
    storedInsert,
  ]);
}
