import { ServerConnection } from '../../proxy/backend/server-connection.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../proxy/wire/frontend.js';
import { BACKEND } from '../../proxy/wire/message-types.js';
import type { Protocol } from '../results/results.js';
import type { LoadRequest } from './load.js';
import type { Step } from './workloads.js';

/**
 * One client of the load: sends the steps of its transactions one by one, each when the one before it is answered, like a program that
 * waits for its database.
 */
export class LoadClient {
  readonly #connection: ServerConnection;
  readonly #protocol: Protocol;
  /** Statements that are prepared on this connection. */
  readonly #prepared = new Set<string>();
  readonly #next: () => readonly Step[];
  readonly #done: (us: number) => boolean;
  readonly #failed: (error: Error) => void;
  #steps: readonly Step[] = [];
  #at = 0;
  #startedAt = 0;
  #ended = false;

  static async connect(
    to: Pick<LoadRequest, 'port' | 'user' | 'password' | 'database' | 'protocol'>,
    handlers: {
      /** The next transaction. */
      readonly next: () => readonly Step[];
      /** After each, with its time in µs. @returns whether to go on */
      readonly done: (us: number) => boolean;
      readonly failed: (error: Error) => void;
    },
  ): Promise<LoadClient> {
    const { port, user, password, database } = to;
    const connection = await ServerConnection.connect({
      shard: 'load',
      host: '127.0.0.1',
      port,
      user,
      database,
      auth: { password },
      connectTimeoutMs: 60_000,
    });
    return new LoadClient(connection, to.protocol, handlers);
  }

  private constructor(
    connection: ServerConnection,
    protocol: Protocol,
    handlers: Parameters<typeof LoadClient.connect>[1],
  ) {
    this.#connection = connection;
    this.#protocol = protocol;
    this.#next = handlers.next;
    this.#done = handlers.done;
    this.#failed = handlers.failed;
    connection.setHandler({
      onMessage: (type, message) => this.#onMessage(type, message),
      onPartial: () => undefined,
      onRun: () => undefined,
      onClosed: (error) => this.#fail(error),
    });
  }

  start(): void {
    this.#steps = this.#next();
    this.#at = 0;
    this.#startedAt = performance.now();
    this.#send();
  }

  /** Closes the connection, whatever is going on. */
  end(): void {
    this.#ended = true;
    this.#connection.terminate();
  }

  #send(): void {
    this.#connection.write(this.#messages(this.#steps[this.#at] as Step));
  }

  #messages({ statement, values }: Step): Buffer[] {
    const { name, sql, bare } = statement;
    if (bare === true || this.#protocol === 'simple') return [encodeQuery(withLiterals(sql, values))];
    const known = this.#protocol === 'prepared' ? name : '';
    const messages: Buffer[] = [];
    if (known === '' || !this.#prepared.has(known)) {
      messages.push(encodeParse(known, sql));
      this.#prepared.add(known);
    }
    const parameters = values.map((value) => Buffer.from(String(value)));
    messages.push(encodeBind({ portal: '', statement: known, formats: [], values: parameters, resultFormats: [] }));
    messages.push(encodeDescribe('portal', ''), encodeExecute('', 0), SYNC);
    return messages;
  }

  #onMessage(type: number, message: Buffer): void {
    if (type === BACKEND.ErrorResponse) {
      const { severity, sqlstate, message: text } = decodeErrorFields(message);
      this.#fail(new Error(`${severity} ${sqlstate}: ${text}`));
    } else if (type === BACKEND.ReadyForQuery && !this.#ended) this.#answered();
  }

  #answered(): void {
    this.#at += 1;
    if (this.#at < this.#steps.length) this.#send();
    else if (this.#done((performance.now() - this.#startedAt) * 1000)) this.start();
  }

  #fail(error: Error): void {
    if (this.#ended) return;
    this.end();
    this.#failed(error);
  }
}

/** The statement with its parameters written into it. */
export function withLiterals(sql: string, values: readonly (number | string)[]): string {
  return sql.replace(/\$(\d+)/g, (_, number: string) => {
    const value = values[Number(number) - 1] as number | string;
    return typeof value === 'number' ? String(value) : `'${value.replaceAll("'", "''")}'`;
  });
}
