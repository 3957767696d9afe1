import type { Logger } from 'pino';
import type { ShardName } from '../../topology/topology.js';
import { NotificationListener, type Subscriber } from './notification-listener.js';
import type { ServerConnection } from './server-connection.js';

export interface NotificationsOptions {
  /** The shards of now. */
  readonly shards: () => Iterable<ShardName>;
  /** Connects with the shard's own URL, as Foreshard's user. */
  readonly connect: (shard: ShardName, parameters: Readonly<Record<string, string>>) => Promise<ServerConnection>;
  readonly logger: Logger;
}

/** A listener that nobody uses is kept for so long. */
const IDLE_MS = 10_000;
/** A shard that has come and cannot be listened to is tried again after so long. */
const RETRY_MS = 1000;

/**
 * LISTEN for all clients of this process: one connection per shard, and per client_encoding in use, made when the first client
 * listens. Every client listens on every shard, because a trigger may notify anywhere.
 */
export class Notifications {
  readonly #options: NotificationsOptions;
  readonly #listeners = new Map<string, Promise<NotificationListener>>();
  /** The same, once connected. */
  readonly #ready = new Map<string, NotificationListener>();
  /** What every subscriber wants, by encoding and channel: also of shards that come later. */
  readonly #wanted = new Map<Subscriber, Map<string, string>>();
  readonly #idle = new Map<string, NodeJS.Timeout>();
  #retry: NodeJS.Timeout | null = null;
  #closed = false;

  constructor(options: NotificationsOptions) {
    this.#options = options;
  }

  /** Whether anybody listens to this shard. */
  isHeard(shard: ShardName): boolean {
    for (const listener of this.#ready.values()) if (listener.shard === shard) return true;
    return false;
  }

  /**
   * Resolves when every shard is listened to. A channel is a byte string in this encoding.
   * @throws ForeshardError when a shard cannot be; then none is, for this subscriber and channel
   */
  async subscribe(subscriber: Subscriber, channel: string, encoding: string): Promise<void> {
    const wanted = this.#wanted.get(subscriber) ?? new Map<string, string>();
    this.#wanted.set(subscriber, wanted);
    wanted.set(channel, encoding);
    try {
      await Promise.all([...this.#options.shards()].map((s) => this.#subscribeTo(s, subscriber, channel, encoding)));
    } catch (error) {
      if (this.#wanted.get(subscriber)?.get(channel) === encoding) this.unsubscribe(subscriber, channel, encoding);
      throw error;
    }
  }

  unsubscribe(subscriber: Subscriber, channel: string, encoding: string): void {
    const wanted = this.#wanted.get(subscriber);
    if (wanted?.get(channel) === encoding) wanted.delete(channel);
    if (wanted?.size === 0) this.#wanted.delete(subscriber);
    for (const [key, listener] of this.#ready) {
      if (listener.encoding !== encoding) continue;
      listener.unsubscribe(subscriber, channel);
      if (listener.unused) this.#endLater(key, listener);
    }
  }

  /** The subscriber has gone. */
  leave(subscriber: Subscriber): void {
    for (const [channel, encoding] of [...(this.#wanted.get(subscriber) ?? [])])
      this.unsubscribe(subscriber, channel, encoding);
  }

  /** Resolves when all that was committed before has been heard; on every shard, or one. Rejects when a listener is lost. */
  async barrier(shard: ShardName | null, encoding: string | null): Promise<void> {
    const barriers: Promise<void>[] = [];
    for (const listener of this.#ready.values())
      if ((shard === null || listener.shard === shard) && (encoding === null || listener.encoding === encoding))
        barriers.push(listener.barrier());
    await Promise.all(barriers);
  }

  /** See NotificationListener: who notifies by which server process. */
  hasOthers(shard: ShardName, processId: number, client: number): boolean {
    for (const l of this.#ready.values()) if (l.shard === shard && l.hasOthers(processId, client)) return true;
    return false;
  }

  sending(shard: ShardName, processId: number, client: number): void {
    for (const l of this.#ready.values()) if (l.shard === shard) l.sending(processId, client);
  }

  sent(shard: ShardName, processId: number): void {
    for (const l of this.#ready.values()) if (l.shard === shard) l.sent(processId);
  }

  /** The topology has changed: shards that are new are listened to as well. */
  topologyChanged(): void {
    if (this.#wanted.size === 0 || this.#closed) return;
    const shards = [...this.#options.shards()];
    for (const [subscriber, wanted] of this.#wanted)
      for (const [channel, encoding] of wanted)
        for (const shard of shards)
          this.#subscribeTo(shard, subscriber, channel, encoding).then(
            () => {
              // The client may have said UNLISTEN, or gone, meanwhile.
              if (this.#wanted.get(subscriber)?.get(channel) !== encoding)
                this.unsubscribe(subscriber, channel, encoding);
            },
            (error: unknown) => {
              this.#options.logger.warn({ err: error, shard }, 'cannot listen to a shard for the clients that listen');
              this.#retry ??= setTimeout(() => {
                this.#retry = null;
                this.topologyChanged();
              }, RETRY_MS).unref();
            },
          );
  }

  close(): void {
    this.#closed = true;
    if (this.#retry !== null) clearTimeout(this.#retry);
    for (const timer of this.#idle.values()) clearTimeout(timer);
    this.#wanted.clear();
    for (const listener of [...this.#ready.values()]) listener.close();
    for (const starting of this.#listeners.values())
      starting.then(
        (listener) => listener.close(),
        () => undefined, // whoever waited for it has been told
      );
  }

  async #subscribeTo(shard: ShardName, subscriber: Subscriber, channel: string, encoding: string): Promise<void> {
    const key = `${shard}\0${encoding}`;
    let starting = this.#listeners.get(key);
    if (starting === undefined) {
      starting = this.#start(key, shard, encoding);
      this.#listeners.set(key, starting);
    }
    const listener = await starting;
    const timer = this.#idle.get(key);
    if (timer !== undefined) clearTimeout(timer);
    this.#idle.delete(key);
    await listener.subscribe(subscriber, channel);
  }

  async #start(key: string, shard: ShardName, encoding: string): Promise<NotificationListener> {
    const { connect } = this.#options;
    try {
      const connection = await connect(shard, { application_name: 'foreshard listener', client_encoding: encoding });
      if (connection.isClosed) throw await connection.closed;
      const listener = new NotificationListener(shard, encoding, connection, (ended) => {
        if (this.#ready.get(key) !== ended) return;
        this.#ready.delete(key);
        this.#listeners.delete(key);
      });
      this.#ready.set(key, listener);
      return listener;
    } catch (error) {
      this.#listeners.delete(key);
      throw error;
    }
  }

  #endLater(key: string, listener: NotificationListener): void {
    if (this.#idle.has(key) || this.#closed) return;
    const timer = setTimeout(() => {
      this.#idle.delete(key);
      if (listener.unused && this.#ready.get(key) === listener) listener.close();
    }, IDLE_MS);
    timer.unref();
    this.#idle.set(key, timer);
  }
}
