import { connect, type Socket } from 'node:net';
import { decodeErrorFields, type ErrorFields } from '../../proxy/wire/error-response.js';
import { encodeSaslInitialResponse, encodeSaslResponse, encodeStartup, TERMINATE } from '../../proxy/wire/frontend.js';
import { ScramClient } from '../../proxy/wire/scram.js';

/** A message as it came: `type` is its letter, `body` what follows the header, `frame` both. */
export interface RawMessage {
  readonly type: string;
  readonly body: Buffer;
  readonly frame: Buffer;
}

export interface RawLogin {
  readonly user: string;
  readonly database?: string;
  /** Answers SCRAM; needed only if the server asks. */
  readonly password?: string;
  readonly parameters?: Readonly<Record<string, string>>;
  /** Default: protocol 3.0. */
  readonly version?: number;
}

/** How long any one expectation may take: a deadline, not a delay. */
const DEADLINE_MS = 15_000;

/** A scripted peer on a bare socket: sends any bytes, in any pieces, and expects messages. For what drivers never do. */
export class RawPeer {
  readonly socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #ended = false;
  #error: Error | null = null;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake();
    });
    socket.on('error', (error) => {
      this.#error = error;
      this.#wake();
    });
    socket.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
    socket.on('end', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  /** Connects to a port of this machine. */
  static connect(port: number, host = '127.0.0.1'): Promise<RawPeer> {
    return new Promise((resolve, reject) => {
      const socket = connect({ port, host });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new RawPeer(socket));
      });
    });
  }

  /** Connects and logs in. */
  static async login(port: number, login: RawLogin): Promise<RawPeer> {
    const peer = await RawPeer.connect(port);
    await peer.login(login);
    return peer;
  }

  /** One write for all of it. */
  send(...data: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(data));
  }

  /** Exactly `count` bytes. */
  async bytes(count: number): Promise<Buffer> {
    await this.#until(() => this.#received.length >= count, `${count} bytes`);
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  /** The next message. */
  async receive(): Promise<RawMessage> {
    await this.#until(() => this.#received.length >= 5, 'a message');
    const size = 1 + this.#received.readInt32BE(1);
    const frame = await this.bytes(size);
    return { type: String.fromCharCode(frame[0] as number), body: frame.subarray(5), frame };
  }

  /** The next message, which must be of this type. */
  async expect(type: string): Promise<RawMessage> {
    const message = await this.receive();
    if (message.type !== type) throw new Error(`expected message ${type}, got ${describe(message)}`);
    return message;
  }

  /** Messages up to and with the first of this type. */
  async until(type: string): Promise<RawMessage[]> {
    const messages: RawMessage[] = [];
    for (;;) {
      const message = await this.receive();
      messages.push(message);
      if (message.type === type) return messages;
    }
  }

  /** The next message, which must be an ErrorResponse. */
  async expectError(): Promise<ErrorFields> {
    return decodeErrorFields((await this.expect('E')).frame);
  }

  /** The other side must close without another byte. */
  async expectClose(): Promise<void> {
    await this.#until(() => this.#ended || this.#error !== null || this.#received.length > 0, 'the end', false);
    if (this.#received.length > 0)
      throw new Error(`expected the end, got ${JSON.stringify(this.#received.toString('latin1'))}`);
  }

  /** Start-up and authentication up to ReadyForQuery; gives all that came after AuthenticationOk. */
  async login(login: RawLogin): Promise<RawMessage[]> {
    const { user, database, password } = login;
    const parameters = { user, ...(database === undefined ? {} : { database }), ...login.parameters };
    this.send(encodeStartup(parameters, login.version));
    const scram = new ScramClient({ password: password ?? '' });
    for (;;) {
      const message = await this.receive();
      if (message.type === 'v') continue;
      if (message.type !== 'R') throw new Error(`expected an authentication request, got ${describe(message)}`);
      const kind = message.body.readInt32BE(0);
      const data = message.body.subarray(4);
      if (kind === 0) return this.until('Z');
      if (kind === 10) this.send(encodeSaslInitialResponse('SCRAM-SHA-256', scram.first()));
      else if (kind === 11) this.send(encodeSaslResponse(await scram.final(data)));
      else if (kind === 12) scram.verify(data);
      else throw new Error(`unknown authentication request ${kind}`);
    }
  }

  /** All that still comes until the other side closes. */
  async rest(): Promise<Buffer> {
    await this.#until(() => this.#ended || this.#error !== null, 'the end', false);
    return this.#received;
  }

  /** The bare socket, to be read by somebody else from now on. */
  detach(): Socket {
    for (const event of ['data', 'error', 'close', 'end']) this.socket.removeAllListeners(event);
    this.socket.pause();
    return this.socket;
  }

  /** Whether the other side has ended the connection. */
  get ended(): boolean {
    return this.#ended || this.#error !== null;
  }

  /** Says goodbye. */
  end(): void {
    this.socket.end(TERMINATE);
  }

  /** Cuts the line. */
  destroy(): void {
    this.socket.destroy();
  }

  async #until(condition: () => boolean, what: string, mustBeOpen = true): Promise<void> {
    const deadline = Date.now() + DEADLINE_MS;
    while (!condition()) {
      if (mustBeOpen && (this.#ended || this.#error !== null))
        throw new Error(`the connection ended before ${what} came`, { cause: this.#error ?? undefined });
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), deadline - Date.now());
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}

function describe(message: RawMessage): string {
  if (message.type !== 'E') return message.type;
  const { severity, sqlstate, message: text } = decodeErrorFields(message.frame);
  return `E (${severity} ${sqlstate}: ${text})`;
}
