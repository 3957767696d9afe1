import type { Logger } from 'pino';
import { CLEAN_FOR_MS, type Decisions } from '../../topology/catalog/decisions.js';
import { type CoordinatorId, endPrepared, type Outcome, readPrepared } from '../../topology/prepared-transactions.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import { Again } from '../again.js';
import { type LeftBranch, type Leftover, Leftovers } from './leftovers.js';
import { withOwnConnection } from './own-connection.js';

/** From the end of one round to the beginning of the next, ms. */
const ROUND_MS = 5_000;

export interface ResolverOptions {
  readonly decisions: Decisions;
  readonly topology: () => Topology;
  readonly logger: Logger;
}

/**
 * Ends transactions on several shards that their coordinators have not: what this process has left behind, and what those have whose proxy's lease
 * has ended. These are fenced first: from then on they decide nothing, so that what they have not decided can be rolled back.
 *
 * Several may be at it at once, in any number of processes: what ends a transaction is the same for all of them, and who comes second finds it ended.
 */
export class Resolver {
  readonly #options: ResolverOptions;
  readonly #left = new Leftovers();
  readonly #rounds = new Again(() => this.#round());
  /** Shards that could not be looked at the last time. */
  readonly #away = new Set<ShardName>();
  /** The last round that was asked for. */
  #last: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | null = null;
  #closed = false;

  constructor(options: ResolverOptions) {
    this.#options = options;
  }

  /** The first round begins now. */
  start(): void {
    void this.round().then(() => this.#schedule());
  }

  /** Takes over what a coordinator of this process could not end, and sets to work on it. */
  leave(leftover: Leftover): void {
    this.#left.add(leftover);
    if (!this.#closed) void this.round();
  }

  /** Whether anything of this coordinator of ours may still be somewhere. */
  hasLeft(coordinator: CoordinatorId): boolean {
    return this.#left.has(coordinator);
  }

  /** One round that begins after this call; calls made meanwhile share one more. Never rejects. */
  round(): Promise<void> {
    this.#last = this.#rounds.run().catch((error: unknown) => {
      this.#options.logger.warn(
        { err: error },
        'could not look after transactions on several shards; it is tried again',
      );
    });
    return this.#last;
  }

  /** A last round for what this process has left behind. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    await (this.#left.all.length > 0 ? this.round() : this.#last);
  }

  #schedule(): void {
    if (this.#closed) return;
    this.#timer = setTimeout(async () => {
      await this.round();
      this.#schedule();
    }, ROUND_MS);
  }

  async #round(): Promise<void> {
    // Each by itself: what is decided here needs no catalog.
    const [own, others] = await Promise.allSettled([this.#endOwn(), this.#closed ? null : this.#endOthers()]);
    if (own.status === 'rejected') throw own.reason;
    if (others.status === 'rejected') throw others.reason;
  }

  async #endOwn(): Promise<void> {
    const notKnown = this.#left.all.filter(({ outcome }) => outcome === null);
    const settled = await Promise.allSettled([each(notKnown, (leftover) => this.#settle(leftover))]);
    const now = performance.now();
    const ended = new Set<LeftBranch>();
    const byShard = new Map<ShardName, { branch: LeftBranch; outcome: Outcome }[]>();
    for (const { outcome, branches } of this.#left.all)
      for (const branch of branches) {
        if (outcome === null) continue;
        const list = byShard.get(branch.shard) ?? [];
        list.push({ branch, outcome });
        byShard.set(branch.shard, list);
      }
    await Promise.all(
      [...byShard].map(([shard, list]) =>
        this.#onShard(shard, async (client) => {
          await each(list, async ({ branch, outcome }) => {
            const found = await endPrepared(client, branch.gid, outcome);
            if (found) this.#log(shard, branch.gid, outcome);
            if (found || branch.until === null || branch.until < now) ended.add(branch);
          });
        }),
      ),
    );
    const finished: Leftover[] = [];
    for (const leftover of this.#left.all) {
      const branches = leftover.branches.filter((branch) => !ended.has(branch));
      if (branches.length === leftover.branches.length && branches.length > 0) continue;
      this.#left.replace(leftover, branches.length === 0 ? null : { ...leftover, branches });
      if (branches.length === 0) finished.push(leftover);
    }
    // That nothing was to be committed stays: a statement that says otherwise may still be on its way.
    for (const { coordinator, number } of finished.filter(({ outcome }) => outcome === 'commit'))
      await this.#options.decisions.forget(coordinator, [number]);
    if (settled[0].status === 'rejected') throw settled[0].reason;
  }

  async #settle(leftover: Leftover): Promise<void> {
    const outcome = await this.#options.decisions.settle(leftover);
    // The coordinator is gone, and goes only when nothing of it is left anywhere.
    this.#left.replace(leftover, outcome === null ? null : { ...leftover, outcome });
  }

  async #endOthers(): Promise<void> {
    const { decisions, logger } = this.#options;
    for (const { id, proxy } of await decisions.fenceExpired())
      logger.info({ coordinator: id, proxy }, 'the transactions of a proxy whose lease has ended are looked after');
    const due = new Set(await decisions.due());
    if (due.size === 0) return;
    const found = new Set<CoordinatorId>();
    const seen: boolean[] = await Promise.all(
      [...this.#options.topology().shards.keys()].map((shard) =>
        this.#onShard(shard, async (client) => {
          const prepared = (await readPrepared(client)).filter(({ coordinator }) => due.has(coordinator));
          for (const one of prepared) found.add(one.coordinator);
          await each(prepared, async (one) => {
            const outcome = (await decisions.isDecided(one)) ? 'commit' : 'rollback';
            if (await endPrepared(client, one.gid, outcome)) this.#log(shard, one.gid, outcome);
          });
        }),
      ),
    );
    if (found.size > 0) await decisions.foundLeft([...found]);
    const clean = [...due].filter((id) => !found.has(id));
    if (clean.length > 0 && seen.every(Boolean)) await decisions.foundClean(clean);
  }

  /** @returns false when the shard could not be reached, or `use` has failed there */
  async #onShard(shard: ShardName, use: Parameters<typeof withOwnConnection<void>>[2]): Promise<boolean> {
    try {
      await withOwnConnection(this.#options.topology(), shard, use);
      this.#away.delete(shard);
      return true;
    } catch (error) {
      if (!this.#away.has(shard))
        this.#options.logger.warn(
          { err: error, shard },
          'transactions that were left prepared on a shard cannot be ended there yet; it is tried again',
        );
      this.#away.add(shard);
      return false;
    }
  }

  #log(shard: ShardName, gid: string, outcome: Outcome): void {
    this.#options.logger.info({ shard, gid, outcome }, 'a transaction that was left prepared has been ended');
  }
}

/** Does it for all of them, one after the other, also if it cannot be done for some. @throws the first error */
async function each<T>(list: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  const errors: unknown[] = [];
  for (const one of list)
    await work(one).catch((error: unknown) => {
      errors.push(error);
    });
  if (errors.length > 0) throw errors[0];
}

/** Until when a branch is looked for whose connection was lost while it was being prepared, on performance.now()'s clock. */
export function lateUntil(now: number): number {
  return now + CLEAN_FOR_MS;
}
