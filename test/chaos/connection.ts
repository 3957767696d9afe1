import pg from 'pg';
import type { Random } from '../support/random.js';

/** A statement without an answer for so long, while nothing is disturbed, has none. */
const HANGS_MS = 60_000;
const CHECK_MS = 1000;

export type Value = number | string;

/** What stands in the way of clients: how long nothing has, and whether something may excuse an error. */
export interface Disturbances {
  /** ms in which nothing was disturbed, so far. */
  readonly calmMs: number;
  /** Whether clients of this proxy may feel something that was disturbed after this moment (of `performance.now()`), or shortly before it. */
  feltSince(moment: number, proxy: number): boolean;
}

/** A failed statement, with what its sender knows of it. */
export class StatementError extends Error {
  /** SQLSTATE, or what the driver said. */
  readonly code: string;
  /** The connection can still be used. */
  readonly alive: boolean;
  readonly sentAt: number;

  constructor(error: unknown, text: string, sentAt: number) {
    const { message, code, severity } = error as Error & { code?: string; severity?: string };
    super(`${message} [${text}]`, { cause: error });
    const fromServer = severity !== undefined;
    this.code = fromServer ? (code ?? '?????') : (code ?? message);
    this.alive = fromServer && severity === 'ERROR';
    this.sentAt = sentAt;
  }
}

/** Statements under way everywhere. */
export class InFlight {
  statements = 0;
  readonly #pending = new Map<
    object,
    { readonly who: string; readonly text: string; readonly calmMs: number; give(): void }
  >();
  readonly #disturbances: Disturbances;
  readonly #timer: NodeJS.Timeout;

  /** @param hangs is told of statements that get no answer */
  constructor(disturbances: Disturbances, hangs: (text: string) => void) {
    this.#disturbances = disturbances;
    this.#timer = setInterval(() => {
      for (const [token, { who, text, calmMs, give }] of this.#pending) {
        if (disturbances.calmMs - calmMs < HANGS_MS) continue;
        this.#pending.delete(token);
        hangs(`no answer in ${HANGS_MS} ms in which nothing was disturbed: ${who}: ${text}`);
        give();
      }
    }, CHECK_MS);
  }

  /** @param give ends the wait */
  async wait<T>(who: string, text: string, give: () => void, work: Promise<T>): Promise<T> {
    const token = {};
    this.#pending.set(token, { who, text, calmMs: this.#disturbances.calmMs, give });
    this.statements += 1;
    try {
      return await work;
    } finally {
      this.#pending.delete(token);
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}

/** One connection of a client through a proxy. */
export class Connection {
  readonly #client: pg.Client;
  readonly #who: string;
  readonly #inFlight: InFlight;

  private constructor(client: pg.Client, who: string, inFlight: InFlight) {
    this.#client = client;
    this.#who = who;
    this.#inFlight = inFlight;
  }

  /** @param settings from the start @throws StatementError */
  static async open(
    url: string,
    who: string,
    inFlight: InFlight,
    settings: Readonly<Record<string, string>> = {},
  ): Promise<Connection> {
    const options = Object.entries(settings).map(([name, value]) => `-c ${name}=${value}`);
    const client = new pg.Client({ connectionString: url, application_name: who, options: options.join(' ') });
    client.on('error', () => undefined); // whoever asks next is told
    const connection = new Connection(client, who, inFlight);
    await connection.#run('(login)', client.connect());
    return connection;
  }

  /** Sends a statement in one of the ways that a driver has. `$1` … in it are numbers or text. @throws StatementError */
  async query<T extends pg.QueryResultRow>(
    random: Random,
    text: string,
    values: readonly Value[] = [],
  ): Promise<pg.QueryResult<T>> {
    const way = values.length === 0 ? 0 : random(3);
    if (way === 0) {
      const whole = text.replace(/\$(\d+)/g, (_, n: string) => literal(values[Number(n) - 1] as Value));
      return this.#run(whole, this.#client.query<T>(whole));
    }
    const config = { text, values: [...values], ...(way === 1 ? {} : { name: nameOf(text) }) };
    return this.#run(text, this.#client.query<T>(config));
  }

  async #run<T>(text: string, work: Promise<T>): Promise<T> {
    const sentAt = performance.now();
    try {
      return await this.#inFlight.wait(this.#who, text, () => this.drop(), work);
    } catch (error) {
      throw new StatementError(error, text, sentAt);
    }
  }

  /** Says good-bye, if it can. */
  async close(): Promise<void> {
    await this.#run('(end)', this.#client.end()).catch(() => undefined); // it was broken
  }

  /** Is gone. */
  drop(): void {
    (this.#client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
  }
}

const names = new Map<string, string>();

/** The same for the same text. */
function nameOf(text: string): string {
  const name = names.get(text) ?? `s${names.size}`;
  names.set(text, name);
  return name;
}

function literal(value: Value): string {
  return typeof value === 'number' ? `${value}` : `'${value.replaceAll("'", "''")}'`;
}
