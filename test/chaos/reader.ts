import { Client } from './client.js';
import { type AccountRow, accountKey, type Note } from './history.js';
import { allAccountKeys, HOUSE, READ_ALL_ACCOUNTS, readAccount, readAccounts, readEntry } from './tables.js';
import { ACCOUNTS, COUNTRIES, OPENING_BALANCE, TENANTS } from './world.js';

const ALL = TENANTS * ACCOUNTS;
/** The longest time that a transaction is left open between its reads, ms. */
const LINGER_MS = 200;
/** Between two reads of who may read what a replica shows, at most, ms. */
const BUSY_MS = 40;

/** Reads in every way, and compares with what anybody was told before. */
export class Reader extends Client {
  protected override async act(): Promise<void> {
    try {
      await this.#read();
    } catch (error) {
      this.failed(error, 'read');
      await this.giveUp();
    }
  }

  /** Of those that a replica shows, mostly, while there is one that may be asked. */
  #someTenant(): number {
    const { shown } = this.around;
    if (this.stalenessMs > 0 && shown.tenants !== null && this.random(4) > 0) {
      const [from, to] = shown.tenants;
      return from + this.random(to - from);
    }
    return HOUSE + this.random(TENANTS + 1 - HOUSE);
  }

  protected override get thinkMs(): number {
    return this.stalenessMs > 0 && this.around.shown.tenants !== null ? BUSY_MS : super.thinkMs;
  }

  #read(): Promise<void> {
    const dice = this.random(100);
    if (dice < 40) return this.#account();
    if (dice < 60) return this.#tenant();
    if (dice < 68) return this.#everything();
    if (dice < 88) return this.#ledger();
    if (dice < 90) return this.#reference();
    if (dice < 96) return this.#notes();
    return this.#twice();
  }

  async #account(): Promise<void> {
    const { history } = this.around;
    const tenant = this.#someTenant();
    const id = 1 + this.random(ACCOUNTS);
    const key = accountKey({ tenant, id });
    const floor = this.floor(key);
    const { rows } = await this.send<AccountRow & Record<string, unknown>>(readAccount(tenant, id));
    if (rows.length === 1) this.#shown(rows[0] as AccountRow, floor, this.name);
    else history.violate(`${this.name} was shown ${rows.length} rows of account ${key}`);
  }

  async #tenant(): Promise<void> {
    const tenant = this.#someTenant();
    const floors = this.#floors();
    const rows = await this.#accountsOf(tenant);
    this.#check(rows, floors, ACCOUNTS, `tenant ${tenant}`);
  }

  /** Each account once, wherever it is and whatever is under way. */
  async #everything(): Promise<void> {
    const floors = this.#floors();
    const { text, house } = READ_ALL_ACCOUNTS[
      this.random(READ_ALL_ACCOUNTS.length)
    ] as (typeof READ_ALL_ACCOUNTS)[number];
    const { rows } = await this.query<AccountRow & Record<string, unknown>>(text);
    this.#check(rows, floors, house ? ALL + ACCOUNTS : ALL, `everything (${text})`);
  }

  /** What was acknowledged is there. */
  async #ledger(): Promise<void> {
    const row = this.around.history.acknowledgedRow(this.random, performance.now() - this.stalenessMs);
    if (row === undefined) return;
    const { rows } = await this.send(readEntry(row.tenant, row.id));
    if (rows.length !== 1)
      this.around.history.violate(
        `${this.name} was shown ${rows.length} rows of ledger row ${row.tenant} ${row.id}, which was acknowledged`,
      );
  }

  async #reference(): Promise<void> {
    const { rows } = await this.query<{ n: number }>('SELECT count(*)::int AS n FROM countries');
    if (rows[0]?.n !== COUNTRIES) this.around.history.violate(`${this.name} was shown ${rows[0]?.n} countries`);
  }

  /** No row is half of one version and half of another. */
  async #notes(): Promise<void> {
    const everywhere = 'SELECT tenant::int, id, version::int, mark::int FROM notes';
    const all = this.random(3) === 0;
    const { rows } = await (all
      ? this.query<Note & Record<string, unknown>>(
          `${everywhere}${this.random(2) === 0 ? '' : ' WHERE mark <> version'}`,
        )
      : this.query<Note & Record<string, unknown>>(`${everywhere} WHERE tenant = $1`, [1 + this.random(TENANTS)]));
    for (const note of rows)
      if (note.mark !== note.version)
        this.around.history.violate(`${this.name} was shown a torn note: ${JSON.stringify(note)}`);
  }

  /** One snapshot stays one. */
  async #twice(): Promise<void> {
    const tenant = this.#someTenant();
    const floors = this.#floors();
    await this.query('BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY');
    const before = await this.#accountsOf(tenant);
    await this.pause(LINGER_MS);
    const after = await this.#accountsOf(tenant);
    await this.query('COMMIT');
    this.#check(before, floors, ACCOUNTS, `tenant ${tenant}`);
    if (JSON.stringify(before) !== JSON.stringify(after))
      this.around.history.violate(
        `${this.name} was shown two things by one snapshot: ${JSON.stringify([before, after])}`,
      );
  }

  async #accountsOf(tenant: number): Promise<AccountRow[]> {
    return (await this.send<AccountRow & Record<string, unknown>>(readAccounts(tenant))).rows;
  }

  #shown(row: AccountRow, floor: number, who: string): void {
    this.around.history.shown(row, floor, who);
    this.knows(accountKey(row), row.version);
  }

  #floors(): (key: string) => number {
    const floors = new Map(allAccountKeys().map((key) => [key, this.floor(key)]));
    return (key) => floors.get(key) ?? 0;
  }

  #check(rows: readonly AccountRow[], floors: (key: string) => number, expected: number, what: string): void {
    const { history } = this.around;
    const seen = new Set<string>();
    /** Of the accounts whose money stays with the tenant. */
    const sums = new Map<number, number>();
    for (const row of rows) {
      const key = accountKey(row);
      if (seen.has(key)) history.violate(`${this.name} was shown account ${key} twice in ${what}`);
      seen.add(key);
      this.#shown(row, floors(key), `${this.name} (${what})`);
      if (row.id <= 2) sums.set(row.tenant, (sums.get(row.tenant) ?? 0) + row.balance);
    }
    if (seen.size !== expected)
      history.violate(`${this.name} was shown ${seen.size} of ${expected} accounts in ${what}`);
    for (const [tenant, sum] of sums)
      if (sum !== 2 * OPENING_BALANCE)
        history.violate(`${this.name} was shown ${sum} in the accounts of tenant ${tenant}, in ${what}`);
  }
}
