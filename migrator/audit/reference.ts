import { setTimeout as delay } from 'node:timers/promises';
import { quoteTable } from '../../topology/quote.js';
import { type ReferenceTable, type ShardName, tableId } from '../../topology/topology.js';
import { tableSum } from '../compare.js';
import { readTable } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import type { AuditFinding } from './finding.js';

/** Copies that are being written to may differ for a moment. */
const LOOKS = 3;
const PAUSE_MS = 500;

/** Whether all copies of a reference table have the same rows. */
export async function auditReference(
  table: ReferenceTable,
  sessions: ReadonlyMap<ShardName, ShardSession>,
): Promise<AuditFinding[]> {
  for (let look = 1; ; look++) {
    const differing = await differ(table, sessions);
    if (differing === null) return [];
    if (look < LOOKS) {
      await delay(PAUSE_MS);
      continue;
    }
    return [
      {
        kind: 'reference table',
        shard: '',
        object: tableId(table),
        text: `the copies of reference table ${tableId(table)} differ: ${differing}`,
        remedy: 'Find out which one is right, and make the others the same.',
        repair: null,
      },
    ];
  }
}

async function differ(table: ReferenceTable, sessions: ReadonlyMap<ShardName, ShardSession>): Promise<string | null> {
  const sums = new Map<string, string>();
  const moving = { ...table, keyColumns: [], sql: quoteTable(table), predicate: () => 'true' };
  for (const shard of table.shards) {
    const session = sessions.get(shard);
    if (session === undefined) continue;
    const info = await readTable(session.reader, moving.sql);
    if (info === null) return `shard "${shard}" has none`;
    const { rows, hash } = await tableSum(session, moving, info);
    sums.set(shard, `${rows} rows, hash ${hash}`);
  }
  if (new Set(sums.values()).size <= 1) return null;
  return [...sums].map(([shard, sum]) => `"${shard}" has ${sum}`).join('; ');
}
