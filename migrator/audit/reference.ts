import type { Catalog } from '../../topology/catalog/catalog.js';
import { quoteTable } from '../../topology/quote.js';
import { type ReferenceTable, type ShardName, tableId } from '../../topology/topology.js';
import { tableSum } from '../compare.js';
import { identityColumns } from '../hashing.js';
import type { RowsOf } from '../keyed-rows.js';
import { readTable } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import { differingFrom, ENOUGH, rowsText, type Side, thatStay } from './both-sides.js';
import type { AuditFinding } from './finding.js';
import type { Portions } from './portions.js';
import { repairReference, type Truth } from './repair-reference.js';

/** How the copies of reference tables are looked at. */
export interface ReferenceAudit {
  readonly catalog: Catalog;
  readonly sessions: ReadonlyMap<ShardName, ShardSession>;
  readonly portions: Portions;
  /** Null: nobody has said. */
  readonly truth: Truth | null;
}

/**
 * Whether all copies of a reference table have the same rows: each is compared with the first one, by key, a few pages at a time; with the one that somebody has called right, that is the
 * first, and the others can be repaired from it.
 */
export async function auditReference(
  table: ReferenceTable,
  { catalog, sessions, portions, truth }: ReferenceAudit,
): Promise<AuditFinding[]> {
  const copies = table.shards.flatMap((shard) => sessions.get(shard) ?? []);
  const [first, ...others] = copies.toSorted(
    (a, b) => Number(b.shard.name === truth?.shard) - Number(a.shard.name === truth?.shard),
  );
  if (first === undefined) return [];
  const findings: AuditFinding[] = [];
  const found = (text: string, shard = '', repair: AuditFinding['repair'] = null) =>
    findings.push({
      kind: 'reference table',
      shard,
      object: tableId(table),
      text,
      remedy: `Find out which copy is right, and make the others the same: "foreshard migrate audit --repair --from SHARD".`,
      repair,
    });
  const sql = quoteTable(table);
  const info = await readTable(first.reader, sql);
  if (info === null) found(`shard "${first.shard.name}" has no copy of reference table ${tableId(table)}`);
  else
    for (const other of others) {
      const { name } = other.shard;
      const between = `the copies of reference table ${tableId(table)} on shards "${first.shard.name}" and "${name}"`;
      if ((await readTable(other.reader, sql)) === null) {
        found(`shard "${name}" has no copy of reference table ${tableId(table)}`);
        continue;
      }
      const rows: RowsOf = { sql, where: 'true', info };
      if (identityColumns(info).length === 0) {
        const [ours, theirs] = await Promise.all([sumOf(first, rows, table), sumOf(other, rows, table)]);
        if (ours !== theirs)
          found(
            `${between} differ: the first has ${ours}, the other ${theirs}. There is no primary key by which rows could be named`,
            name,
          );
        continue;
      }
      const [ours, theirs]: [Side, Side] = [
        { ...rows, session: first },
        { ...rows, session: other },
      ];
      const suspects = new Set([
        ...(await differingFrom(ours, theirs, portions)),
        ...(await differingFrom(theirs, ours, portions)),
      ]);
      const standing = await thatStay([...suspects], ours, theirs);
      if (standing.length === 0) continue;
      const areAll = suspects.size < ENOUGH;
      found(
        `${between} differ in ${rowsText(standing, areAll)}`,
        name,
        areAll && truth?.shard === first.shard.name
          ? () =>
              repairReference({ catalog, actor: truth.actor, info, from: first.shard, to: other.shard, keys: standing })
          : null,
      );
    }
  return findings;
}

async function sumOf(session: ShardSession, { sql, info }: RowsOf, table: ReferenceTable): Promise<string> {
  const moving = { ...table, reference: true, keyColumns: [], sql, predicate: () => 'true' };
  const { rows, hash } = await tableSum(session, moving, info);
  return `${rows} rows, hash ${hash}`;
}
