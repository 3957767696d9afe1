import { ForeshardError } from '../../topology/errors.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { inWords } from '../router/layout.js';
import { ServerError } from '../wire/error-response.js';

/** The statement cannot run; the client gets this error, and its transaction fails as it would in PostgreSQL. */
export class RefusedError extends ForeshardError {}

/** Getting ready again this often in a row means that shards disagree on what names mean. */
const AGAIN = 10;

/** To be called before getting ready once more, `times` having done so already. @throws RefusedError beyond what can be a coincidence. */
export function checkAgain(times: number): void {
  if (times < AGAIN) return;
  throw new RefusedError('0A000', 'the shards do not agree on search_path or client_encoding for this user', {
    hint: 'Make the same ALTER ROLE … SET and ALTER DATABASE … SET on every shard.',
  });
}

/** Its values are known to the server alone: SET LOCAL says the same, and is said again elsewhere. */
export const SETS_LOCALLY = 'set_config';

/** A server takes the text, and the proxy's parser does not: where its rows are is not known. */
export function unread(): RefusedError {
  return new RefusedError(
    '0A000',
    'the statement cannot be routed: it is not understood well enough to be exact on several shards',
    {
      hint: 'Its syntax is that of another version than PostgreSQL 18, or it is nested too deeply. Write it in another way.',
    },
  );
}

/** What to do about what ties a transaction; null: nothing that helps in all cases. */
export const hintForTie = (tied: string | null): string | null =>
  tied === SETS_LOCALLY ? 'Use SET LOCAL in place of set_config(…, true).' : null;

/** What ties a session to its server connection. */
export interface Ties {
  /** Why it is pinned; null: it is not. */
  readonly pinned: string | null;
  /** Its transaction has done something there. */
  readonly transaction: boolean;
  /** Why it cannot have a part on another shard as well, if that could be; null otherwise. */
  readonly tied: string | null;
  /** Its open batch has done something there. */
  readonly batch: boolean;
  /** What it has used there, and what the statement uses. */
  readonly keyspaces: readonly KeyspaceName[];
}

/** @throws RefusedError when a statement that belongs to `to` would have the session leave what it has at `from` */
export function checkMove(from: ShardName, to: ShardName, ties: Ties): void {
  const belongs = `this statement belongs to shard "${to}"`;
  if (ties.pinned !== null)
    throw new RefusedError(
      '0A000',
      `the session keeps its connection to shard "${from}" (${ties.pinned}), and ${belongs}`,
      { hint: 'Use another session for it.' },
    );
  if (ties.transaction)
    throw new RefusedError(
      '0A000',
      `the transaction runs on shard "${from}"${ties.tied === null ? '' : ` (${ties.tied})`}, and ${belongs}`,
      {
        hint:
          hintForTie(ties.tied) ??
          (ties.keyspaces.length < 2
            ? 'Keep each transaction to the keys of one shard.'
            : `Keep each transaction to the keys of one shard: the rows of keyspaces ${inWords(ties.keyspaces)} are not on the same.`),
      },
    );
  if (ties.batch)
    throw new RefusedError('0A000', `the batch runs on shard "${from}", and ${belongs}`, {
      hint: 'Send a Sync between statements for keys of different shards.',
    });
}

/** Of the parts of a transaction each began at its own time. `first`: where the transaction did. */
export function toldBySeveral(first: ShardName): RefusedError {
  return new RefusedError(
    '0A000',
    `the statement uses the time or the id of its transaction, which is that of its part on shard "${first}", and belongs to another shard`,
    {
      hint: 'Pass the time as a parameter, also for columns that have it by default; or do this in a transaction of its own.',
    },
  );
}

/** The end of a failed transaction, and rows, in one message: where the rows are is not looked at before the first has been done. */
export function behindFailed(): RefusedError {
  return new RefusedError(
    '0A000',
    'a statement behind the end of a failed transaction, in one message with it, is not supported on several shards',
    {
      hint: 'Send it when ROLLBACK is answered.',
    },
  );
}

/** A statement for several shards, where one server connection has to stay. `pinned`: why the session is, or null. */
export function fanOutRefused(pinned: string | null): RefusedError {
  const where = pinned === null ? 'inside of an open batch' : `in this session (${pinned})`;
  return new RefusedError('0A000', `a statement for several shards cannot run ${where} yet`, {
    hint: 'Give the statement a key, or run it on its own.',
  });
}

/** A statement that writes both halves of rows, behind others of its batch. */
export function notInBatch(): RefusedError {
  return new RefusedError(
    '0A000',
    'a statement that writes columns that are on another shard than their rows cannot stand behind others in a batch',
    { hint: 'Send a Sync before it.' },
  );
}

/** After a flip: what the open transaction touches has left its shard. */
export function transactionMoved(): RefusedError {
  return new RefusedError('40001', 'the range of this transaction has moved to another shard', {
    hint: 'Retry the transaction.',
  });
}

/** A flip has not waited for it any longer. */
export function transactionEnded(): RefusedError {
  return new RefusedError('40001', 'the transaction was ended because its range is being moved to another shard', {
    hint: 'Nothing of it was committed. Retry the transaction.',
  });
}

/** The transaction's snapshot is older than the arrival of what it asks for. */
export function arrivedSince(): RefusedError {
  return new RefusedError('40001', 'the range of these rows has come to this shard since the transaction began', {
    hint: 'Retry the transaction.',
  });
}

/** What is asked, or was, touches rows that may have been elsewhere while the proxy had no lease. */
export function mayNotSay(): RefusedError {
  return new RefusedError(
    '40001',
    'the range of these rows may have moved while this proxy was cut off from the catalog',
    {
      hint: 'Retry the transaction.',
    },
  );
}

/** What a client is told whose server connection is lost. @param unknown whether what it asked for has been committed */
export function lost(shard: ShardName, error: Error, unknown = false): ForeshardError {
  // The server may have said why, of itself (an idle transaction's time-out, a shutdown).
  if (error.cause instanceof ServerError) return error.cause;
  return new ForeshardError(
    unknown ? '08007' : '08006',
    `the connection to shard "${shard}" was lost${unknown ? '; whether the transaction was committed is unknown' : ''}`,
    { detail: error.message },
  );
}
