import { sendCancelRequest } from '../../proxy/backend/cancel-request.js';
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
import { withLiterals } from '../load/load-client.js';
import type { Protocol } from '../results/results.js';
import { isAnswer, type Question, ROW_HEAD_BYTES, textOf } from './questions.js';

/** Who is asked: a proxy, or the server. */
export interface Asked {
  readonly port: number;
  readonly protocol: Protocol;
  /** What 200 ms of work are; see makeTables. */
  readonly work: number;
}

/** One client, which asks one thing after the other and looks whether each answer belongs to its question. */
export class AskingClient {
  readonly #connection: ServerConnection;
  readonly #to: Asked;
  readonly #prepared = new Set<string>();
  #question: Question | null = null;
  #resolve: (sqlstate: string | null) => void = () => undefined;
  #reject: (error: Error) => void = () => undefined;
  /** The row so far. */
  readonly #head = Buffer.alloc(ROW_HEAD_BYTES);
  #bytes = 0;
  #rows = 0;
  #right = false;
  #sqlstate: string | null = null;
  /** Bytes a second that are read; null: all that comes. */
  #perSecond: number | null = null;
  #askedAt = 0;

  static async connect(to: Asked): Promise<AskingClient> {
    const connection = await ServerConnection.connect({
      shard: 'load',
      host: '127.0.0.1',
      port: to.port,
      user: 'postgres',
      database: 'shop',
      auth: null,
      connectTimeoutMs: 60_000,
    });
    return new AskingClient(connection, to);
  }

  private constructor(connection: ServerConnection, to: Asked) {
    this.#connection = connection;
    this.#to = to;
    connection.setHandler({
      onMessage: (type, message) => this.#onMessage(type, message),
      onPartial: (_type, chunk, remaining) => this.#onRow(chunk, remaining),
      onClosed: (error) => this.#reject(error),
    });
  }

  /** @param perSecond reads no more bytes a second than this @returns the SQLSTATE of the error that is the answer, or null. @throws when the answer is another question's, or the connection is lost */
  ask(question: Question, perSecond: number | null = null): Promise<string | null> {
    this.#question = question;
    this.#perSecond = perSecond;
    this.#askedAt = performance.now();
    this.#bytes = 0;
    this.#rows = 0;
    this.#sqlstate = null;
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#connection.write(this.#messages(question));
    });
  }

  /** Reads all that comes from now on. */
  hurry(): void {
    this.#perSecond = null;
    this.#connection.resume();
  }

  /** Has what it does canceled. Resolves when the proxy has taken the request. */
  cancel(): Promise<void> {
    const { options, processId, secret } = this.#connection;
    return sendCancelRequest(options, { processId, secret });
  }

  end(): void {
    this.#connection.terminate();
  }

  #messages(question: Question): Buffer[] {
    const sql = textOf(question);
    const { protocol } = this.#to;
    if (protocol === 'simple') return [encodeQuery(withLiterals(sql, [question.id]))];
    const name = protocol === 'prepared' ? question.kind : '';
    const messages: Buffer[] = [];
    if (!this.#prepared.has(name)) messages.push(encodeParse(name, sql));
    const values = [Buffer.from(String(question.id))];
    messages.push(encodeBind({ portal: '', statement: name, formats: [], values, resultFormats: [] }));
    messages.push(encodeDescribe('portal', ''), encodeExecute('', 0), SYNC);
    return messages;
  }

  #onRow(chunk: Buffer, remaining: number): void {
    if (this.#bytes < ROW_HEAD_BYTES) chunk.copy(this.#head, this.#bytes);
    this.#bytes += chunk.length;
    if (remaining === 0) {
      this.#rows += 1;
      this.#right = isAnswer(this.#question as Question, this.#head, this.#bytes, this.#to.work);
    }
    if (this.#perSecond === null) return;
    const ahead = (this.#bytes * 1000) / this.#perSecond - (performance.now() - this.#askedAt);
    if (ahead < 1) return;
    this.#connection.pause();
    setTimeout(() => this.#connection.resume(), ahead);
  }

  #onMessage(type: number, message: Buffer): void {
    const question = this.#question;
    if (type === BACKEND.ErrorResponse) this.#sqlstate = decodeErrorFields(message).sqlstate;
    else if (type === BACKEND.ParseComplete && this.#to.protocol === 'prepared' && question !== null)
      this.#prepared.add(question.kind);
    if (type !== BACKEND.ReadyForQuery) return;
    this.#question = null;
    if (question === null) this.#connection.destroy();
    else if (this.#sqlstate === null && !(this.#rows === 1 && this.#right))
      this.#reject(
        new Error(`the answer to ${question.kind} ${question.id} is another: ${this.#head.toString('latin1')}`),
      );
    else this.#resolve(this.#sqlstate);
  }
}
