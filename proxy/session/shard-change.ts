import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { Footprint } from './footprint.js';
import type { Lease, LeaseClient } from './lease.js';
import type { Placement } from './placement.js';
import { queueNotice } from './queue-notice.js';
import { checkMove } from './refusals.js';
import { Span, type Spanning } from './span.js';
import type { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

/** Takes the client to another shard: by a connection there in place of the one that it has, or by a branch of its transaction. */
export class ShardChange {
  readonly #client: LeaseClient;
  readonly #lease: Lease;

  constructor(client: LeaseClient, lease: Lease) {
    this.#client = client;
    this.#lease = lease;
  }

  /** Null: the connection is there. */
  moveTo(shard: ShardName, { touches }: Footprint, wait: Wait): Promise<void> | null {
    const from = this.#lease.backend;
    if (from !== null) {
      if (this.#lease.pinned !== null && this.#lease.pinning.soft) this.#lease.pinning.clear();
      const open = from.status !== IDLE;
      const begun = open && this.#lease.transaction !== null && !this.#lease.transaction.clean;
      const spanning = begun ? this.#spanning(from) : null;
      if (typeof spanning === 'object' && spanning !== null) return this.#branchTo(shard, from, spanning, wait);
      checkMove(from.shard, shard, {
        pinned: this.#lease.pinned,
        transaction: begun,
        tied: spanning,
        batch: this.#lease.unsynced && this.#lease.unsyncedDirty,
        keyspaces: [
          ...new Set([...(this.#lease.transaction?.touches ?? []), ...touches].map((touch) => touch.keyspace)),
        ],
      });
      if (this.#lease.unsynced || open) return this.#leave(from, open);
      this.#lease.giveBack();
    }
    const idle = this.#client.services.pool(shard).takeIdle();
    if (idle === null) return this.#acquire(shard, wait);
    this.#lease.use(idle);
    return null;
  }

  /** What a transaction needs to have a branch on another shard too; if it cannot, why, where that is not seen by `checkMove`. */
  #spanning(from: Backend): Spanning | string | null {
    const { spanning } = this.#client.services;
    const { transaction } = this.#lease;
    if (spanning === null || this.#lease.pinned !== null || this.#lease.unsynced || transaction === null) return null;
    if (from.status !== IN_TRANSACTION || transaction.opening) return null;
    return transaction.said.tied ?? spanning;
  }

  /** Goes on with the transaction's branch on `shard`, where nothing has been done yet, perhaps. */
  async #branchTo(shard: ShardName, from: Backend, spanning: Spanning, wait: Wait): Promise<void> {
    this.#lease.span ??= await Span.begin(this.#client, this.#lease, spanning);
    const { span } = this.#lease;
    const branch = await span.take(shard, wait);
    // The connection that it comes from may have been lost meanwhile, and the client with it.
    if (this.#lease.backend !== from || this.#lease.span !== span) {
      span.park(branch);
      span.discard();
      wait.throwIfAborted();
      throw new ForeshardError('08006', `the connection to shard "${from.shard}" was lost`);
    }
    span.park({ backend: from, transaction: this.#lease.transaction as Transaction });
    branch.backend.hand(this.#lease.owner);
    this.#lease.backend = branch.backend;
    this.#lease.transaction = branch.transaction;
    this.#lease.serverSettings.tellParameters(branch.backend);
  }

  /** The transaction, which is open on `from`, gets a branch on the shard of the hot half too, where nothing runs yet. */
  async openHot(from: Backend, { hotShard, touches }: Placement & { kind: 'halves' }, wait: Wait): Promise<void> {
    const spanning = this.#spanning(from);
    if (typeof spanning !== 'object' || spanning === null) {
      const keyspaces = [...new Set(touches.map((touch) => touch.keyspace))];
      checkMove(from.shard, hotShard, {
        pinned: this.#lease.pinned,
        transaction: true,
        tied: spanning,
        batch: false,
        keyspaces,
      });
      return;
    }
    this.#lease.span ??= await Span.begin(this.#client, this.#lease, spanning);
    const { span } = this.#lease;
    const branch = await span.take(hotShard, wait);
    span.park(branch);
    if (this.#lease.backend === from && this.#lease.span === span) return;
    span.discard();
    wait.throwIfAborted();
    throw new ForeshardError('08006', `the connection to shard "${from.shard}" was lost`);
  }

  /** Ends what is open there and gives the connection back. */
  async #leave(from: Backend, open: boolean): Promise<void> {
    if (this.#lease.unsynced) await this.#lease.finishBatch(from);
    if (open) await this.#lease.rollBack(from);
    this.#lease.giveBack();
    if (open && this.#lease.transaction !== null) this.#lease.defer(this.#lease.transaction.said);
  }

  async #acquire(shard: ShardName, wait: Wait): Promise<void> {
    const { activity, services } = this.#client;
    const acquired = services.pool(shard).acquire(wait, () => this.#client.write(queueNotice(shard)));
    this.#lease.use(await activity.waitFor(acquired));
  }
}
