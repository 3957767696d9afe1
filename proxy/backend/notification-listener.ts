import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import { decodeErrorFields, ServerError } from '../wire/error-response.js';
import { encodeQuery } from '../wire/frontend.js';
import { BACKEND, HEADER_BYTES } from '../wire/message-types.js';
import type { ServerConnection } from './server-connection.js';

/** An answer of the listening server that takes longer means that it is gone. */
const ANSWER_MS = 20_000;
/** A listening connection on which nothing happens is asked this often whether it is still there. */
const KEEP_ALIVE_MS = 30_000;

/** Who wants to hear. Channels are byte strings, as in messages. */
export interface Subscriber {
  /** `frame`: a whole NotificationResponse, shared with other subscribers. */
  notified(listener: NotificationListener, channel: string, frame: Buffer): void;
  /** The listening connection is gone; notifications may have been missed. Nothing is subscribed any more. */
  listenerLost(listener: NotificationListener, error: ForeshardError): void;
}

/** Clients that may have sent what comes from one server process. */
interface Senders {
  readonly clients: Set<number>;
  /** The barrier that must have passed before the process may be taken for idle; infinite while it works. */
  mark: number;
}

/**
 * One server connection that listens for all clients of this process that have the same client_encoding.
 *
 * PostgreSQL signals a listening process before the notifying statement is answered, and a signaled process passes its
 * notifications on before it says ReadyForQuery. So what was committed before `barrier` was called has been heard when it
 * resolves.
 *
 * A notification names the server process that sent it. `sending` and `sent` tell which client that process works for,
 * so that the client's own id stands there, the one it got in BackendKeyData.
 */
export class NotificationListener {
  readonly shard: ShardName;
  readonly encoding: string;
  readonly #connection: ServerConnection;
  readonly #onEnd: (listener: NotificationListener) => void;
  readonly #channels = new Map<string, { readonly subscribers: Set<Subscriber>; readonly ready: Promise<void> }>();
  readonly #answers: { resolve(): void; reject(error: Error): void }[] = [];
  readonly #senders = new Map<number, Senders>();
  readonly #keepAlive: NodeJS.Timeout;
  #deadline: NodeJS.Timeout | null = null;
  #error: Error | null = null;
  #barriersSent = 0;
  #barriersPassed = 0;
  #nextBarrier: Promise<void> | null = null;
  #settling = false;
  #ended = false;

  /** @param connection logged in, with this client_encoding, and given over */
  constructor(
    shard: ShardName,
    encoding: string,
    connection: ServerConnection,
    onEnd: (listener: NotificationListener) => void,
  ) {
    this.shard = shard;
    this.encoding = encoding;
    this.#connection = connection;
    this.#onEnd = onEnd;
    connection.setHandler({
      onMessage: (type, frame) => this.#onMessage(type, frame),
      onPartial: () => connection.destroy(new ForeshardError('08P01', 'the listening connection got rows')),
      onClosed: (error) => this.#onClosed(error),
    });
    this.#keepAlive = setInterval(() => {
      if (this.#answers.length === 0) this.barrier().catch(() => undefined); // the loss is told to the subscribers
    }, KEEP_ALIVE_MS);
    this.#keepAlive.unref();
  }

  get processId(): number {
    return this.#connection.processId;
  }

  get unused(): boolean {
    return this.#channels.size === 0;
  }

  /** Resolves when the server listens: whatever is committed from now on will be heard. */
  async subscribe(subscriber: Subscriber, channel: string): Promise<void> {
    if (this.#ended) throw new ForeshardError('08006', `the listening connection to shard "${this.shard}" was lost`);
    let entry = this.#channels.get(channel);
    if (entry === undefined) {
      entry = { subscribers: new Set(), ready: this.#run('LISTEN', channel) };
      this.#channels.set(channel, entry);
    }
    entry.subscribers.add(subscriber);
    try {
      await entry.ready;
    } catch (error) {
      this.unsubscribe(subscriber, channel);
      throw error;
    }
  }

  unsubscribe(subscriber: Subscriber, channel: string): void {
    const entry = this.#channels.get(channel);
    if (entry === undefined || !entry.subscribers.delete(subscriber) || entry.subscribers.size > 0) return;
    this.#channels.delete(channel);
    if (!this.#ended) this.#run('UNLISTEN', channel).catch(() => undefined); // lost: then it listens to nothing either
  }

  /** Resolves when everything that was committed before this call has been heard. */
  barrier(): Promise<void> {
    // Calls of one turn share one: nothing can have been committed between them that the server would not have signaled.
    if (this.#nextBarrier === null) {
      this.#barriersSent += 1;
      const number = this.#barriersSent;
      this.#nextBarrier = this.#ask(EMPTY_QUERY).then(() => this.#passed(number));
      queueMicrotask(() => {
        this.#nextBarrier = null;
      });
    }
    return this.#nextBarrier;
  }

  /** Whether something may still come from this process that another client than `client` has sent. */
  hasOthers(processId: number, client: number): boolean {
    const senders = this.#senders.get(processId);
    if (senders === undefined) return false;
    for (const id of senders.clients) if (id !== client) return true;
    return false;
  }

  /** From now on `client` may send notifications by this server process. */
  sending(processId: number, client: number): void {
    const senders = this.#senders.get(processId);
    if (senders === undefined)
      this.#senders.set(processId, { clients: new Set([client]), mark: Number.POSITIVE_INFINITY });
    else {
      senders.clients.add(client);
      senders.mark = Number.POSITIVE_INFINITY;
    }
  }

  /** What the client sent by this process is committed, or undone. */
  sent(processId: number): void {
    const senders = this.#senders.get(processId);
    if (senders === undefined) return;
    senders.mark = this.#barriersSent + 1;
    this.#settleSenders();
  }

  /** One barrier at a time, until it is known of every idle process that nothing comes from it any more. */
  #settleSenders(): void {
    if (this.#settling) return;
    this.#settling = true;
    this.barrier().then(
      () => {
        this.#settling = false;
        for (const { mark } of this.#senders.values())
          if (mark !== Number.POSITIVE_INFINITY) {
            this.#settleSenders();
            return;
          }
      },
      () => undefined, // the loss is told to the subscribers
    );
  }

  /** Nobody listens here any more; whoever waits for a barrier is told that there is nothing left to hear. */
  close(): void {
    this.#connection.terminate();
    this.#end();
    const error = new ForeshardError('08006', `the listening connection to shard "${this.shard}" has been closed`);
    // Answers that still come are dropped: a client that notifies while the last listener leaves would wait for ever.
    for (const answer of this.#answers.splice(0)) answer.reject(error);
  }

  #passed(number: number): void {
    this.#barriersPassed = Math.max(this.#barriersPassed, number);
    for (const [processId, senders] of this.#senders)
      if (senders.mark <= this.#barriersPassed) this.#senders.delete(processId);
  }

  #run(command: 'LISTEN' | 'UNLISTEN', channel: string): Promise<void> {
    return this.#ask(encodeQuery(Buffer.from(`${command} "${channel.replaceAll('"', '""')}"`, 'latin1')));
  }

  #ask(query: Buffer): Promise<void> {
    if (this.#ended)
      return Promise.reject(new ForeshardError('08006', `the listening connection to shard "${this.shard}" was lost`));
    return new Promise((resolve, reject) => {
      this.#answers.push({ resolve, reject });
      this.#connection.write(query);
      if (this.#deadline === null) this.#startDeadline();
    });
  }

  #startDeadline(): void {
    this.#deadline = setTimeout(() => {
      this.#connection.destroy(
        new ForeshardError('08006', `shard "${this.shard}" has not answered its listener for ${ANSWER_MS} ms`),
      );
    }, ANSWER_MS);
    this.#deadline.unref();
  }

  #onMessage(type: number, frame: Buffer): void {
    switch (type) {
      case BACKEND.NotificationResponse:
        this.#onNotification(frame);
        return;
      case BACKEND.ErrorResponse:
        this.#error = new ServerError(decodeErrorFields(frame));
        return;
      case BACKEND.ReadyForQuery: {
        if (this.#deadline !== null) clearTimeout(this.#deadline);
        this.#deadline = null;
        const error = this.#error;
        this.#error = null;
        const answer = this.#answers.shift();
        if (this.#answers.length > 0) this.#startDeadline();
        if (error === null) answer?.resolve();
        else answer?.reject(error);
        return;
      }
    }
  }

  #onNotification(frame: Buffer): void {
    const nul = frame.indexOf(0, HEADER_BYTES + 4);
    if (nul < 0) return;
    const channel = frame.toString('latin1', HEADER_BYTES + 4, nul);
    const entry = this.#channels.get(channel);
    if (entry === undefined) return;
    // A copy: the frame is a slice of all that came with it.
    const copy = Buffer.from(frame);
    const senders = this.#senders.get(frame.readInt32BE(HEADER_BYTES));
    if (senders?.clients.size === 1) for (const client of senders.clients) copy.writeInt32BE(client, HEADER_BYTES);
    for (const subscriber of [...entry.subscribers]) subscriber.notified(this, channel, copy);
  }

  #onClosed(error: ForeshardError): void {
    if (this.#ended) return;
    this.#end();
    for (const answer of this.#answers.splice(0)) answer.reject(error);
    const all = new Set([...this.#channels.values()].flatMap((c) => [...c.subscribers]));
    this.#channels.clear();
    for (const subscriber of all) subscriber.listenerLost(this, error);
  }

  #end(): void {
    this.#ended = true;
    clearInterval(this.#keepAlive);
    if (this.#deadline !== null) clearTimeout(this.#deadline);
    this.#onEnd(this);
  }
}

const EMPTY_QUERY = encodeQuery('');
