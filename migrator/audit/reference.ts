import { setTimeout as delay } from 'node:timers/promises';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { quoteTable } from '../../topology/quote.js';
import { type ReferenceTable, type ShardName, tableId } from '../../topology/topology.js';
import { tableSum } from '../compare.js';
import { identityColumns } from '../hashing.js';
import { differing, type RowsOf, rowsByKey, rowsOfPages } from '../keyed-rows.js';
import { readTable } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import type { AuditFinding } from './finding.js';
import type { Portions } from './portions.js';
import { repairReference, type Truth } from './repair-reference.js';

/** Copies that are being written to may differ for a moment: what does is looked at again after this. */
const PAUSE_MS = 500;
const LOOKS = 3;
/** Heap pages whose rows are looked up on the other shard together: half a megabyte. */
const PAGES = 64;
/** Rows that differ between two copies, from which on no more are looked for. */
const ENOUGH = 1000;
/** Keys that are named. */
const KEYS_NAMED = 20;

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
      const suspects = new Set([
        ...(await differingFrom(first, other, rows, portions)),
        ...(await differingFrom(other, first, rows, portions)),
      ]);
      const standing = await thatStay([...suspects], first, other, rows);
      if (standing.length === 0) continue;
      const areAll = suspects.size < ENOUGH;
      found(
        `${between} differ in ${areAll ? '' : 'at least '}${standing.length} rows: ${standing.slice(0, KEYS_NAMED).join(', ')}${standing.length > KEYS_NAMED ? ', …' : ''}`,
        name,
        areAll && truth?.shard === first.shard.name
          ? () =>
              repairReference({ catalog, actor: truth.actor, info, from: first.shard, to: other.shard, keys: standing })
          : null,
      );
    }
  return findings;
}

/** Keys of rows here that are not there, or not the same. */
async function differingFrom(
  here: ShardSession,
  there: ShardSession,
  rows: RowsOf,
  portions: Portions,
): Promise<string[]> {
  const found: string[] = [];
  await portions.of(here, rows.sql, { most: PAGES, resumes: false }, async (heap, first, end) => {
    if (found.length >= ENOUGH) return 0;
    const read = await rowsOfPages(here, { ...rows, sql: heap }, first, end, null);
    const keys = read.map((row) => row.key);
    if (keys.length > 0) found.push(...differing(read, await rowsByKey(there, rows, keys)));
    return 0;
  });
  return found;
}

/** Those that still differ when neither copy's row has been written in the meantime. */
async function thatStay(keys: readonly string[], a: ShardSession, b: ShardSession, rows: RowsOf): Promise<string[]> {
  const read = (sought: readonly string[]) => Promise.all([rowsByKey(a, rows, sought), rowsByKey(b, rows, sought)]);
  let suspects = [...keys];
  for (let look = 1; look < LOOKS && suspects.length > 0; look++) {
    const before = await read(suspects);
    suspects = differing(before[0], before[1]);
    if (suspects.length === 0) break;
    await delay(PAUSE_MS);
    const now = await read(suspects);
    const written = new Set([...differing(before[0], now[0], 'version'), ...differing(before[1], now[1], 'version')]);
    suspects = suspects.filter((key) => !written.has(key));
  }
  return suspects;
}

async function sumOf(session: ShardSession, { sql, info }: RowsOf, table: ReferenceTable): Promise<string> {
  const moving = { ...table, reference: true, keyColumns: [], sql, predicate: () => 'true' };
  const { rows, hash } = await tableSum(session, moving, info);
  return `${rows} rows, hash ${hash}`;
}
