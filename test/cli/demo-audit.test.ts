import { describe, expect, it } from 'vitest';
import { type AuditInput, audit, type FoundRow, orderValue, type ShardContents } from '../../cli/demo/audit.js';
import type { Effect, JournalEntry } from '../../cli/demo/journal.js';

const owner = (tenant: number): string => (tenant <= 10 ? 's1' : 's2');

const order = (tenant: number, id: string, note = 'new', revision = 0): FoundRow => ({
  table: 'orders',
  tenant,
  id,
  value: orderValue(100, note, revision),
});
const counter = (tenant: number, orders: number): FoundRow => ({
  table: 'tenants',
  tenant,
  id: String(tenant),
  value: String(orders),
});
const inserted = (id: string, note = 'new'): Effect => ({
  kind: 'insert',
  table: 'orders',
  id,
  value: orderValue(100, note, 0),
});
const updated = (id: string, note: string, from: string | null = null): Effect => ({
  kind: 'update',
  table: 'orders',
  id,
  note,
  from,
});
const counted = (tenant: number): Effect => ({ kind: 'count', table: 'tenants', id: String(tenant) });
const acknowledged = (tenant: number, ...effects: Effect[]): JournalEntry => ({
  outcome: 'acknowledged',
  tenant,
  effects,
});
const unknown = (tenant: number, ...effects: Effect[]): JournalEntry => ({ outcome: 'unknown', tenant, effects });

const contents = (
  shard: string,
  live: FoundRow[],
  tenants: number[],
  referenceRows: number | null = 3,
): ShardContents => ({
  shard,
  live,
  base: tenants.map((tenant) => ({ table: 'order_items', tenant, rows: 10, checksum: `sum${tenant}` })),
  reference: referenceRows === null ? null : { rows: referenceRows, checksum: 'c' },
  counts: {},
});

const before = contents('s1', [counter(1, 0), counter(11, 0)], [1, 11]);
const journal = [
  acknowledged(1, inserted('1000')),
  acknowledged(11, inserted('1001'), counted(11)),
  acknowledged(11, updated('1001', 'sent')),
  acknowledged(1, updated('5', 'called', orderValue(100, 'loaded', 0))),
];
const s1 = [counter(1, 0), order(1, '1000'), order(1, '5', 'called', 1)];
const s2 = [counter(11, 1), order(11, '1001', 'sent', 1)];

async function findings(change: {
  journal?: JournalEntry[];
  s1?: FoundRow[];
  s2?: FoundRow[];
  base?: [number[], number[]];
  reference?: [number | null, number | null];
}): Promise<string[]> {
  const [b1, b2] = change.base ?? [[1], [11]];
  const [r1, r2] = change.reference ?? [3, 3];
  const input: AuditInput = {
    journal: change.journal ?? journal,
    before,
    shards: [
      contents('s1', change.s1 ?? s1, b1, r1),
      contents('s2', change.s2 ?? s2, b2, r2),
      contents('s3', [], [], null),
    ],
    owner,
  };
  return (await audit(input)).findings.map((f) => `${f.kind}: ${f.detail}`);
}

describe('the audit of the demo', () => {
  it('is clean when every acknowledged write is there once, where it belongs', async () => {
    expect(await findings({})).toEqual([]);
  });

  it('finds a lost insert', async () => {
    expect(await findings({ s1: [counter(1, 0), order(1, '5', 'called', 1)] })).toEqual([
      'lost write: orders 1000 of tenant 1, acknowledged as 100|0|new',
    ]);
  });

  it('finds a lost update of a live order, and of a loaded one', async () => {
    expect(await findings({ s2: [counter(11, 1), order(11, '1001')] })).toEqual([
      'wrong value: orders 1001 of tenant 11 on s2 is 100|0|new, acknowledged was 100|1|sent',
    ]);
    expect(await findings({ s1: [counter(1, 0), order(1, '1000')] })).toEqual([
      'lost write: orders 5 of tenant 1, acknowledged as 100|1|called',
    ]);
  });

  it('finds a write that was applied twice', async () => {
    expect(await findings({ s2: [counter(11, 2), order(11, '1001', 'sent', 1)] })).toEqual([
      'wrong value: tenants 11 of tenant 11 on s2 is 2, acknowledged was 1',
    ]);
    expect(await findings({ s2: [counter(11, 1), order(11, '1001', 'sent', 2)] })).toHaveLength(1);
  });

  it('finds a row that is on two shards', async () => {
    expect(await findings({ s1: [...s1, order(11, '1001', 'sent', 1)] })).toEqual([
      'wrong shard: orders 1001 of tenant 11 is on s1, its owner is s2',
      'duplicate row: orders 1001 of tenant 11 on s1, s2',
    ]);
  });

  it('finds a row on the wrong shard only', async () => {
    expect(await findings({ s1: [...s1, order(11, '1001', 'sent', 1)], s2: [counter(11, 1)] })).toEqual([
      'wrong shard: orders 1001 of tenant 11 is on s1, its owner is s2',
    ]);
  });

  it('finds a row that nobody acknowledged', async () => {
    expect(await findings({ s2: [...s2, order(11, '9999')] })).toEqual([
      'row that nobody acknowledged: orders 9999 of tenant 11 on s2',
    ]);
  });

  it('accepts either outcome of a write whose outcome is unknown, and nothing else', async () => {
    const entries = [
      ...journal,
      unknown(11, inserted('1002'), counted(11)),
      unknown(1, updated('1000', 'lost?')),
      unknown(1, updated('6', 'x', orderValue(100, 'loaded', 0))),
    ];
    expect(await findings({ journal: entries })).toEqual([]);
    expect(
      await findings({
        journal: entries,
        s1: [counter(1, 0), order(1, '1000', 'lost?', 1), order(1, '5', 'called', 1), order(1, '6', 'x', 1)],
        s2: [counter(11, 2), order(11, '1001', 'sent', 1), order(11, '1002')],
      }),
    ).toEqual([]);
    expect(await findings({ journal: entries, s2: [counter(11, 3), order(11, '1001', 'sent', 1)] })).toHaveLength(1);
  });

  it('finds loaded rows that are missing, left behind, or changed', async () => {
    expect(await findings({ base: [[1], []] })).toEqual(['lost write: all 10 loaded rows in order_items of tenant 11']);
    expect(await findings({ base: [[1, 11], [11]] })).toEqual([
      'wrong shard: 10 loaded rows in order_items of tenant 11 are on s1, their owner is s2',
    ]);
    expect(await findings({ base: [[1, 2], [11]] })).toEqual([
      'row that nobody acknowledged: 10 rows in order_items of tenant 2 on s1',
    ]);
  });

  it('finds a reference table that differs, or is missing where rows are', async () => {
    expect(await findings({ reference: [3, 2] })).toEqual(['reference table differs: s2 has 2 rows, s1 had 3']);
    expect(await findings({ reference: [3, null] })).toEqual(['reference table differs: s2 has none']);
  });
});
