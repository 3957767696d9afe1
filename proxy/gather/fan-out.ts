import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError } from '../backend/internal-statement.js';
import { Narrowable } from '../router/narrow.js';
import type { Analyzed } from '../router/route.js';
import { allDone } from '../session/all-done.js';
import type { ClientSession, SpreadRun } from '../session/client-session.js';
import type { Footprint } from '../session/footprint.js';
import type { Placement } from '../session/placement.js';
import { lost } from '../session/refusals.js';
import { beginLike, boundWorded, type SpreadBlock, spreadBlock } from '../session/spread-block.js';
import { SpreadWait } from '../session/spread-wait.js';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  decodeCommandComplete,
  encodeCommandComplete,
  PARSE_COMPLETE,
  rowsOfTag,
} from '../wire/backend.js';
import {
  decodeErrorFields,
  type ErrorFields,
  encodeErrorResponse,
  fieldsOfError,
  isFatal,
} from '../wire/error-response.js';
import { encodeDescribe, encodeExecute, encodeParse, encodeQuery, SYNC } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { acquireAll, cancelAll, lend, letGo, type SentBatch } from './connections.js';
import { finished } from './finished.js';

const BEGIN = 'BEGIN READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0';

/** What the client has sent. Each shard gets the text with a condition that leaves it the rows that it owns. */
export type FanOutStatement =
  | { readonly kind: 'simple' }
  | (SentBatch & { readonly kind: 'extended'; readonly bind: readonly Buffer[]; readonly portal: string });

/**
 * A SELECT whose answer is the plain union of what several shards answer. All shards work at the same time; their rows go
 * to the client one shard after the other, the later ones held back by their sockets, so that nothing is buffered here.
 */
export class FanOut implements BackendOwner, SpreadRun {
  readonly rowsAtStake = true;
  readonly footprint: Footprint;
  readonly #session: ClientSession;
  readonly #shards: readonly ShardName[];
  readonly #placement: Placement & { kind: 'fanout' };
  readonly #template: string;
  readonly #text: Narrowable;
  readonly #statement: FanOutStatement;
  readonly #own: Backend[] = [];
  /** With those of the client's transaction block, in the order of the shards' names. */
  #backends: readonly Backend[] = this.#own;
  #block: SpreadBlock | null = null;
  /** Null: its connections are in no transactions, or deadlocks are not looked for. */
  #wait: SpreadWait | null = null;
  readonly #cancels: Promise<void>[] = [];
  /** The shard whose rows go to the client now. */
  #current = 0;
  #rows = 0;
  #failed = false;
  /** See SpreadRun. */
  failure: ErrorFields | null = null;
  #abandoned = false;
  #finish: (() => void) | null = null;
  #lost: ((error: Error) => void) | null = null;

  constructor(
    session: ClientSession,
    placement: Placement & { kind: 'fanout' },
    analyzed: Analyzed,
    statement: FanOutStatement,
  ) {
    this.#session = session;
    this.footprint = placement;
    this.#shards = placement.shards;
    this.#placement = placement;
    this.#template = analyzed.template;
    this.#text = new Narrowable(analyzed);
    this.#statement = statement;
  }

  get backends(): readonly Backend[] {
    return this.#backends;
  }

  /** @returns false when the topology, or what names mean, changed before anything was sent, or a connection was lost. */
  async run(signal: AbortSignal): Promise<boolean> {
    const session = this.#session;
    const { topology } = this.#placement;
    const block = await spreadBlock(session);
    this.#block = block;
    const lent: Backend[] = [];
    try {
      const others = this.#shards.filter((shard) => block?.writers.has(shard) !== true);
      if (!(await acquireAll(session, this, others, topology, this.#own, signal, block))) return false;
      if (block !== null) {
        if (block.opening.length > 0 || !block.deferred) await this.#begin(block, signal);
        for (const shard of this.#shards)
          lent.push(...(block.writers.get(shard) ? [block.writers.get(shard) as Backend] : []));
        lend(lent, this);
        const order = (a: Backend, b: Backend) => (a.shard < b.shard ? -1 : 1);
        this.#backends = [...this.#own, ...lent].sort(order);
      }
      await this.#execute();
      return true;
    } finally {
      await Promise.all(this.#cancels);
      await letGo(session, this.#own, lent, block, this.#wait);
    }
  }

  /** So that the block's settings are in force, and nobody waits for its locks for ever. */
  async #begin(block: SpreadBlock, signal: AbortSignal): Promise<void> {
    let failure: unknown = null;
    const wait = SpreadWait.begin(this.#session, block);
    this.#wait = wait;
    const begin = wait?.begun(BEGIN) ?? encodeQuery(BEGIN);
    await allDone(this.#own.map((backend) => beginLike(block, backend, begin, this.#session))).catch(
      (error: unknown) => {
        failure = asServerError(error);
      },
    );
    // What came meanwhile, nobody is told of any more: nothing ran on the connections that it hit, perhaps.
    signal.throwIfAborted();
    const gone = this.#own.find((backend) => backend.lost !== null);
    if (gone?.lost) throw lost(gone.shard, gone.lost);
    if (failure !== null) throw failure;
  }

  /** The client reads too slowly. */
  pause(): void {
    this.#backends[this.#current]?.connection.pause();
  }

  resume(): void {
    this.#backends[this.#current]?.connection.resume();
  }

  /** The client has gone: stop the shards. */
  abandon(): void {
    this.#abandoned = true;
    this.#stop();
  }

  async #execute(): Promise<void> {
    const started = performance.now();
    const session = this.#session;
    session.bytesForwarded = 0;
    session.listening.began();
    const done = new Promise<void>((resolve, reject) => {
      this.#finish = resolve;
      this.#lost = reject;
    });
    this.#backends.forEach((backend, i) => {
      if (i > 0) backend.connection.pause();
      this.#send(backend, i === 0);
    });
    if (this.#statement.kind === 'extended' && this.#statement.parsed) session.write(PARSE_COMPLETE);
    // The client has been told of its Parse: what is lost now ends the answer, and leaves that.
    await done.catch((error: unknown) => {
      if (this.#block === null) session.writeError(fieldsOfError(error));
      else this.failure ??= fieldsOfError(error);
    });
    if (!this.#failed) {
      session.write(encodeCommandComplete(`SELECT ${this.#rows}`));
      if (this.#statement.kind === 'extended' && this.#statement.closePortal) session.write(CLOSE_COMPLETE);
    }
    const outside = this.#block === null;
    await finished(session, this, { template: this.#template, rows: this.#rows, since: started, outside });
  }

  #send(backend: Backend, first: boolean): void {
    const statement = this.#statement;
    const completed = (frame: Buffer) => {
      this.#rows += rowsOfTag(decodeCommandComplete(frame)) ?? 0;
    };
    const text = this.#text.to(this.#placement.own.get(backend.shard) as string);
    if (statement.kind === 'simple') {
      backend.send(encodeQuery(text), { kind: 'query', internal: false, completed });
      return;
    }
    backend.unnamed = null;
    backend.send(encodeParse('', text, statement.oids), { kind: 'parse', internal: true });
    if (first && statement.describe === 'statement')
      backend.send(encodeDescribe('statement', ''), { kind: 'describe', internal: false });
    backend.send(statement.bind, {
      kind: 'bind',
      internal: true,
      done: () => first && this.#session.write(BIND_COMPLETE),
    });
    if (first && statement.describe === 'portal')
      backend.send(encodeDescribe('portal', statement.portal), { kind: 'describe', internal: false });
    backend.send(encodeExecute(statement.portal), { kind: 'execute', internal: false, completed });
    backend.send(SYNC, { kind: 'sync', internal: false });
  }

  onReply(backend: Backend, type: number, frame: Buffer): void {
    if (this.#failed || this.#abandoned) return;
    const first = backend === this.#backends[0];
    switch (type) {
      case BACKEND.ErrorResponse:
        if (!isFatal(decodeErrorFields(frame))) this.#failed = true;
        else return; // the loss of the connection follows, which is not the end of the client's session
        this.#tell(this.#session.worded(this.#asSent(backend, frame)));
        this.#stop();
        return;
      case BACKEND.NotificationResponse:
        return; // of a channel that another client's function listened to
      case BACKEND.CommandComplete:
        return; // one for all, at the end
      case BACKEND.RowDescription:
      case BACKEND.NoData:
      case BACKEND.ParameterDescription:
        if (first) this.#session.write(frame);
        return;
      default:
        this.#session.write(frame);
    }
  }

  /** In a block the error is told when all of the block has failed. */
  #tell(frame: Buffer): void {
    if (this.#block === null) this.#session.write(frame);
    else this.failure = boundWorded(this.#block, decodeErrorFields(frame));
  }

  /** The error of a shard, with its position where it is in the client's text. */
  #asSent(backend: Backend, frame: Buffer): Buffer {
    const fields = decodeErrorFields(frame);
    if (fields.position === undefined) return frame;
    const own = this.#placement.own.get(backend.shard) as string;
    return encodeErrorResponse({ ...fields, position: this.#text.positionAsSent(own, fields.position) });
  }

  onData(_backend: Backend, slice: Buffer): void {
    if (this.#failed || this.#abandoned) return;
    this.#wait?.heard();
    this.#session.bytesForwarded += slice.length;
    this.#session.write(slice);
  }

  onCopyIn(): void {
    throw new Error('a SELECT does not copy in');
  }

  onReady(backend: Backend, _status: number, internal: boolean): void {
    if (internal || backend !== this.#backends[this.#current]) return;
    this.#advance();
  }

  #advance(): void {
    // A shard behind the current one may have finished in the meantime (its last bytes were already read when it was paused).
    do this.#current += 1;
    while (this.#current < this.#backends.length && this.#backends[this.#current]?.quiet);
    const next = this.#backends[this.#current];
    if (next === undefined) this.#finish?.();
    else next.connection.resume();
  }

  onLost(backend: Backend, error: Error): void {
    const told = this.#failed;
    this.#failed = true;
    this.#stop();
    // Half a row has gone to the client: whatever followed would be taken for the other half.
    if (backend.midMessage) this.#session.close();
    if (told) this.#finish?.();
    else this.#lost?.(error);
  }

  onWritable(): void {
    // a statement's few bytes have been taken
  }

  /** Cancels what still runs; its replies are read and dropped, so that the connections stay usable. */
  #stop(): void {
    this.#cancels.push(...cancelAll(this.#backends, this.#session.services.logger));
  }
}
