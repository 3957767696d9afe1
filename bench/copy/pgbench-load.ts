import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { percentile } from '../results/statistics.js';
import type { Phase } from './phases.js';

/** As TPC-B: an update, a read of it, an insert, in one transaction. */
const SCRIPT = `
\\set tenant random(:from, :to)
\\set order random(1, :orders)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE orders SET n = n + :delta WHERE tenant_id = :tenant AND id = :order;
SELECT n FROM orders WHERE tenant_id = :tenant AND id = :order;
INSERT INTO history (tenant_id, order_id, delta) VALUES (:tenant, :order, :delta);
END;
`;
/** Of the log's end, which is in the program's buffer when it is ended. ms */
const LOST_MS = 500;

export interface LoadOptions {
  readonly pgbench: string;
  /** Where it may write. */
  readonly folder: string;
  readonly url: string;
  readonly clients: number;
  /** Of each tenant. */
  readonly orders: number;
  readonly tenants: readonly [from: number, to: number];
}

/** What a load did in a part of its time. */
export interface LoadFigures {
  readonly seconds: number;
  readonly tps: number;
  readonly p99: number;
}

/** A load at full speed, until it is stopped; every transaction is written down. */
export class PgbenchLoad {
  readonly #child: ChildProcess;
  readonly #folder: string;
  #stderr = '';
  /** When each transaction ended (ms) and how long it had taken (ms). */
  #transactions: { readonly at: number; readonly ms: number }[] = [];
  #until = 0;

  constructor({ pgbench, folder, url, clients, orders, tenants: [from, to] }: LoadOptions) {
    this.#folder = join(folder, 'pgbench');
    rmSync(this.#folder, { recursive: true, force: true });
    mkdirSync(this.#folder);
    writeFileSync(join(this.#folder, 'script.sql'), SCRIPT);
    const { hostname, port, username, password, pathname } = new URL(url);
    const args = ['-n', '-f', 'script.sql', '-M', 'prepared', '-c', `${clients}`, '-j', '1', '-T', '3600'];
    args.push('--log', '--log-prefix=log', '-D', `from=${from}`, '-D', `to=${to}`, '-D', `orders=${orders}`);
    args.push('-h', hostname, '-p', port, '-U', username, pathname.slice(1));
    this.#child = spawn(pgbench, args, {
      cwd: this.#folder,
      env: { PATH: process.env.PATH ?? '', LC_ALL: 'C', PGPASSWORD: decodeURIComponent(password) },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#child.stderr?.on('data', (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString()).slice(-2000);
    });
  }

  /** @throws Error when a client of it has given up, or all have */
  async stop(): Promise<void> {
    if (this.#isOver || /error/i.test(this.#stderr)) throw new Error(`the load has failed: ${this.#stderr}`);
    this.#until = Date.now() - LOST_MS;
    await this.end();
    for (const name of readdirSync(this.#folder).filter((file) => file.startsWith('log.')))
      for (const line of readFileSync(join(this.#folder, name), 'utf8').split('\n')) {
        // client, transaction, µs, script, s, µs
        const [, , us, , s, part] = line.split(' ');
        if (part !== undefined)
          this.#transactions.push({ at: Number(s) * 1000 + Number(part) / 1000, ms: Number(us) / 1000 });
      }
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** If it has not ended. */
  async end(): Promise<void> {
    if (this.#isOver) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await gone;
  }

  get #isOver(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** Null when that was too short to be told from chance. */
  figures({ from, to }: Pick<Phase, 'from' | 'to'>): LoadFigures | null {
    const end = Math.min(to, this.#until);
    const seconds = (end - from) / 1000;
    if (seconds < 0.25) return null;
    const sorted = this.#transactions
      .filter((t) => t.at >= from && t.at < end)
      .map((t) => t.ms)
      .sort((a, b) => a - b);
    return { seconds, tps: sorted.length / seconds, p99: percentile(sorted, 0.99) };
  }
}
