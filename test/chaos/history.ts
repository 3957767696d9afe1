import { OPENING_BALANCE } from './world.js';

/** What its writer knows of an operation. `refused`: whoever answered has said that nothing of it was done. */
export type Outcome = 'open' | 'acknowledged' | 'unknown' | 'refused';

/** An account as `tenant/id`. */
export type AccountKey = string;

export interface AccountWrite {
  readonly key: AccountKey;
  readonly amount: number;
  /** As RETURNING has told; null: it has not got so far. */
  version: number | null;
}

export interface LedgerRow {
  readonly tenant: number;
  readonly id: string;
}

/** One operation of a writer: all that it does, it does together or not at all. */
export interface Operation {
  readonly id: string;
  readonly accounts: readonly AccountWrite[];
  readonly ledger: readonly LedgerRow[];
  outcome: Outcome;
  /** The SQLSTATE or error that left it refused or unknown. */
  why: string;
}

export interface Note {
  readonly tenant: number;
  readonly id: string;
  readonly version: number;
  /** As the version, by everybody who writes either. */
  readonly mark: number;
  readonly views: number;
}

/** An account as it was found somewhere. */
export interface AccountRow {
  readonly tenant: number;
  readonly id: number;
  readonly version: number;
  readonly balance: number;
  readonly op: string;
}

/** Everything that is in the shards' tables, each row as often as it is there. */
export interface Contents {
  readonly accounts: readonly AccountRow[];
  readonly ledger: readonly (LedgerRow & { readonly version: number | null })[];
  readonly notes: readonly Note[];
}

/** Wrong things of one kind beyond this number are counted, and not told one by one. */
const TOLD = 5;
/** Of versions that were told so long ago only the newest is remembered with its time, ms. */
const MEMORY_MS = 60_000;
/** Ledger rows that readers look for are among so many of the last ones. */
const RECENT = 2000;

/**
 * What writers and readers have been told, and whether it can be true. An account is a register: each write makes its version one higher, so the
 * versions that writers are told are its one order, and nobody may be shown an older one than anybody has been told before he asked.
 */
export class History {
  /** What cannot be. */
  readonly violations: string[] = [];
  readonly operations = new Map<string, Operation>();
  /** The newest version of an account that anybody has been told. */
  readonly #newest = new Map<AccountKey, number>();
  /** When newer and newer versions of an account were told, in order; of `performance.now()`. */
  readonly #toldAt = new Map<AccountKey, { readonly at: number; readonly version: number }[]>();
  /** Who has written a version of an account. */
  readonly #writerOf = new Map<string, string>();
  /** What notes are: as their only writer left them, and what they may be instead when an outcome is unknown. */
  readonly #notes = new Map<string, readonly (Note | null)[]>();
  readonly #recent: (LedgerRow & { readonly at: number })[] = [];
  readonly #kinds = new Map<string, number>();
  readonly #log: (text: string) => void;
  #untold = 0;

  /** @param log is told at once of what cannot be */
  constructor(log: (text: string) => void) {
    this.#log = log;
  }

  violate(text: string): void {
    // Of one kind is what differs in numbers alone.
    const kind = text.replace(/\d+/g, '');
    const n = this.#kinds.get(kind) ?? 0;
    this.#kinds.set(kind, n + 1);
    if (n < TOLD) {
      this.violations.push(text);
      this.#log(`WRONG: ${text}`);
    } else this.#untold += 1;
  }

  get untold(): number {
    return this.#untold;
  }

  begin(id: string, accounts: readonly AccountWrite[], ledger: readonly LedgerRow[]): Operation {
    const operation: Operation = { id, accounts, ledger, outcome: 'open', why: '' };
    this.operations.set(id, operation);
    return operation;
  }

  /** Its writer has been told that it is committed. */
  acknowledge(operation: Operation): void {
    operation.outcome = 'acknowledged';
    for (const { key, version } of operation.accounts) this.#tell(key, version as number, operation.id, 'acknowledged');
    for (const { tenant, id } of operation.ledger) {
      const row = { tenant, id, at: performance.now() };
      if (this.#recent.length < RECENT) this.#recent.push(row);
      else this.#recent[this.operations.size % RECENT] = row;
    }
  }

  /** A version that is told from now on is at least this one. To be asked for before the statement is sent. */
  newest(key: AccountKey): number {
    return this.#newest.get(key) ?? 0;
  }

  /** The same, as of an earlier moment. */
  newestAt(key: AccountKey, moment: number): number {
    return this.#toldAt.get(key)?.findLast(({ at }) => at <= moment)?.version ?? 0;
  }

  /** A writer's own statement has made this version, of a row that had at least version `floor`. */
  made(write: AccountWrite, version: number, floor: number, who: string): void {
    write.version = version;
    if (version <= floor)
      this.violate(
        `${who} made version ${version} of account ${write.key}, of which version ${floor} had been told before`,
      );
  }

  /** A reader has been shown this; `floor` is from before it asked. */
  shown(row: AccountRow, floor: number, who: string): void {
    const key = accountKey(row);
    if (row.version < floor)
      this.violate(
        `stale read: ${who} was shown version ${row.version} of account ${key} when version ${floor} had been told`,
      );
    if (row.version > 0) this.#tell(key, row.version, row.op, who);
  }

  /** A ledger row that was acknowledged before this moment, by chance. */
  acknowledgedRow(random: (below: number) => number, moment: number): LedgerRow | undefined {
    const row = this.#recent[random(this.#recent.length)];
    return row === undefined || row.at > moment ? undefined : row;
  }

  /** What a note is from now on; more than one possibility when its writer cannot know. Null: not there. */
  note(id: string, possible: readonly (Note | null)[]): void {
    this.#notes.set(id, possible);
  }

  #tell(key: AccountKey, version: number, op: string, who: string): void {
    if (version > this.newest(key)) {
      this.#newest.set(key, version);
      const told = this.#toldAt.get(key) ?? [];
      told.push({ at: performance.now(), version });
      // The first that is left is older than whatever anybody may be shown.
      const since = performance.now() - MEMORY_MS;
      const first = told.findLastIndex(({ at }) => at <= since);
      this.#toldAt.set(key, first > 0 ? told.slice(first) : told);
    }
    const at = `${key}@${version}`;
    const writer = this.#writerOf.get(at);
    if (writer === undefined) this.#writerOf.set(at, op);
    else if (writer !== op) this.violate(`version ${version} of account ${key} is ${op}'s (${who}), and ${writer}'s`);
    if (!this.operations.has(op))
      this.violate(`version ${version} of account ${key} is of ${op}, who nobody is (${who})`);
    else if (this.operations.get(op)?.outcome === 'refused')
      this.violate(
        `version ${version} of account ${key} is of ${op}, which was refused (${this.operations.get(op)?.why})`,
      );
  }

  /** Compares everything that is there with everything that was told. No writer may be at work any more. */
  audit(contents: Contents): void {
    const applied = this.#auditLedger(contents.ledger);
    this.#auditAccounts(contents.accounts, applied);
    this.#auditNotes(contents.notes);
  }

  /** @returns those that have been done, by what they left in the ledger */
  #auditLedger(rows: Contents['ledger']): ReadonlySet<string> {
    const found = new Map<string, number>();
    const times = new Map<string, number>();
    for (const row of rows) {
      const name = `${row.tenant} ${row.id}`;
      times.set(name, (times.get(name) ?? 0) + 1);
      const op = operationOf(row.id);
      const operation = this.operations.get(op);
      if (operation === undefined || !operation.ledger.some(({ tenant, id }) => tenant === row.tenant && id === row.id))
        this.violate(`ledger row ${name} is there, and nobody wrote it`);
      found.set(op, (found.get(op) ?? 0) + 1);
      const version = operation?.accounts[0]?.version ?? null;
      if (version !== row.version)
        this.violate(`ledger row ${name} says version ${row.version}, its writer was told ${version}`);
    }
    for (const [name, n] of times) if (n > 1) this.violate(`ledger row ${name} is there ${n} times`);
    const applied = new Set<string>();
    for (const operation of this.operations.values()) {
      const { id, outcome, why, ledger } = operation;
      if (outcome === 'open') this.violate(`operation ${id} has no outcome`);
      if (ledger.length === 0) continue;
      const n = found.get(id) ?? 0;
      if (n > 0) applied.add(id);
      if (outcome === 'acknowledged' && n === 0)
        this.violate(`lost: operation ${id} was acknowledged, and is not there`);
      if (outcome === 'refused' && n > 0) this.violate(`operation ${id} was refused (${why}), and is there`);
      if (n > 0 && n !== ledger.length)
        this.violate(`half of operation ${id} (${outcome}, ${why}): ${n} of ${ledger.length} rows`);
    }
    return applied;
  }

  #auditAccounts(rows: readonly AccountRow[], applied: ReadonlySet<string>): void {
    const balances = new Map<AccountKey, number>();
    const writes = new Map<AccountKey, { sure: number; perhaps: number }>();
    for (const { id, accounts, ledger, outcome } of this.operations.values())
      for (const { key, amount } of accounts) {
        const n = writes.get(key) ?? { sure: 0, perhaps: 0 };
        writes.set(key, n);
        if (outcome === 'acknowledged' || applied.has(id)) {
          n.sure += 1;
          balances.set(key, (balances.get(key) ?? 0) + amount);
        } else if (outcome === 'unknown' && ledger.length === 0) n.perhaps += 1;
      }
    let total = 0;
    const seen = new Set<AccountKey>();
    for (const row of rows) {
      const key = accountKey(row);
      if (seen.has(key)) this.violate(`account ${key} is there more than once`);
      seen.add(key);
      total += row.balance;
      this.shown(row, this.newest(key), 'the audit');
      const { sure, perhaps } = writes.get(key) ?? { sure: 0, perhaps: 0 };
      if (row.version < sure || row.version > sure + perhaps)
        this.violate(
          `account ${key} has version ${row.version} after ${sure} writes and ${perhaps} that may have been done`,
        );
      const balance = OPENING_BALANCE + (balances.get(key) ?? 0);
      if (row.balance !== balance) this.violate(`account ${key} has ${row.balance}, and ought to have ${balance}`);
    }
    if (total !== rows.length * OPENING_BALANCE)
      this.violate(`the accounts hold ${total} together, not ${rows.length * OPENING_BALANCE}`);
  }

  #auditNotes(rows: readonly Note[]): void {
    const seen = new Map<string, string[]>();
    for (const note of rows) seen.set(note.id, [...(seen.get(note.id) ?? []), text(note)]);
    for (const id of seen.keys()) if (!this.#notes.has(id)) this.violate(`note ${id} is there, and nobody wrote it`);
    for (const [id, possible] of this.#notes) {
      const there = seen.get(id) ?? [];
      const allowed = possible.map(text);
      if (there.length > 1) this.violate(`note ${id} is there ${there.length} times: ${there.join(', ')}`);
      else if (!allowed.includes(there[0] ?? text(null)))
        this.violate(`note ${id} is ${there[0] ?? text(null)}, and ought to be ${allowed.join(' or ')}`);
    }
  }
}

export function accountKey({ tenant, id }: { readonly tenant: number; readonly id: number }): AccountKey {
  return `${tenant}/${id}`;
}

/** Ledger rows are named after the operation that writes them. */
export function ledgerId(operation: string, n: number): string {
  return `${operation}.${n}`;
}

function operationOf(ledger: string): string {
  return ledger.slice(0, ledger.lastIndexOf('.'));
}

function text(note: Note | null): string {
  return note === null
    ? 'absent'
    : `version ${note.version} marked ${note.mark} with ${note.views} views with tenant ${note.tenant}`;
}
