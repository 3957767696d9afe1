import { ForeshardError } from '../../topology/errors.js';
import type { Backend } from '../backend/backend.js';
import type { NotificationListener, Subscriber } from '../backend/notification-listener.js';
import type { Notifications } from '../backend/notifications.js';
import type { SessionEffect } from '../router/route.js';
import { encodeQuery } from '../wire/frontend.js';
import { HEADER_BYTES } from '../wire/message-types.js';
import type { NameLookup } from './name-lookup.js';
import { type Execution, planOf } from './placement.js';
import { Scoped } from './scoped.js';
import { protocolName } from './statements.js';

/** Notifications that wait for a client to end its transaction, or to read; beyond, its session is ended. */
const WAITING_BYTES = 8 * 1024 * 1024;

const UNLISTEN_ALL = encodeQuery('UNLISTEN *');

/** What nearly every client listens to. */
const NO_CHANNELS: readonly string[] = [];

/** What Listening needs of its session. */
export interface ListeningClient {
  /** The process id that the client was told. */
  readonly id: number;
  readonly services: { readonly notifications: Notifications };
  readonly lookup: Pick<NameLookup, 'encoding'>;
  /** Between transactions, and with nothing owed: when PostgreSQL, too, would send notifications. */
  readonly mayHear: boolean;
  /** The socket takes no more for now. */
  readonly isClogged: boolean;
  write(frame: Buffer): void;
  close(error: unknown): void;
}

/**
 * LISTEN, UNLISTEN and what they bring, for one client, without a server connection of its own.
 *
 * The statements run on whatever connection serves the transaction, so that errors are PostgreSQL's own; that connection is
 * told UNLISTEN * when the transaction is over. What the client hears comes from listeners shared by all clients, which listen
 * before the statement is sent, so that nothing committed after it can be missed.
 */
export class Listening implements Subscriber {
  readonly #client: ListeningClient;
  /** The client's channels, as byte strings in its encoding, in the order of their LISTENs. */
  readonly #channels = new Scoped(NO_CHANNELS);
  /** Channels that listeners know of, with their encoding: before the LISTEN is sent, until after the UNLISTEN is committed. Null: none. */
  #subscribed: Map<string, string> | null = null;
  #queue: { readonly channel: string; readonly frame: Buffer }[] = [];
  #waiting = 0;
  /** The transaction at hand made the server connection listen. */
  #serverListens = false;
  /** Statements of the transaction at hand may notify; `explicitly`: surely, in so many words. */
  #notifies: 'no' | 'perhaps' | 'explicitly' = 'no';
  /** Server processes by which this client may have notified in the transaction at hand. Null: none. */
  #sendingBy: Set<Backend> | null = null;
  /** What was committed before the client's statement began is heard when this resolves. */
  #before: Promise<void> | null = null;
  #lost: ForeshardError | null = null;
  #closed = false;

  constructor(client: ListeningClient) {
    this.#client = client;
  }

  /** Whether the client listens to anything. */
  get active(): boolean {
    return this.#channels.committed.length > 0;
  }

  /** Channels that the client listens to. */
  get channels(): readonly string[] {
    return this.#channels.committed;
  }

  /**
   * To be called before these statements are sent to this connection, until it gives null: what must be done first.
   * `open`: a transaction or batch has begun there.
   */
  prepare(backend: Backend, executions: readonly Execution[], open: boolean): Promise<void> | null {
    const { id, lookup, services } = this.#client;
    const { notifications } = services;
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan === null) continue;
      const channel = channelOf(plan.effect);
      if (channel !== null && this.#subscribed?.get(channel) === undefined)
        return this.#subscribe(channel, lookup.encoding);
      if (plan.showsChannels && this.active && !this.#serverListens) {
        if (open)
          throw new ForeshardError('0A000', 'pg_listening_channels() cannot be answered inside a transaction block', {
            hint: 'Ask before the transaction, or with its first statement.',
          });
        return this.#listenThere(backend);
      }
    }
    const notifies = this.#judge(executions);
    if (notifies === 'explicitly' || (notifies === 'perhaps' && this.active)) {
      const { shard } = backend;
      if (notifications.hasOthers(shard, backend.connection.processId, id))
        return notifications.barrier(shard, null).catch(() => undefined); // the listener's loss is told to its clients
    }
    return null;
  }

  /** The statements go to this connection now. */
  sending(backend: Backend, executions: readonly Execution[]): void {
    if (executions.length === 0) return;
    this.#notifies = this.#judge(executions);
    if (this.#notifies !== 'no') this.#register(backend);
    // What came for a channel before its LISTEN is being committed does not count.
    this.#forgetUnheard();
    this.began();
  }

  /** The same of one that says nothing of notifications, for a client that does not listen. */
  sendingPlain(backend: Backend, writes: boolean): void {
    if (writes && this.#notifies === 'no') this.#notifies = 'perhaps';
    if (this.#notifies !== 'no') this.#register(backend);
    this.#forgetUnheard();
  }

  /** The client's Query or batch begins; to be called by those who use no single connection. */
  began(): void {
    if (!this.active) return;
    this.#before = this.#client.services.notifications.barrier(null, this.#client.lookup.encoding);
    this.#before.catch(() => undefined); // told by listenerLost
  }

  /** The connection serves somebody else from now on; what was done there is undone. */
  left(backend: Backend): void {
    if (this.#sendingBy?.delete(backend) !== true) return;
    this.#client.services.notifications.sent(backend.shard, backend.connection.processId);
  }

  /** Something runs that nobody has read: a function called by the fast path. */
  unknownRuns(backend: Backend): void {
    if (this.#notifies === 'no') this.#notifies = 'perhaps';
    this.#register(backend);
    this.began();
  }

  /** A statement has been done by the server. */
  completed(effect: SessionEffect): void {
    const channels = this.#channels;
    switch (effect.kind) {
      case 'listen': {
        this.#serverListens = true;
        const channel = protocolName(effect.channel);
        if (!channels.value.includes(channel)) channels.value = [...channels.value, channel];
        return;
      }
      case 'unlisten': {
        const channel = effect.channel === null ? null : protocolName(effect.channel);
        channels.value = channel === null ? [] : channels.value.filter((c) => c !== channel);
        return;
      }
      case 'discard-all':
        channels.value = [];
        return;
      case 'savepoint':
        channels.savepoint(effect.name);
        return;
      case 'release':
        channels.release(effect.name);
        return;
      case 'rollback-to':
        channels.rollbackTo(effect.name);
        return;
    }
  }

  /** The transaction is over. */
  ended(committed: boolean): void {
    this.#channels.end(committed);
  }

  /**
   * The server is idle again: what must be done before the client is told so. Null: nothing. Then `deliver`.
   * Rejects when the connection cannot be made to listen no more.
   */
  settle(backend: Backend | null): Promise<void> | null {
    const notifies = this.#notifies;
    this.#notifies = 'no';
    if (!this.#concerned) {
      this.#before = null;
      return null;
    }
    const { notifications } = this.#client.services;
    // The client is told the new one with what follows.
    const encoding = backend?.connection.parameters.get('client_encoding') ?? this.#client.lookup.encoding;
    const sentBy = [...(this.#sendingBy ?? [])];
    for (const used of sentBy) this.left(used);
    const waits: Promise<void>[] = [];
    if (this.#serverListens && backend !== null) waits.push(this.#unlistenThere(backend));
    this.#serverListens = false;
    const heard = (barrier: Promise<void>) => waits.push(barrier.catch(() => undefined)); // told by listenerLost
    if (this.active) {
      if (this.#before !== null) heard(this.#before);
      if (notifies !== 'no') heard(notifications.barrier(null, encoding));
    }
    if (notifies === 'explicitly') for (const { shard } of sentBy) heard(notifications.barrier(shard, null));
    this.#before = null;
    this.#reconcile(waits, encoding);
    return waits.length === 0 ? null : Promise.all(waits).then(() => undefined);
  }

  /** Gives the client what has come for it, to be called when it may be told. @returns false when it must read first */
  deliver(): boolean {
    const client = this.#client;
    let sent = 0;
    for (const { channel, frame } of this.#queue) {
      if (client.isClogged) break;
      sent += 1;
      this.#waiting -= frame.length;
      if (this.#channels.committed.includes(channel)) client.write(frame);
    }
    if (sent > 0) this.#queue = this.#queue.slice(sent);
    return this.#queue.length === 0;
  }

  /** The client is between transactions and has been told so. */
  idle(): void {
    if (this.#lost !== null) this.#client.close(this.#lost);
  }

  /** A NotificationResponse of the client's own server connection, for a session whose functions made it listen. */
  fromServer(backend: Backend, frame: Buffer): Buffer {
    if (frame.readInt32BE(HEADER_BYTES) !== backend.connection.processId) return frame;
    const copy = Buffer.from(frame);
    copy.writeInt32BE(this.#client.id, HEADER_BYTES);
    return copy;
  }

  close(): void {
    this.#closed = true;
    const { notifications } = this.#client.services;
    for (const used of this.#sendingBy ?? []) this.left(used);
    this.#queue = [];
    this.#subscribed = null;
    notifications.leave(this);
  }

  notified(listener: NotificationListener, channel: string, frame: Buffer): void {
    // While client_encoding changes there are two listeners.
    if (this.#closed || this.#subscribed?.get(channel) !== listener.encoding) return;
    const heard = this.#channels.committed.includes(channel);
    // Of a channel whose LISTEN is being committed, what comes from now on counts.
    if (!heard && this.#client.mayHear) return;
    this.#queue.push({ channel, frame });
    this.#waiting += frame.length;
    if (this.#client.mayHear) this.deliver();
    if (this.#waiting > WAITING_BYTES)
      this.#client.close(
        new ForeshardError('53400', 'too many notifications wait for this client', {
          hint: 'End transactions of sessions that listen, and read what the server sends.',
        }),
      );
  }

  listenerLost(_listener: NotificationListener, error: ForeshardError): void {
    if (this.#closed) return;
    this.#lost = new ForeshardError('08006', 'the connection that listens for this session was lost', {
      detail: error.detail ?? error.message,
      hint: 'Notifications may have been missed: reconnect, LISTEN again, and look at what they would have told.',
    });
    if (this.#client.mayHear) this.#client.close(this.#lost);
  }

  /** The client listens or has done so, or somebody may hear what it did. Nearly every client never does. */
  get #concerned(): boolean {
    return (
      this.active ||
      this.#serverListens ||
      (this.#sendingBy?.size ?? 0) > 0 ||
      (this.#subscribed?.size ?? 0) > 0 ||
      this.#queue.length > 0
    );
  }

  #register(backend: Backend): void {
    const { id, services } = this.#client;
    const { notifications } = services;
    if (this.#closed || !notifications.isHeard(backend.shard)) return;
    notifications.sending(backend.shard, backend.connection.processId, id);
    this.#sendingBy ??= new Set();
    this.#sendingBy.add(backend);
  }

  #judge(executions: readonly Execution[]): 'no' | 'perhaps' | 'explicitly' {
    let notifies = this.#notifies;
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan === null) continue;
      if (plan.command === 'NOTIFY' || plan.notifies) return 'explicitly';
      if (plan.kind === 'write' || plan.kind === 'ddl') notifies = notifies === 'no' ? 'perhaps' : notifies;
    }
    return notifies;
  }

  async #subscribe(channel: string, encoding: string): Promise<void> {
    this.#subscribed ??= new Map();
    this.#subscribed.set(channel, encoding);
    try {
      await this.#client.services.notifications.subscribe(this, channel, encoding);
    } catch (error) {
      this.#subscribed?.delete(channel);
      throw error;
    }
    if (this.#closed) this.#client.services.notifications.leave(this);
  }

  async #listenThere(backend: Backend): Promise<void> {
    const list = this.#channels.committed.map((c) => `LISTEN "${c.replaceAll('"', '""')}"`).join(';');
    await backend.runInternal(encodeQuery(Buffer.from(list, 'latin1')));
    this.#serverListens = true;
  }

  async #unlistenThere(backend: Backend): Promise<void> {
    try {
      await backend.runInternal(UNLISTEN_ALL);
    } catch (error) {
      if (backend.lost !== null) throw error;
      // A cancel request of the client may have hit it.
      await backend.runInternal(UNLISTEN_ALL).catch((again: unknown) => {
        backend.destroy();
        throw again;
      });
    }
  }

  /** Has the listeners know what the client listens to now, in the encoding it has now. */
  #reconcile(waits: Promise<void>[], encoding: string): void {
    const { notifications } = this.#client.services;
    for (const [channel, known] of [...(this.#subscribed ?? [])]) {
      const wanted = this.#channels.committed.includes(channel);
      if (wanted && known === encoding) continue;
      this.#subscribed?.delete(channel);
      if (wanted)
        waits.push(
          this.#subscribe(channel, encoding)
            .catch((error: unknown) => {
              this.#lost ??= asLost(error);
            })
            .then(() => notifications.unsubscribe(this, channel, known)),
        );
      else notifications.unsubscribe(this, channel, known);
    }
    this.#forgetUnheard();
  }

  #forgetUnheard(): void {
    if (this.#queue.length === 0) return;
    const kept = this.#queue.filter((n) => this.#channels.committed.includes(n.channel));
    if (kept.length === this.#queue.length) return;
    this.#queue = kept;
    this.#waiting = kept.reduce((bytes, n) => bytes + n.frame.length, 0);
  }
}

function channelOf(effect: SessionEffect | null | undefined): string | null {
  return effect?.kind === 'listen' ? protocolName(effect.channel) : null;
}

function asLost(error: unknown): ForeshardError {
  return error instanceof ForeshardError ? error : new ForeshardError('08006', String(error));
}
