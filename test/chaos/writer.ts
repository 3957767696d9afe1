import { Client } from './client.js';
import {
  type AccountKey,
  type AccountRow,
  type AccountWrite,
  accountKey,
  ledgerId,
  type Note,
  type Operation,
} from './history.js';
import { enter, enterVersion, HOUSE, readAccount, writeAccount } from './tables.js';
import { ACCOUNTS, TENANTS } from './world.js';

/** Accounts whose money stays with the tenant. */
const AT_HOME = 2;
/** Notes that a writer has at a time. */
const NOTES = 12;
/** The longest time that a transaction is left open between two of its statements, ms; and now and then. */
const LINGER_MS = 300;
const DAWDLE_MS = 3000;
/** One in so many of those that concern any tenant concerns the house. */
const OF_HOUSE = 8;

/** Writes in every way, and remembers each thing that it was told. */
export class Writer extends Client {
  #n = 0;
  readonly #notes = new Map<string, Note>();
  /** When it changed a note last, and in which session. */
  readonly #changed = new Map<string, { readonly at: number; readonly session: number }>();
  /** Versions that the operation under way has made. */
  #made: [AccountKey, number][] = [];
  /** The account that it has written last. */
  #last: AccountKey | null = null;

  protected override act(): Promise<void> {
    const dice = this.random(100);
    if (dice < 20) return this.#bump();
    if (dice < 38) return this.#enter();
    if (dice < 45) return this.#enterSeveral();
    if (dice < 60) return this.#transfer(false);
    if (dice < 70) return this.#transfer(true);
    if (dice < 74) return this.#think();
    if (dice < 80) return this.#annotate();
    if (dice < 88) return this.#amend();
    if (dice < 92) return this.#erase();
    if (dice < 95) return this.#carry();
    if (dice < 97) return this.#rekey();
    return this.#readBack();
  }

  #tenant(): number {
    return 1 + this.random(TENANTS);
  }

  #tenantOrHouse(): number {
    return this.random(OF_HOUSE) === 0 ? HOUSE : this.#tenant();
  }

  #operationId(): string {
    this.#n += 1;
    return `${this.name}-${this.#n}`;
  }

  /** Does all of an operation, and settles what is known of it. @param work does everything but the commit, when there is one */
  async #settle(
    operation: Operation,
    way: 'autocommit' | 'commit',
    crossing: boolean,
    work: () => Promise<void>,
    halved = false,
  ): Promise<void> {
    this.#made = [];
    let phase: 'autocommit' | 'commit' | 'in a transaction' = way === 'commit' ? 'in a transaction' : 'autocommit';
    try {
      await work();
      if (way === 'commit') {
        phase = 'commit';
        const { command } = await this.query('COMMIT');
        if (command !== 'COMMIT') throw new Error(`COMMIT was answered with ${command}`);
      }
    } catch (error) {
      const { perhapsDone, code } = this.failed(error, phase, crossing, halved);
      operation.why = `${phase}: ${code}`;
      operation.outcome = perhapsDone ? 'unknown' : 'refused';
      if (way === 'commit') await this.giveUp();
      return;
    }
    this.around.history.acknowledge(operation);
    for (const [key, version] of this.#made) this.knows(key, version);
    this.#last = this.#made.at(-1)?.[0] ?? this.#last;
  }

  /** @param crossing to do something on several shards, perhaps, which have no common snapshot */
  async #begin(crossing = false): Promise<void> {
    await this.query(!crossing && this.random(5) === 0 ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN');
  }

  /** Writes an account, within an operation. */
  async #update(write: AccountWrite, operation: Operation): Promise<void> {
    const { history } = this.around;
    const floor = history.newest(write.key);
    const [tenant, id] = write.key.split('/').map(Number) as [number, number];
    const { rows } = await this.send<{ version: number }>(writeAccount(tenant, id, write.amount, operation.id));
    const [row] = rows;
    if (rows.length !== 1 || row === undefined) {
      history.violate(`${this.name} updated ${rows.length} rows of account ${write.key}`);
      write.version = floor;
    } else {
      history.made(write, row.version, floor, this.name);
      this.#made.push([write.key, row.version]);
    }
  }

  async #bump(): Promise<void> {
    const write = { key: this.#account(), amount: 0, version: null };
    const operation = this.around.history.begin(this.#operationId(), [write], []);
    await this.#settle(operation, 'autocommit', false, () => this.#update(write, operation));
  }

  async #enter(): Promise<void> {
    const id = this.#operationId();
    const row = { tenant: this.#tenantOrHouse(), id: ledgerId(id, 0) };
    const operation = this.around.history.begin(id, [], [row]);
    await this.#settle(operation, 'autocommit', false, async () => {
      await this.send(enter(row.tenant, [row.id], 'one'));
    });
  }

  /** Several rows by one statement, or by several of one transaction. */
  async #enterSeveral(): Promise<void> {
    const id = this.#operationId();
    const tenant = this.#tenantOrHouse();
    const rows = Array.from({ length: 2 + this.random(3) }, (_, n) => ({ tenant, id: ledgerId(id, n) }));
    const operation = this.around.history.begin(id, [], rows);
    if (this.random(2) === 0)
      await this.#settle(operation, 'autocommit', false, async () => {
        const ids = rows.map((row) => row.id);
        await this.send(enter(tenant, ids, 'several'));
      });
    else
      await this.#settle(operation, 'commit', false, async () => {
        await this.#begin();
        for (const row of rows) {
          await this.send(enter(tenant, [row.id], 'each'));
          await this.#linger();
        }
      });
  }

  /** Money from one account to another, with an entry in the ledger. */
  async #transfer(crossing: boolean): Promise<void> {
    const id = this.#operationId();
    const keys = crossing ? this.#twoFarAccounts() : this.#twoOfOneTenant();
    const amount = 1 + this.random(9);
    const writes = keys.map((key, n) => ({ key, amount: n === 0 ? amount : -amount, version: null }));
    const [first] = writes as [AccountWrite, AccountWrite];
    const [tenant, account] = first.key.split('/').map(Number) as [number, number];
    const row = { tenant, id: ledgerId(id, 0) };
    const operation = this.around.history.begin(id, writes, [row]);
    await this.#settle(operation, 'commit', false, async () => {
      await this.#begin(crossing);
      for (const write of writes) {
        await this.#update(write, operation);
        await this.#linger();
      }
      await this.send(enterVersion(tenant, row.id, account, first.version as unknown as number));
    });
  }

  /** A transaction that is taken back. */
  async #think(): Promise<void> {
    const id = this.#operationId();
    const write = { key: this.#account(), amount: 1, version: null };
    const row = { tenant: this.#tenant(), id: ledgerId(id, 0) };
    const operation = this.around.history.begin(id, [write], [row]);
    operation.outcome = 'refused';
    operation.why = 'ROLLBACK';
    try {
      await this.#begin();
      await this.#update(write, operation);
      await this.#linger();
      await this.send(enter(row.tenant, [row.id], 'not to be'));
    } catch (error) {
      this.failed(error, 'in a transaction', true);
    }
    await this.giveUp();
  }

  async #annotate(): Promise<void> {
    if (this.#notes.size >= NOTES) return this.#erase();
    const note = { tenant: this.#tenant(), id: this.#operationId(), version: 1, mark: 1, views: 0 };
    await this.#change(null, note, 'autocommit', false, () =>
      this.query("INSERT INTO notes (tenant, id, version, body, mark) VALUES ($1, $2, 1, 'new', 1) RETURNING id", [
        note.tenant,
        note.id,
      ]),
    );
  }

  async #amend(): Promise<void> {
    const note = this.#someNote();
    if (note === undefined) return this.#annotate();
    if (!(await this.#look(note))) return;
    const version = note.version + 1;
    const next = { ...note, version, mark: version };
    const key = [note.tenant, note.id];
    const set = (what: string, values: readonly number[]) =>
      this.query(`UPDATE notes SET ${what} WHERE tenant = $1 AND id = $2 RETURNING id`, [...key, ...values]);
    switch (this.random(5)) {
      case 0: // both, by what they were
        return this.#change(note, next, 'autocommit', false, () => set('version = version + 1, mark = mark + 1', []));
      case 1:
        return this.#change(note, { ...note, views: note.views + 1 }, 'autocommit', false, () =>
          set('views = views + 1', []),
        );
      case 2: // what is not hot only, under a condition on what is
        return this.#change(note, note, 'autocommit', false, () =>
          this.query("UPDATE notes SET body = body || '!' WHERE tenant = $1 AND id = $2 AND mark = $3 RETURNING id", [
            ...key,
            note.mark,
          ]),
        );
      case 3:
        return this.#change(note, next, 'commit', false, async () => {
          await this.#begin(true);
          if (this.random(2) === 0)
            await this.query('SELECT mark FROM notes WHERE tenant = $1 AND id = $2 FOR UPDATE', key);
          const texts = ["version = $3, body = body || '.'", 'mark = $3'];
          const [first, last] = (this.random(2) === 0 ? texts : texts.toReversed()) as [string, string];
          await set(first, [version]);
          await this.#linger();
          return set(last, [version]);
        });
      default:
        return this.#change(note, next, 'autocommit', false, () =>
          set("version = $3, mark = $3, body = body || '.'", [version]),
        );
    }
  }

  async #erase(): Promise<void> {
    const note = this.#someNote();
    if (note === undefined) return;
    await this.#change(note, null, 'autocommit', false, () =>
      this.query('DELETE FROM notes WHERE tenant = $1 AND id = $2 RETURNING id', [note.tenant, note.id]),
    );
  }

  /** A note gets another tenant, as applications do it with several shards. */
  async #carry(): Promise<void> {
    const note = this.#someNote();
    if (note === undefined) return this.#annotate();
    const next = { ...note, tenant: this.#tenant() };
    await this.#change(note, next, 'commit', false, async () => {
      await this.#begin(true);
      const gone = await this.query('DELETE FROM notes WHERE tenant = $1 AND id = $2 RETURNING id', [
        note.tenant,
        note.id,
      ]);
      await this.#linger();
      await this.query(
        "INSERT INTO notes (tenant, id, version, body, mark, views) VALUES ($1, $2, $3, 'carried', $3, $4)",
        [next.tenant, next.id, next.version, next.views],
      );
      return gone;
    });
  }

  /** The same by an update of the key. */
  async #rekey(): Promise<void> {
    const note = this.#someNote();
    if (note === undefined) return this.#annotate();
    const next = { ...note, tenant: this.#tenant() };
    await this.#change(note, next, 'autocommit', true, () =>
      this.query('UPDATE notes SET tenant = $3 WHERE tenant = $1 AND id = $2 RETURNING id', [
        note.tenant,
        note.id,
        next.tenant,
      ]),
    );
  }

  /** Does something to a note of ours, of which one row is concerned. Nobody writes it but we. */
  async #change(
    before: Note | null,
    after: Note | null,
    way: 'autocommit' | 'commit',
    crossing: boolean,
    work: () => Promise<{ rows: unknown[] }>,
  ): Promise<void> {
    const { history } = this.around;
    const id = (before ?? after ?? { id: '' }).id;
    const operation: Operation = { id, accounts: [], ledger: [], outcome: 'open', why: '' };
    history.note(id, [before, after]);
    await this.#settle(
      operation,
      way,
      crossing,
      async () => {
        const { rows } = await work();
        if (rows.length !== 1)
          history.violate(`${this.name} changed ${rows.length} rows of note ${id}, which is its own`);
      },
      true,
    );
    this.#notes.delete(id);
    this.#changed.delete(id);
    if (operation.outcome === 'unknown') return; // it may still come to pass: nobody touches it any more
    const now = operation.outcome === 'acknowledged' ? after : before;
    this.#changed.set(id, { at: performance.now(), session: this.session });
    history.note(id, [now]);
    if (now !== null) this.#notes.set(id, now);
  }

  /** What this session has written it reads, wherever that is read. */
  async #readBack(): Promise<void> {
    const key = this.#last;
    if (key === null) return;
    const floor = this.floor(key);
    try {
      const [tenant, id] = key.split('/').map(Number) as [number, number];
      const { rows } = await this.send<AccountRow & Record<string, unknown>>(readAccount(tenant, id));
      const [row] = rows;
      if (rows.length !== 1 || row === undefined)
        this.around.history.violate(`${this.name} was shown ${rows.length} rows of account ${key}, which it wrote`);
      else this.around.history.shown(row, floor, this.name);
    } catch (error) {
      this.failed(error, 'read');
    }
  }

  /** What we have written is what we read. @returns whether it could be */
  async #look(note: Note): Promise<boolean> {
    const { at, session } = this.#changed.get(note.id) ?? { at: 0, session: 0 };
    const mayBeOld = session !== this.session && performance.now() - at <= this.stalenessMs;
    try {
      const columns = ['version', 'mark', 'views'] as const;
      const asked = this.random(2) === 0 ? columns : [columns[this.random(columns.length)] as (typeof columns)[number]];
      const { rows } = await this.query<Note & Record<string, unknown>>(
        `SELECT ${asked.map((column) => `${column}::int`).join(', ')} FROM notes WHERE tenant = $1 AND id = $2`,
        [note.tenant, note.id],
      );
      const [row] = rows;
      if (!mayBeOld && (rows.length !== 1 || asked.some((column) => row?.[column] !== note[column])))
        this.around.history.violate(`${this.name} reads ${JSON.stringify(rows)} of its note ${JSON.stringify(note)}`);
      return true;
    } catch (error) {
      this.failed(error, 'read');
      return false;
    }
  }

  #someNote(): Note | undefined {
    return [...this.#notes.values()][this.random(Math.max(1, this.#notes.size))];
  }

  #account(): AccountKey {
    return accountKey({ tenant: this.#tenantOrHouse(), id: 1 + this.random(ACCOUNTS) });
  }

  #twoOfOneTenant(): AccountKey[] {
    const tenant = this.#tenantOrHouse();
    return Array.from({ length: AT_HOME }, (_, n) => accountKey({ tenant, id: n + 1 }));
  }

  /** In one order, so that no two transfers wait for each other. */
  #twoFarAccounts(): AccountKey[] {
    const tenant = this.random(OF_HOUSE) === 0 ? HOUSE : 1 + this.random(TENANTS - 1);
    const other = tenant + 1 + this.random(TENANTS - tenant);
    return [tenant, other].map((t) => accountKey({ tenant: t, id: AT_HOME + 1 + this.random(ACCOUNTS - AT_HOME) }));
  }

  async #linger(): Promise<void> {
    if (this.random(6) === 0) await this.pause(this.random(40) === 0 ? DAWDLE_MS : LINGER_MS);
  }
}
