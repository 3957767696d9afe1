import { Histogram } from '../load/histogram.js';
import type { Draw } from '../load/workloads.js';
import { type Asked, AskingClient } from './asking-client.js';
import { drawn, type Question } from './questions.js';

/** The clients whose statements are timed, in a process of their own. */
export interface LoadOrder {
  readonly to: Omit<Asked, 'protocol'>;
  readonly clients: number;
  readonly seconds: number;
  /** Statements a second, whoever is free; null: each client asks when it is answered. */
  readonly rate: number | null;
  /** The same gives the same questions at the same times. */
  readonly seed: number;
}

/** Latencies in µs. */
export interface Latencies {
  readonly counts: readonly number[];
  readonly max: number;
}

export interface LoadReport {
  readonly statements: number;
  readonly seconds: number;
  /** Of statements that are neither slow by nature nor read a table that somebody locks. */
  readonly others: Latencies;
  /** Of those that read the table that somebody locks. */
  readonly locked: Latencies;
  /** How often clients were told an error, by SQLSTATE. */
  readonly errors: Readonly<Record<string, number>>;
}

/** Ways in which the clients ask, in turn. */
const PROTOCOLS = ['simple', 'prepared', 'simple', 'extended'] as const;
const TICK_MS = 1;

/** Numbers that the seed decides (xorshift32 of Marsaglia). */
export function seeded(seed: number): Draw {
  let state = (seed * 2_654_435_761) >>> 0 || 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) % n) + 1;
  };
}

class Times {
  readonly #histogram = new Histogram();
  #max = 0;

  add(us: number): void {
    this.#histogram.add(us);
    this.#max = Math.max(this.#max, us);
  }

  get latencies(): Latencies {
    return { counts: this.#histogram.counts, max: this.#max };
  }
}

/** Asks for so many seconds, and waits for the last answers. @throws when an answer is wrong */
export async function runLoad(order: LoadOrder): Promise<LoadReport> {
  const clients = await Promise.all(
    Array.from({ length: order.clients }, (_, i) =>
      AskingClient.connect({ ...order.to, protocol: PROTOCOLS[i % PROTOCOLS.length] as 'simple' }),
    ),
  );
  try {
    return await new Load(order, clients).run();
  } finally {
    for (const client of clients) client.end();
  }
}

class Load {
  readonly #order: LoadOrder;
  readonly #clients: readonly AskingClient[];
  readonly #draw: Draw;
  readonly #others = new Times();
  readonly #locked = new Times();
  readonly #errors: Record<string, number> = {};
  #statements = 0;

  constructor(order: LoadOrder, clients: readonly AskingClient[]) {
    this.#order = order;
    this.#clients = clients;
    this.#draw = seeded(order.seed);
  }

  async run(): Promise<LoadReport> {
    const start = performance.now();
    const end = start + this.#order.seconds * 1000;
    if (this.#order.rate === null) await Promise.all(this.#clients.map((client) => this.#closed(client, end)));
    else await this.#paced(start, end, this.#order.rate);
    return {
      statements: this.#statements,
      seconds: (performance.now() - start) / 1000,
      others: this.#others.latencies,
      locked: this.#locked.latencies,
      errors: this.#errors,
    };
  }

  async #closed(client: AskingClient, end: number): Promise<void> {
    for (let now = performance.now(); now < end; now = performance.now())
      await this.#ask(client, drawn(this.#draw), now);
  }

  /**
   * Statements come at random times, whatever becomes of those before: a proxy that lets them wait cannot slow down who asks. One for
   * which no client is free waits for one, and that counts.
   */
  async #paced(start: number, end: number, rate: number): Promise<void> {
    const free = [...this.#clients];
    const due: { readonly question: Question; readonly since: number }[] = [];
    const running = new Set<Promise<void>>();
    let failure: unknown = null;
    let next = start;
    const serve = () => {
      while (due.length > 0 && free.length > 0 && failure === null) {
        const client = free.shift() as AskingClient;
        const { question, since } = due.shift() as (typeof due)[number];
        const work = this.#ask(client, question, since)
          .then(() => void free.push(client))
          .catch((error: unknown) => {
            failure ??= error;
          })
          .finally(() => {
            running.delete(work);
            serve();
          });
        running.add(work);
      }
    };
    while (failure === null && next < end) {
      // How late a timer is says nothing of the proxy: a statement is due when this process sees that it is.
      const now = performance.now();
      for (; next <= now && next < end; next += (-Math.log(this.#draw(1_000_000) / 1_000_001) * 1000) / rate)
        due.push({ question: drawn(this.#draw), since: now });
      serve();
      await new Promise((resolve) => setTimeout(resolve, TICK_MS));
    }
    while (running.size > 0) await Promise.all(running);
    if (failure !== null) throw failure;
  }

  async #ask(client: AskingClient, question: Question, since: number): Promise<void> {
    const sqlstate = await client.ask(question);
    const us = (performance.now() - since) * 1000;
    this.#statements += 1;
    if (sqlstate !== null) this.#errors[sqlstate] = (this.#errors[sqlstate] ?? 0) + 1;
    if (question.locked) this.#locked.add(us);
    else if (!question.slow) this.#others.add(us);
  }
}
