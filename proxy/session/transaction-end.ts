import type { ForeshardError } from '../../topology/errors.js';
import type { Backend } from '../backend/backend.js';
import { encodeQuery } from '../wire/frontend.js';
import { FAILED, IDLE } from '../wire/transaction-status.js';
import type { ClientOutput } from './client-output.js';
import type { CopyIn } from './copy-in.js';
import type { ExtendedProtocol } from './extended.js';
import { failAt } from './failing-query.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { MessageStream } from './message-stream.js';
import { transactionEnded } from './refusals.js';
import type { ServerReplies } from './server-replies.js';
import { Transaction } from './transaction.js';
import type { Units } from './units.js';

const BEGIN = encodeQuery('BEGIN');
const BEGIN_TEXT = Buffer.from('BEGIN');

/** Whose transaction it is. */
export interface EndingOwner extends LoopOwner {
  /** What waits in the proxy fails for this reason. */
  abortWait(reason: ForeshardError): void;
  /** What is under way at servers is canceled; resolves when they have been asked. */
  cancelUnderWay(reason: ForeshardError): Promise<void>;
}

export interface TransactionEndParts {
  readonly owner: EndingOwner;
  readonly loop: MessageLoop;
  readonly replies: ServerReplies;
  readonly output: ClientOutput;
  readonly copyIn: CopyIn;
  readonly stream: MessageStream;
  readonly units: Units;
  readonly extended: ExtendedProtocol;
}

/**
 * Ends the client's transaction because a flip waits for it: rolled back at its server at once, and the client told 40001, by what it waits
 * for or by the next thing that it asks. For the client that is an error like others: a block stays failed until its ROLLBACK, a batch is skipped up to
 * its Sync. What may be committed already, because its COMMIT (or a statement that commits by itself) has been sent, is let end.
 */
export class TransactionEnd {
  readonly #session: EndingOwner;
  readonly #loop: MessageLoop;
  readonly #replies: ServerReplies;
  readonly #output: ClientOutput;
  readonly #copyIn: CopyIn;
  readonly #stream: MessageStream;
  readonly #units: Units;
  readonly #extended: ExtendedProtocol;
  /** What runs in it has been asked to stop. */
  #stopped: Transaction | null = null;

  constructor(parts: TransactionEndParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#copyIn = parts.copyIn;
    this.#stream = parts.stream;
    this.#units = parts.units;
    this.#extended = parts.extended;
  }

  /** From here on nothing more is done in it. */
  begin(transaction: Transaction): void {
    if (transaction.ending) return;
    transaction.ending = true;
    this.#session.abortWait(transactionEnded());
    this.#loop.pump();
  }

  /** To be called between any two messages while a transaction is to end. Null: nothing can be done now. */
  goOn(transaction: Transaction): Promise<void> | null {
    const { lease } = this.#session;
    const { backend, unsynced } = lease;
    // In the middle of a message nothing can be said to the server.
    if (backend === null || this.#loop.canceling || this.#stream.active || this.#copyIn.undecided(backend)) return null;
    if (this.#copyIn.active) {
      this.#stopped = transaction;
      this.#replies.ending = true;
      this.#copyIn.fail(backend);
      return null;
    }
    if (this.#loop.awaitingReady) {
      this.#stop(transaction);
      return null;
    }
    if (unsynced) return backend.quiet || !this.#units.commits ? this.#end(backend) : null;
    if (!backend.quiet) return null;
    if (backend.status !== IDLE) return this.#end(backend);
    // It has ended by itself, and the connection was kept until it had the cancel request.
    transaction.ending = false;
    lease.releaseIfIdle();
    return null;
  }

  /** A Query or batch is being answered: it is canceled, unless that may come too late. */
  #stop(transaction: Transaction): void {
    // A server that waits for its client to read hears no cancel request.
    if (this.#stopped === transaction || this.#output.full || this.#units.commits || this.#units.writesAlone) return;
    this.#stopped = transaction;
    this.#replies.ending = true;
    void this.#session.cancelUnderWay(transactionEnded());
  }

  async #end(backend: Backend): Promise<void> {
    const session = this.#session;
    const { lease, services, settings } = session;
    const inBatch = lease.unsynced;
    let clientKnows = backend.status === FAILED;
    if (inBatch) clientKnows = (await this.#endBatch(backend)) || clientKnows;
    const inBlock = backend.status !== IDLE;
    if (inBlock) await lease.rollBack(backend);
    await lease.endSpan();
    await this.#replies.transactionEnded(backend, false);
    if (session.closed) return;
    services.logger.info({ session: session.id, shard: backend.shard }, 'ended a transaction that a flip waited for');
    if (inBlock && clientKnows) {
      // For what the client does next it is to be failed, as it was; but without its locks.
      await backend.runInternal(BEGIN);
      await failAt(backend);
      lease.transaction = new Transaction(services.live.current);
      settings.begin();
    } else {
      lease.giveBackUnlessPinned();
      if (inBlock) {
        lease.begin(BEGIN_TEXT);
        settings.begin();
      } else lease.transaction = clientKnows ? null : new Transaction(services.live.current);
    }
    if (inBatch && clientKnows) this.#extended.skip();
    lease.untold = inBlock || !clientKnows;
    services.live.released();
  }

  /** Has the server end the open batch, in which nothing is committed then. @returns whether the client has been told an error in it */
  async #endBatch(backend: Backend): Promise<boolean> {
    const { lease } = this.#session;
    if (!backend.quiet) this.#replies.ending = true;
    const canceled = backend.quiet ? null : this.#session.cancelUnderWay(transactionEnded());
    await lease.failBatch(backend);
    await canceled;
    return this.#units.unitFailed;
  }
}
