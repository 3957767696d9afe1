import type { Epoch } from '../topology/topology.js';
import type { CatalogStatement } from './action.js';
import { BESIDE, OUT_OF_THE_WAY, STOPPING } from './migration-row.js';

/** Lock of the catalog under which migrations begin, one at a time. ("fshb") */
const BEGIN_LOCK = 0x66736862;

/** The shards that a migration has to do with, as an array in SQL. @param m alias of its row */
export function shardsSql(m: string): string {
  return `ARRAY[${m}.spec->>'from', ${m}.spec->>'to', ${m}.spec->>'shard']`;
}

/** Kinds of migrations that have a keyspace for themselves. */
const ALONE = `ARRAY['separate', 'halve', 'unite']`;

/** The keyspaces that a migration has to do with, as an array in SQL: also the one that it makes, which others of its change wait for. @param m alias of its row */
function keyspacesSql(m: string): string {
  return `(ARRAY[${m}.spec->>'keyspace', ${m}.spec->>'as'] || ARRAY(SELECT t.keyspace FROM foreshard.sharded_table t WHERE ${m}.kind = 'unite'
         AND t.schema_name = ${m}.spec->'table'->>'schema' AND t.table_name = ${m}.spec->'table'->>'table'))`;
}

/**
 * The condition in SQL under which an approved migration may begin: a shard takes part in one migration at a time, until that is out of the
 * way, and whoever was there first goes first; so it is with a keyspace and those that take tables, or columns, out of it or back. Members of a change begin in their order, no more than its limit at once, and none when one has not
 * come through. @param m alias of its row
 */
export function turnSql(m: string): string {
  return `NOT EXISTS (
    SELECT FROM foreshard.migration o WHERE o.id <> ${m}.id AND (${shardsSql('o')} && ${shardsSql(m)}
         OR (${ALONE} && ARRAY[o.kind, ${m}.kind] AND ${keyspacesSql('o')} && ${keyspacesSql(m)}))
       AND (o.state NOT IN (${BESIDE}) OR (o.state = 'approved' AND o.id < ${m}.id)))
  AND (${m}.change_id IS NULL OR NOT EXISTS (
    SELECT FROM foreshard.migration o WHERE o.change_id = ${m}.change_id AND o.id <> ${m}.id
       AND (o.state IN (${STOPPING}) OR (o.state IN ('planned', 'approved') AND o.position < ${m}.position)))
   AND (SELECT count(*) FROM foreshard.migration o WHERE o.change_id = ${m}.change_id AND o.state NOT IN (${OUT_OF_THE_WAY}))
       < (SELECT concurrency FROM foreshard.change c WHERE c.id = ${m}.change_id))`;
}

/** Another map may have other tables for the keyspace: what was not looked at would stay behind. */
export function sameEpochStatement(epoch: Epoch): CatalogStatement {
  return {
    text: 'the topology is the one that was looked at, and stays it until this is done',
    sql: 'SELECT FROM foreshard.meta WHERE epoch = $1 FOR SHARE',
    values: [epoch.toString()],
    elseConflict: 'the topology changed meanwhile',
    conflict: 'epoch',
  };
}

/** With these the transaction begins in which a migration does: looked at, two could find at once that nobody is there. */
export function beginStatements(id: bigint): CatalogStatement[] {
  return [
    {
      text: 'one migration begins at a time',
      sql: `SELECT pg_advisory_xact_lock(${BEGIN_LOCK})`,
      values: [],
      elseConflict: null,
    },
    {
      text: 'no other is at work on the same shards, or has waited for them longer, and in its change it is next',
      sql: `SELECT FROM foreshard.migration m WHERE m.id = $1 AND ${turnSql('m')}`,
      values: [id.toString()],
      elseConflict: 'others go first',
      conflict: 'turn',
    },
  ];
}
