import { z } from 'zod';

/** What a run of the benchmarks found: every sample, the machine and the versions. The JSON file is exactly this. */

export const WORKLOADS = ['select', 'tpcb', 'key', 'orm'] as const;
export const PROTOCOLS = ['simple', 'extended', 'prepared'] as const;
export type WorkloadName = (typeof WORKLOADS)[number];
export type Protocol = (typeof PROTOCOLS)[number];

const latency = z.strictObject({
  p50: z.number(),
  p99: z.number(),
  p999: z.number(),
  /** How many transactions they come from. */
  count: z.number(),
});

const sample = z.strictObject({
  peer: z.string(),
  round: z.number(),
  /** Which of the peers of its round it was, from 0. */
  position: z.number(),
  transactions: z.number(),
  seconds: z.number(),
  /** Transactions per second, without the time that connecting took. */
  tps: z.number(),
  latencyMs: latency.nullable(),
  /** Processor time of the peer's own processes; null where there are none (direct) or the system does not tell. */
  cpuUsPerTransaction: z.number().nullable(),
});

const cell = z.strictObject({
  workload: z.enum(WORKLOADS),
  shards: z.number(),
  protocol: z.enum(PROTOCOLS),
  clients: z.number(),
  /** What made the load. */
  load: z.enum(['pgbench', 'generator']),
  samples: z.array(sample),
  /** Peers that could not take part, and why. */
  absent: z.array(z.strictObject({ peer: z.string(), reason: z.string() })),
});

const memory = z.strictObject({
  peer: z.string(),
  idleClients: z.number(),
  /** Proportional set size of the peer's processes before the clients came, with half and with all of them idle. */
  bytesBefore: z.number(),
  bytesWithHalf: z.number(),
  bytesWith: z.number(),
});

const micro = z.strictObject({
  /** What was done, such as "route: pgbench select". */
  task: z.string(),
  /** Whose work it is. */
  contender: z.string(),
  /** Ours are compared with the one reference; others are only shown. */
  role: z.enum(['ours', 'reference', 'other']),
  us: z.strictObject({ median: z.number(), low: z.number(), high: z.number(), count: z.number() }),
});

export const resultsSchema = z.strictObject({
  format: z.literal(1),
  startedAt: z.string(),
  seconds: z.number(),
  options: z.strictObject({
    quick: z.boolean(),
    rounds: z.number(),
    seconds: z.number(),
    scale: z.number(),
    poolSize: z.number(),
    workers: z.number(),
    lanes: z.enum(['auto', 'single', 'off']).default('off'),
  }),
  machine: z.strictObject({
    processor: z.string(),
    cores: z.number(),
    memoryBytes: z.number(),
    system: z.string(),
    node: z.string(),
  }),
  versions: z.record(z.string(), z.string()),
  cells: z.array(cell),
  memory: z.array(memory),
  micro: z.array(micro),
  /** What parts print that have no figures to compare. */
  reports: z.record(z.string(), z.string()),
});

export type Results = z.output<typeof resultsSchema>;
export type CellResult = z.output<typeof cell>;
export type Sample = z.output<typeof sample>;
export type LatencyMs = z.output<typeof latency>;
export type MemoryResult = z.output<typeof memory>;
export type MicroResult = z.output<typeof micro>;

/** How the peer is called that is Foreshard itself, the one whose keyspace is sharded, and the server without anything before it. */
export const FORESHARD = 'foreshard';
export const ROUTED = 'foreshard-routed';
/** With several worker processes. */
export const WORKERS = 'foreshard-workers';
export const DIRECT = 'direct';
export const PGBOUNCER = 'pgbouncer';

/** A cell's name: `select/1/simple/16` is 16 clients. */
export function cellId(cell: Pick<CellResult, 'workload' | 'shards' | 'protocol' | 'clients'>): string {
  return `${cell.workload}/${cell.shards}/${cell.protocol}/${cell.clients}`;
}
