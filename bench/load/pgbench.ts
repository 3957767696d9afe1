import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LatencyMs } from '../results/results.js';
import { percentile } from '../results/statistics.js';
import { run } from '../suite/programs.js';
import type { LoadOutcome, LoadRequest } from './load.js';
import { PGBENCH_SCRIPTS } from './workloads.js';

/** Share of the transactions whose latencies are written down: enough for p99.9, few enough not to be felt. */
const SAMPLED = 0.2;

/** Makes a load with pgbench, and reads what it found. @throws Error with pgbench's own words when it failed */
export async function runPgbench(pgbench: string, folder: string, request: LoadRequest): Promise<LoadOutcome> {
  const { workload } = request;
  if (workload === 'orm') throw new Error('pgbench has no script for the ORM-like mix');
  const work = join(folder, 'pgbench');
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work);
  writeFileSync(join(work, 'script.sql'), PGBENCH_SCRIPTS[workload]);
  const args = ['-n', '-f', 'script.sql', '-M', request.protocol, '-D', `scale=${request.scale}`];
  args.push('-c', `${request.clients}`, '-j', `${Math.min(request.clients, request.threads)}`);
  args.push('-T', `${request.seconds}`, '--log', `--sampling-rate=${SAMPLED}`, '--log-prefix=log');
  args.push('-h', '127.0.0.1', '-p', `${request.port}`, '-U', request.user, request.database);
  const env = { PGPASSWORD: request.password, PGSSLMODE: 'disable', PGGSSENCMODE: 'disable' };
  const { code, stdout, stderr } = await run(pgbench, args, { cwd: work, env });
  if (code !== 0) throw new Error(`pgbench ended with ${code}: ${stderr.trim().slice(-1500)}`);
  return { ...parsePgbench(stdout), seconds: request.seconds, latencyMs: readLogs(work) };
}

/** The counts that pgbench (14 or later) prints at its end. @throws Error when they are not there, or transactions have failed */
export function parsePgbench(stdout: string): { transactions: number; tps: number } {
  const transactions = /^number of transactions actually processed: (\d+)/m.exec(stdout)?.[1];
  const tps = /^tps = ([\d.]+) \(without initial connection time\)/m.exec(stdout)?.[1];
  if (transactions === '0')
    throw new Error('pgbench had no transaction done by the time it had connected: --seconds 2');
  if (transactions === undefined || tps === undefined)
    throw new Error(`pgbench's output is not understood (14 or later is needed):\n${stdout}`);
  const failed = /^number of failed transactions: (\d+)/m.exec(stdout)?.[1] ?? '0';
  if (failed !== '0') throw new Error(`${failed} transactions failed:\n${stdout}`);
  return { transactions: Number(transactions), tps: Number(tps) };
}

/** Latencies of pgbench's transaction log: the third column is µs. */
export function latencyOfLogs(texts: readonly string[]): LatencyMs | null {
  const times: number[] = [];
  for (const text of texts)
    for (const line of text.split('\n')) {
      const us = line.split(' ', 3)[2];
      if (us !== undefined) times.push(Number(us) / 1000);
    }
  if (times.length === 0) return null;
  const sorted = Float64Array.from(times).sort();
  const at = (q: number) => percentile(sorted, q);
  return { p50: at(0.5), p99: at(0.99), p999: at(0.999), count: sorted.length };
}

function readLogs(folder: string): LatencyMs | null {
  const logs = readdirSync(folder).filter((name) => name.startsWith('log.'));
  return latencyOfLogs(logs.map((name) => readFileSync(join(folder, name), 'utf8')));
}
