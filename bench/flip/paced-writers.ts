import pg from 'pg';

export const TENANTS = 200;
/** The interval that moves: tenants from here … */
export const MOVES_FROM = 100;
/** … to before this one; those behind it stay on the second shard. */
export const MOVES_TO = 190;
/** Rows of each tenant at the beginning. */
export const ROWS = 50;

/** Of all servers. */
export const USER = 'app';
export const PASSWORD = 'app';

export interface WritersOrder {
  /** Of the proxies; writers take them in turns. */
  readonly ports: readonly number[];
  readonly writers: number;
  /** Writes a second, of all together. */
  readonly rate: number;
}

/** One write; times in ms of the machine's monotonic clock, the same in every process. */
export interface Write {
  readonly sentAt: number;
  readonly answeredAt: number;
  /** Of the interval that moves. */
  readonly moves: boolean;
  /** Writer whose own row it is, in the interval; null: another row. */
  readonly ownRow: number | null;
}

export interface WritersReport {
  readonly writes: readonly Write[];
  readonly errors: readonly string[];
}

/** The clock of `Write`. */
export function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/**
 * Clients at a fixed rate: each sends its next write when it is due, or as soon as the last one is answered. A quarter of the writes
 * changes the writer's own row, in the interval; another the same for a row outside of it; a quarter changes any row; a quarter inserts.
 */
export class PacedWriters {
  readonly #stop = new AbortController();
  readonly #running: Promise<void>[];
  #writes: Write[] = [];
  #errors: string[] = [];

  constructor({ ports, writers, rate }: WritersOrder) {
    const everyMs = (writers * 1000) / rate;
    this.#running = Array.from({ length: writers }, (_, no) =>
      this.#run(no, ports[no % ports.length] as number, everyMs).catch((error: Error) => {
        this.#errors.push(error.message);
      }),
    );
  }

  /** What was answered since the last report. */
  report(): WritersReport {
    const report = { writes: this.#writes, errors: this.#errors };
    this.#writes = [];
    this.#errors = [];
    return report;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#running);
  }

  async #run(no: number, port: number, everyMs: number): Promise<void> {
    const client = new pg.Client({ connectionString: `postgres://${USER}@127.0.0.1:${port}/shop` });
    client.on('error', (error) => this.#errors.push(error.message));
    await client.connect();
    let due = nowMs() + (everyMs * no) / 8;
    for (let n = 0; !this.#stop.signal.aborted; n++) {
      const pause = due - nowMs();
      if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
      due = Math.max(due + everyMs, nowMs());
      const sentAt = nowMs();
      const { tenant, ownRow } = await this.#write(client, no, n);
      this.#writes.push({ sentAt, answeredAt: nowMs(), moves: tenant >= MOVES_FROM && tenant < MOVES_TO, ownRow });
    }
    await client.end();
  }

  async #write(client: pg.Client, no: number, n: number): Promise<{ tenant: number; ownRow: number | null }> {
    const update = async (tenant: number, id: number) => {
      try {
        const { rowCount } = await client.query({
          name: 'update',
          text: 'UPDATE orders SET n = n + 1 WHERE tenant_id = $1 AND id = $2',
          values: [tenant, id],
        });
        if (rowCount !== 1) this.#errors.push(`row ${tenant}/${id} was changed ${rowCount} times`);
      } catch (error) {
        this.#errors.push((error as Error).message);
      }
    };
    switch (n % 4) {
      case 0:
        await update(MOVES_FROM + no, 1);
        return { tenant: MOVES_FROM + no, ownRow: no };
      case 1:
        await update(1 + no, 1);
        return { tenant: 1 + no, ownRow: null };
      case 2: {
        const tenant = 1 + Math.floor(Math.random() * (TENANTS - 1));
        await update(tenant, 2 + Math.floor(Math.random() * (ROWS - 1)));
        return { tenant, ownRow: null };
      }
      default: {
        const tenant = 1 + Math.floor(Math.random() * (TENANTS - 1));
        try {
          await client.query({
            name: 'insert',
            text: 'INSERT INTO orders VALUES ($1, $2, 0, $3)',
            values: [tenant, 1_000_000 * (no + 1) + n, 'new'],
          });
        } catch (error) {
          this.#errors.push((error as Error).message);
        }
        return { tenant, ownRow: null };
      }
    }
  }
}
