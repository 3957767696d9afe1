import type { Effect, JournalEntry } from './journal.js';

/** What the servers must hold, as far as clients know: acknowledged writes for certain, unknown outcomes perhaps. */
interface Expected {
  /** Whether the row must be there. A write of unknown outcome may have made it. */
  required: boolean;
  /** Every value the row may have: one, unless the outcome of a write is unknown. */
  values: Set<string>;
}

/** A row written while the load ran, as it was found on a shard. */
export interface FoundRow {
  readonly table: string;
  readonly tenant: number;
  readonly id: string;
  readonly value: string;
}

/** Rows of one tenant that were there before the load, in columns that the load leaves alone. */
export interface TenantSum {
  readonly table: string;
  readonly tenant: number;
  readonly rows: number;
  readonly checksum: string;
}

/** What one shard holds. */
export interface ShardContents {
  readonly shard: string;
  /** Rows made or changed by the load. */
  readonly live: readonly FoundRow[];
  /** Loaded rows, summed by tenant. */
  readonly base: readonly TenantSum[];
  /** The copy of the reference table, or null where there is none. */
  readonly reference: { readonly rows: number; readonly checksum: string } | null;
  /** Rows per table, all of them. */
  readonly counts: Readonly<Record<string, number>>;
}

export type FindingKind =
  | 'lost write'
  | 'duplicate row'
  | 'wrong shard'
  | 'wrong value'
  | 'row that nobody acknowledged'
  | 'loaded rows differ'
  | 'reference table differs';

export interface Finding {
  readonly kind: FindingKind;
  readonly detail: string;
}

export interface AuditResult {
  /** Acknowledged writes (statements in autocommit and transactions). */
  readonly acknowledged: number;
  readonly unknown: number;
  /** Rows that were compared one by one. */
  readonly rowsCompared: number;
  /** Rows loaded before, compared by tenant and checksum. */
  readonly baseRows: number;
  readonly findings: readonly Finding[];
}

export interface AuditInput {
  readonly journal: Iterable<JournalEntry> | AsyncIterable<JournalEntry>;
  /** What the shop held before the load. */
  readonly before: ShardContents;
  readonly shards: readonly ShardContents[];
  /** The shard that owns a tenant now. */
  readonly owner: (tenant: number) => string;
}

/**
 * Compares what clients were told with what is there. Pure: the caller reads the journal and the shards. A clean audit has no
 * findings: each acknowledged row is there exactly once, with its last acknowledged value, on the shard that owns its tenant and on
 * no other; nothing is there that no client wrote; rows that were loaded before are unchanged.
 */
export async function audit(input: AuditInput): Promise<AuditResult> {
  const expected = new Map<string, Expected>();
  // Counters have a value before the first write of the load.
  for (const row of input.before.live) expected.set(rowKey(row), { required: true, values: new Set([row.value]) });
  let acknowledged = 0;
  let unknown = 0;
  for await (const entry of input.journal) {
    const certain = entry.outcome === 'acknowledged';
    if (certain) acknowledged++;
    else unknown++;
    for (const effect of entry.effects) apply(expected, entry.tenant, effect, certain);
  }
  const findings: Finding[] = [];
  compareLive(expected, input, findings);
  const baseRows = compareBase(input, findings);
  compareReference(input, findings);
  return { acknowledged, unknown, rowsCompared: expected.size, baseRows, findings };
}

/** The value of an order as it is compared. */
export function orderValue(totalCents: string | number, note: string, revision: number): string {
  return `${totalCents}|${revision}|${note}`;
}

function apply(expected: Map<string, Expected>, tenant: number, effect: Effect, certain: boolean): void {
  const key = rowKey({ table: effect.table, tenant, id: effect.id });
  if (effect.kind === 'insert') {
    expected.set(key, { required: certain, values: new Set([effect.value]) });
    return;
  }
  let now = expected.get(key);
  if (now === undefined) {
    // The first change of a row that was loaded before carries the value it had then.
    if (effect.kind !== 'update' || effect.from === null)
      throw new Error(`the journal changes ${key} before it was made`);
    // While nobody has acknowledged a change it may still be as loaded, and then it is not among the rows found.
    now = { required: false, values: new Set([effect.from]) };
    expected.set(key, now);
  }
  const next = [...now.values].map((value) => changed(value, effect));
  if (certain) {
    now.values = new Set(next);
    now.required = true;
  } else {
    for (const value of next) now.values.add(value);
  }
}

function changed(value: string, effect: Exclude<Effect, { kind: 'insert' }>): string {
  if (effect.kind === 'count') return String(Number(value) + 1);
  const [total, revision] = value.split('|', 2) as [string, string];
  return orderValue(total, effect.note, Number(revision) + 1);
}

function compareLive(expected: ReadonlyMap<string, Expected>, input: AuditInput, findings: Finding[]): void {
  const seen = new Map<string, string[]>();
  for (const { shard, live } of input.shards)
    for (const row of live) {
      const key = rowKey(row);
      const places = seen.get(key);
      if (places === undefined) seen.set(key, [shard]);
      else places.push(shard);
      const want = expected.get(key);
      if (want === undefined) findings.push({ kind: 'row that nobody acknowledged', detail: `${key} on ${shard}` });
      else if (!want.values.has(row.value))
        findings.push({
          kind: 'wrong value',
          detail: `${key} on ${shard} is ${row.value}, acknowledged was ${[...want.values].join(' or ')}`,
        });
      const owner = input.owner(row.tenant);
      if (shard !== owner)
        findings.push({ kind: 'wrong shard', detail: `${key} is on ${shard}, its owner is ${owner}` });
    }
  for (const [key, want] of expected) {
    const places = seen.get(key);
    if (places === undefined) {
      if (want.required)
        findings.push({ kind: 'lost write', detail: `${key}, acknowledged as ${[...want.values].join(' or ')}` });
    } else if (places.length > 1) findings.push({ kind: 'duplicate row', detail: `${key} on ${places.join(', ')}` });
  }
}

function compareBase(input: AuditInput, findings: Finding[]): number {
  const found = new Map<string, { shard: string; sum: TenantSum }[]>();
  for (const { shard, base } of input.shards)
    for (const sum of base) {
      const key = `${sum.table} of tenant ${sum.tenant}`;
      const list = found.get(key);
      if (list === undefined) found.set(key, [{ shard, sum }]);
      else list.push({ shard, sum });
      const owner = input.owner(sum.tenant);
      if (shard !== owner)
        findings.push({
          kind: 'wrong shard',
          detail: `${sum.rows} loaded rows in ${key} are on ${shard}, their owner is ${owner}`,
        });
    }
  let rows = 0;
  for (const want of input.before.base) {
    const key = `${want.table} of tenant ${want.tenant}`;
    const here = found.get(key)?.find((f) => f.shard === input.owner(want.tenant))?.sum;
    rows += want.rows;
    if (here === undefined) findings.push({ kind: 'lost write', detail: `all ${want.rows} loaded rows in ${key}` });
    else if (here.rows !== want.rows || here.checksum !== want.checksum)
      findings.push({
        kind: 'loaded rows differ',
        detail: `${key}: ${here.rows} rows, were ${want.rows}; checksum ${here.checksum}, was ${want.checksum}`,
      });
    found.delete(key);
  }
  for (const [key, places] of found)
    for (const { shard, sum } of places)
      findings.push({ kind: 'row that nobody acknowledged', detail: `${sum.rows} rows in ${key} on ${shard}` });
  return rows;
}

function compareReference(input: AuditInput, findings: Finding[]): void {
  const want = input.before.reference;
  if (want === null) return;
  const owners = new Set(input.before.base.map((b) => input.owner(b.tenant)));
  for (const { shard, reference } of input.shards) {
    if (reference === null) {
      // A shard without rows of ours needs no copy yet.
      if (owners.has(shard)) findings.push({ kind: 'reference table differs', detail: `${shard} has none` });
    } else if (reference.rows !== want.rows || reference.checksum !== want.checksum)
      findings.push({
        kind: 'reference table differs',
        detail: `${shard} has ${reference.rows} rows, ${input.before.shard} had ${want.rows}`,
      });
  }
}

function rowKey(row: { readonly table: string; readonly tenant: number; readonly id: string }): string {
  return `${row.table} ${row.id} of tenant ${row.tenant}`;
}
