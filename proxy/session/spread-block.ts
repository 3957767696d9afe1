import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { asServerError } from '../backend/internal-statement.js';
import { blockCall, newKey, readingKey } from '../transactions/transaction-key.js';
import type { ErrorFields } from '../wire/error-response.js';
import { encodeQuery } from '../wire/frontend.js';
import { allDone } from './all-done.js';
import { answeredAtOnce } from './answer-limit.js';
import type { ClientSession } from './client-session.js';
import { type Execution, planOf } from './placement.js';
import type { Prelude } from './prelude.js';
import { hintForTie, lost, RefusedError } from './refusals.js';
import { checkIsolation } from './span.js';
import { tells } from './statement-ties.js';
import type { Transaction } from './transaction.js';

// A statement over several shards in the client's transaction block. It reads on connections of its own, where the block's changes are not to be seen; but
// for shards on which the block has written: there it reads on the block's.

/** How long a statement waits for a lock on other connections while its block may hold some, ms: who waits for those may have it. Such circles are found (`SpreadWait`), but only where the shards say who waits for whom. */
const LOCK_MS = 10_000;

const bound = (local: boolean) =>
  encodeQuery(
    `SELECT pg_catalog.set_config('lock_timeout', '${LOCK_MS}', ${local}) FROM pg_catalog.pg_settings WHERE name = 'lock_timeout' AND setting::int NOT BETWEEN 1 AND ${LOCK_MS}`,
  );
const BOUND = bound(true);
const BOUND_OUTSIDE = bound(false);

/** Transactions of one statement wait for each other, whatever the block's settings say, which is not their client's idleness. */
const NEVER_IDLE = encodeQuery('SET LOCAL idle_in_transaction_session_timeout = 0');

/** The isolation level; what has changed or locked rows has a transaction id, and so has what holds a table for itself. */
const STATE = `SELECT pg_catalog.current_setting('transaction_isolation') || CASE WHEN pg_catalog.pg_current_xact_id_if_assigned() IS NULL THEN '' WHEN EXISTS (
     SELECT FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND mode = 'AccessExclusiveLock') THEN ' locks' ELSE ' writes' END`;

const ISOLATION = Buffer.from('\n;SHOW transaction_isolation;ROLLBACK');

/** The client's transaction block, for a statement over several shards. */
export interface SpreadBlock {
  /** No server has heard of it. */
  readonly deferred: boolean;
  /** Its connections to shards on which it has written, perhaps. */
  readonly writers: ReadonlyMap<ShardName, Backend>;
  /** What a transaction on another connection says first, to have its settings; empty: nothing. */
  readonly opening: readonly Buffer[];
  /** What its connections are known by; null: nothing yet. */
  readonly key: bigint | null;
}

/** @throws RefusedError when the block has something that other connections cannot have */
export function checkSpread(transaction: Transaction, executions: readonly Execution[]): void {
  const { tied } = transaction.said;
  if (tied !== null)
    throw new RefusedError('0A000', `a statement for several shards cannot run in a transaction with ${tied}`, {
      hint: hintForTie(tied) ?? 'Run it before the transaction or behind its end, or give it a key.',
    });
  // What a query sets off is of its policies and views: nothing gives a column its default.
  if (executions.some((execution) => tells(execution) || planOf(execution)?.setsOffTelling !== undefined))
    throw new RefusedError(
      '0A000',
      'a statement for several shards that uses the time or the id of its transaction cannot run inside a transaction block',
      { hint: 'Pass the time as a parameter, or run the statement outside of the transaction.' },
    );
  if (transaction.writesReference)
    throw new RefusedError(
      '0A000',
      'a statement for several shards cannot run in a transaction that has written a reference table',
      { hint: 'Run it before that, or in a transaction of its own.' },
    );
}

/** The transaction block that the client is in; null: it is in none. @throws RefusedError when it cannot be read in on several shards */
export async function spreadBlock(session: Pick<ClientSession, 'lease' | 'services'>): Promise<SpreadBlock | null> {
  const { lease, services } = session;
  const { transaction } = lease;
  if (transaction === null) return null;
  const opening = transaction.said.sets ? settingsOf(transaction.said) : [];
  if (transaction.deferred) return { deferred: true, writers: new Map(), opening, key: null };
  const branches = lease.branches;
  const key = keyOf(session);
  // Savepoints may have taken away what it was known by before.
  const marks = key !== null && lease.span === null;
  const state = marks ? `${STATE} FROM ${blockCall(key)}` : STATE;
  const states = await allDone(
    branches.map((backend) => {
      const { connectTimeoutMs } = services.pool(backend.shard).options;
      return answeredAtOnce(backend, connectTimeoutMs, () => backend.value(encodeQuery(state)));
    }),
  ).catch((error: unknown) => {
    const gone = branches.find((backend) => backend.lost !== null);
    throw gone?.lost ? lost(gone.shard, gone.lost) : asServerError(error);
  });
  const writers = new Map<ShardName, Backend>();
  for (const [i, backend] of branches.entries()) {
    const [, isolation = '', state] = /^(.*?)(?: (locks|writes))?$/.exec(states[i] ?? '') ?? [];
    checkIsolation(isolation);
    if (state !== undefined) writers.set(backend.shard, backend);
    if (state === 'locks' && backend.shard === services.live.current.home) throw locksTables();
  }
  return { deferred: false, writers, opening, key: marks && writers.size === 0 ? readingKey(key) : key };
}

/** What a block that servers have heard of is known by. Null: deadlocks are not looked for. */
function keyOf({ lease, services }: Pick<ClientSession, 'lease' | 'services'>): bigint | null {
  const { span, transaction } = lease;
  if (services.spanning === null || transaction === null) return null;
  if (span !== null) return span.key;
  transaction.key ??= newKey();
  return transaction.key;
}

/** Of a block that no server has heard of: whether it is READ COMMITTED, as the server says. @throws RefusedError when it is not */
export async function checkDeferred(transaction: Transaction, backend: Backend): Promise<void> {
  const texts = transaction.prelude.flatMap((text) => [text, Buffer.from('\n;')]);
  const isolation = await backend.value(encodeQuery(Buffer.concat([...texts, ISOLATION]))).catch((error: unknown) => {
    throw asServerError(error);
  });
  checkIsolation(isolation ?? '');
}

/** Begins a transaction that is like the block. @param sql BEGIN @throws RefusedError when names mean something else there */
export async function beginLike(
  block: SpreadBlock | null,
  backend: Backend,
  sql: Buffer,
  session: Pick<ClientSession, 'lookup'>,
): Promise<void> {
  await backend.runInternal(sql);
  if (block === null) return;
  for (const text of block.opening) await backend.runInternal(encodeQuery(text));
  if (!block.deferred) await backend.runInternal(BOUND);
  if (block.opening.length === 0) return;
  await backend.runInternal(NEVER_IDLE);
  await backend.refreshSearchPath();
  checkNames(backend, session);
}

/** @throws RefusedError when names mean something else there */
export function checkNames(backend: Backend, session: Pick<ClientSession, 'lookup'>): void {
  if (session.lookup.agrees(backend.connection.parameters)) return;
  throw new RefusedError('0A000', `shard "${backend.shard}" does not agree on search_path or client_encoding`, {
    hint: 'Make the same ALTER ROLE … SET and ALTER DATABASE … SET on every shard.',
  });
}

/** Bounds the waits of a connection outside of transactions, too, until its settings are put in force anew. */
export async function boundOutside(block: SpreadBlock | null, backend: Backend): Promise<void> {
  if (block === null || block.deferred) return;
  backend.settings = null;
  await backend.runInternal(BOUND_OUTSIDE);
}

/** What the client is told that waited for a lock for too long. */
export function boundWorded(block: SpreadBlock, fields: ErrorFields): ErrorFields {
  if (fields.sqlstate !== '55P03' || block.deferred) return fields;
  return {
    ...fields,
    hint: `Inside of a transaction that may hold locks, a statement over several shards waits ${LOCK_MS} ms at most for a table. Run the transaction again.`,
  };
}

/** What of the block's statements gives another transaction its settings. Its isolation level is another one on purpose. */
function settingsOf({ begins, texts }: Prelude): Buffer[] {
  const others = texts.filter((text) => !begins.has(text));
  const settings = others.filter((text) => !/^\s*SET\s+(LOCAL\s+)?TRANSACTION\s/i.test(text.toString('latin1')));
  if (!settings.some((text) => /\btransaction(_|\b)|characteristics/i.test(text.toString('latin1')))) return settings;
  throw new RefusedError(
    '0A000',
    'a statement for several shards cannot run in a transaction that has settings of its transactions changed',
    { hint: 'Set them before BEGIN.' },
  );
}

function locksTables(): RefusedError {
  return new RefusedError(
    '0A000',
    'a statement for several shards cannot run in a transaction that holds an ACCESS EXCLUSIVE lock on the home shard',
    { hint: 'Lock in another mode, or run the statement before.' },
  );
}
