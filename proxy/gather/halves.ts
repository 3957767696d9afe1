import { randomBytes } from 'node:crypto';
import { quoteLiteral, quoteTable } from '../../topology/quote.js';
import { type ShardName, type TableName, type Topology, tableId } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import {
  type HalvedTable,
  type HalvesLooks,
  halvesLooks,
  isHalved,
  type Looked,
  lookSql,
  readLook,
  type Seeds,
  unfiltered,
} from '../router/gather-halves.js';
import type { GatheredTable } from '../router/gather-program.js';
import { allDone } from '../session/all-done.js';
import { RefusedError } from '../session/refusals.js';
import { type PreparedThen, preparedThenSql, readPreparedThen, unsettledSql } from './unsettled.js';

/** How long to wait before what did not fit together is read again, ms, one after the other; then the client is told. Commits on several shards take a few. */
export const AGAIN_MS: readonly number[] = [0, 2, 4, 8, 16, 32, 64, 128, 256, 500, 500, 500];

/** The halves that were read are not those of one moment, or it cannot be told. */
export class TornError extends Error {
  constructor(table: TableName) {
    super(`the halves of rows of ${tableId(table)} are not of one moment`);
    this.name = 'TornError';
  }
}

export function stillTorn(): RefusedError {
  return new RefusedError(
    '40001',
    'rows were being changed on two shards at once, again and again, and could not be read as of one moment',
    {
      hint: 'Retry the query. Restrict it to fewer primary keys, if it can be.',
    },
  );
}

/** Has a shard say the one value of a query of ours. */
export type Ask = (backend: Backend, sql: string) => Promise<string>;

/** What is known of one table. */
interface Watched {
  readonly table: HalvedTable;
  readonly looks: HalvesLooks;
  /** By shard: what its first halves were before anything else was read. */
  readonly first: Map<ShardName, Looked>;
  /** In the snapshots from which the rows are read. */
  readonly base: Map<ShardName, Looked>;
  readonly hot: Map<ShardName, Looked>;
}

/** Where rows are read. */
export interface HalvesPlaces {
  readonly topology: Topology;
  /** Those that the query goes to. */
  readonly shards: readonly ShardName[];
  /** Of them, those on which the client's own transaction reads, with what it has changed: each statement there sees another moment. */
  readonly lent: ReadonlySet<ShardName>;
}

/**
 * Sees to it that both halves of each row that is read are of one moment, though two shards have no common snapshot: their first halves are looked at before
 * and after the snapshot of the others, and nobody who has committed on one of the two shards only has touched them. Why that is enough is in
 * docs/decisions/2026-11-22-reading-both-halves.md. Its steps are to be taken in their order.
 *
 * Each shard is looked at by the connection that reads its rows: outside of the transaction that has the snapshot, or in the client's own. Who is prepared is
 * asked on a connection that has written nothing: see `preparedThenSql`.
 */
export class HalvesReading {
  readonly #watched: readonly Watched[];
  readonly #home: ShardName;
  readonly #lent: ReadonlySet<ShardName>;
  readonly #ask: Ask;
  readonly #seeds: Seeds;
  /** By shard, as of the last list. */
  readonly #prepared = new Map<ShardName, PreparedThen>();

  /** @param filtered whether the rows that are read are those of the filters */
  constructor(tables: readonly GatheredTable[], filtered: boolean, { topology, shards, lent }: HalvesPlaces, ask: Ask) {
    this.#home = topology.home;
    this.#lent = lent;
    this.#ask = ask;
    // Nobody who chooses rows can know which of them would add up to the same.
    const random = randomBytes(16);
    this.#seeds = { keys: random.readBigInt64BE(0), versions: random.readBigInt64BE(8) };
    this.#watched = tables.filter(isHalved).map((table) => ({
      table,
      looks: halvesLooks(filtered ? table : unfiltered(table), topology, shards),
      first: new Map(),
      base: new Map(),
      hot: new Map(),
    }));
  }

  /** The home shard's rows are read in the workspace, which cannot look again: its snapshot is the last one. */
  get #homeIsLast(): boolean {
    return !this.#lent.has(this.#home);
  }

  /** Before any snapshot is taken. @param readers of all shards @param witnesses of all shards: ask who is prepared */
  async ahead(readers: readonly Backend[], witnesses: readonly Backend[]): Promise<void> {
    await this.#each(readers, async ({ table, looks, first }, backend) => {
      const rows = looks.base.get(backend.shard);
      if (rows !== undefined) first.set(backend.shard, await this.#look(backend, table, rows, null));
    });
    // Behind all of these: who is committed with a first half that has been seen, and not yet with the other, is prepared now.
    const later = (shard: ShardName) => shard === this.#home && this.#homeIsLast;
    await this.#list(witnesses, ({ table, looks }, shard) =>
      looks.hot.has(shard) && !later(shard) ? [table.halves.hot] : [],
    );
  }

  /** In the transactions of readers, before anything else: these are their snapshots. Those of the client's own transaction: see `asked`. */
  async inSnapshots(readers: readonly Backend[]): Promise<void> {
    await this.#each(readers, async (watched, backend) => {
      const { shard } = backend;
      for (const [looks, sql] of this.#asked(watched, shard)) looks.set(shard, readLook(await this.#ask(backend, sql)));
    });
  }

  /** What is to be asked in one statement with the rows on a shard where each statement sees another moment: each is a query of one value, for `told`. */
  asked(shard: ShardName): readonly string[] {
    return this.#watched.flatMap((watched) => this.#asked(watched, shard).map(([, sql]) => sql));
  }

  told(shard: ShardName, values: readonly string[]): void {
    const all = this.#watched.flatMap((watched) => this.#asked(watched, shard).map(([looks]) => looks));
    for (const [i, looks] of all.entries()) looks.set(shard, readLook(values[i] as string));
  }

  /** When all others have their snapshots, and the home shard perhaps has not, by a connection to it that has written nothing. */
  async aheadAtHome(home: Backend): Promise<void> {
    // Who is committed with another half that has been seen, and not yet with the first, is prepared now.
    await this.#list([home], ({ table, looks }, shard) => [
      ...(looks.base.has(shard) ? [table] : []),
      ...(looks.hot.has(shard) ? [table.halves.hot] : []),
    ]);
  }

  /** When all snapshots have been looked at. @throws TornError */
  check(): void {
    for (const { table, first, base, hot } of this.#watched) {
      const ours = [...base.values()];
      const theirs = [...hot.values()];
      const isOne = [...first].every(([shard, before]) => before.versions === base.get(shard)?.versions);
      const sameKeys =
        totalOf(ours, 'rows') === totalOf(theirs, 'rows') && totalOf(ours, 'keys') === totalOf(theirs, 'keys');
      if (!isOne || !sameKeys || [...ours, ...theirs].some(({ unsettled }) => unsettled)) throw new TornError(table);
    }
  }

  /**
   * When all snapshots have been taken, and the readers' transactions are over.
   * @param readers of all shards but the home shard, and its too where it has been lent @param witnesses of all shards but the home shard @throws TornError
   */
  async behind(readers: readonly Backend[], witnesses: readonly Backend[]): Promise<void> {
    await this.#list(witnesses, ({ table, looks }, shard) => (looks.base.has(shard) ? [table] : []));
    await this.#each(readers, async ({ table, looks, first }, backend) => {
      const rows = looks.base.get(backend.shard);
      if (rows === undefined) return;
      const last = await this.#look(backend, table, rows, this.#prepared.get(backend.shard) ?? null);
      if (last.unsettled || last.versions !== first.get(backend.shard)?.versions) throw new TornError(table);
    });
  }

  /** What is looked at in the snapshot of a shard. */
  #asked({ table, looks, base, hot }: Watched, shard: ShardName): [Map<ShardName, Looked>, string][] {
    const [rows, others] = [looks.base.get(shard), looks.hot.get(shard)];
    const prepared = this.#prepared.get(shard) ?? null;
    const isLast = shard === this.#home && this.#homeIsLast;
    return [
      ...(rows === undefined ? [] : [[base, this.#sqlOf(table, rows, isLast ? prepared : null)] as const]),
      ...(others === undefined ? [] : [[hot, this.#sqlOf(table, others, prepared)] as const]),
    ].map(([looked, sql]) => [looked, sql]);
  }

  async #look(backend: Backend, table: HalvedTable, rows: string, prepared: PreparedThen | null): Promise<Looked> {
    return readLook(await this.#ask(backend, this.#sqlOf(table, rows, prepared)));
  }

  #sqlOf(table: HalvedTable, rows: string, prepared: PreparedThen | null): string {
    return lookSql(rows, table.halves.primaryKey, this.#seeds, prepared && unsettledSql(prepared));
  }

  /** Takes note of what is prepared. @param tablesOf in which of the tables of a shard */
  async #list(
    backends: readonly Backend[],
    tablesOf: (watched: Watched, shard: ShardName) => readonly TableName[],
  ): Promise<void> {
    await allDone(
      backends.map(async (backend) => {
        const { shard } = backend;
        const tables = this.#watched.flatMap((watched) => tablesOf(watched, shard));
        if (tables.length === 0) return;
        const sql = preparedThenSql(tables.map((table) => quoteLiteral(quoteTable(table))));
        this.#prepared.set(shard, readPreparedThen(await this.#ask(backend, sql)));
      }),
    );
  }

  /** On all at once, one table after the other. */
  async #each(
    backends: readonly Backend[],
    look: (watched: Watched, backend: Backend) => Promise<void>,
  ): Promise<void> {
    await allDone(
      backends.map(async (backend) => {
        for (const watched of this.#watched) await look(watched, backend);
      }),
    );
  }
}

function totalOf(looked: readonly Looked[], of: 'rows' | 'keys'): bigint {
  return looked.reduce((sum, one) => sum + one[of], 0n);
}
