import type { Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { encodeQuery } from '../wire/frontend.js';
import { type Footprint, stillOn } from './footprint.js';
import { arrivedSince } from './refusals.js';
import type { Transaction } from './transaction.js';

const SHOW_ISOLATION = encodeQuery('SHOW transaction_isolation');

/**
 * Rows that came to a shard while a transaction was open there are not in a snapshot that it took before: with REPEATABLE READ and SERIALIZABLE it
 * would see none of them. To be called before a statement of a transaction that has begun is sent to its shard.
 *
 * @param topology of now
 * @param inBatch a batch is open, in which nothing can be asked
 * @returns resolves when the transaction may see them, and need not be asked about again; null: it is known that it may
 * @throws RefusedError 40001
 */
export function checkSnapshot(
  backend: Backend,
  transaction: Transaction,
  placement: Footprint,
  topology: Topology,
  inBatch: boolean,
): Promise<void> | null {
  const { since } = transaction;
  if (since === null || since === topology || transaction.seesAll || stillOn(backend.shard, placement, since))
    return null;
  if (inBatch) throw arrivedSince();
  return backend.value(SHOW_ISOLATION).then((isolation) => {
    if (isolation === null || !isolation.startsWith('read ')) throw arrivedSince();
    transaction.seesAll = true;
  });
}
