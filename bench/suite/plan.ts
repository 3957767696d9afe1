import {
  type CellResult,
  DIRECT,
  FORESHARD,
  PROTOCOLS,
  ROUTED,
  WORKERS,
  type WorkloadName,
} from '../results/results.js';
import type { Options, Part } from './options.js';

/** One measurement that all its peers take part in. */
export interface Cell extends Pick<CellResult, 'workload' | 'shards' | 'protocol' | 'clients' | 'load'> {
  readonly peers: readonly string[];
}

const PART_OF: Readonly<Record<WorkloadName, Part>> = { select: 'select', tpcb: 'tpcb', key: 'tpcb', orm: 'orm' };

/** Where the workloads run, in the order of the tables. */
const SUITE: readonly { readonly workload: WorkloadName; readonly shards: number }[] = [
  { workload: 'select', shards: 1 },
  { workload: 'select', shards: 3 },
  { workload: 'tpcb', shards: 1 },
  { workload: 'key', shards: 3 },
  { workload: 'orm', shards: 1 },
];

/**
 * What is measured, in the order of one round.
 * @param poolers names of the poolers that run beside Foreshard
 * @param hasPgbench whether pgbench is there
 */
export function planCells(options: Options, poolers: readonly string[], hasPgbench: boolean): Cell[] {
  const cells: Cell[] = [];
  for (const { workload, shards } of SUITE) {
    if (!options.parts.includes(PART_OF[workload]) || !options.shards.includes(shards)) continue;
    for (const protocol of PROTOCOLS) {
      if (!options.protocols.includes(protocol)) continue;
      for (const clients of options.clients) {
        const cell = { workload, shards, protocol, clients } as const;
        if (options.quick && !isQuick(cell)) continue;
        const load = hasPgbench && !options.generator && pgbenchCan(cell, options.poolSize) ? 'pgbench' : 'generator';
        cells.push({ ...cell, load, peers: peersOf(cell, poolers, options) });
      }
    }
  }
  return cells;
}

/** All protocols at 16 clients, simple at the others too; with three shards and for TPC-B less. */
function isQuick({ workload, shards, protocol, clients }: Omit<Cell, 'load' | 'peers'>): boolean {
  if (workload === 'select' && shards === 1) return protocol === 'simple' || clients === 16;
  if (workload === 'tpcb') return clients === 16 && protocol !== 'prepared';
  return clients === 16 && protocol !== 'simple';
}

/**
 * Whether pgbench can make this load. It waits for the answer to each Parse, and all clients of its thread wait with it: when
 * those hold all server connections in transactions, it waits for itself.
 */
function pgbenchCan(cell: Omit<Cell, 'load' | 'peers'>, poolSize: number): boolean {
  if (cell.workload === 'orm') return false;
  return cell.workload === 'select' || cell.protocol !== 'prepared' || cell.clients <= poolSize;
}

function peersOf(
  { workload, shards }: Omit<Cell, 'load' | 'peers'>,
  poolers: readonly string[],
  { workers }: Options,
): string[] {
  const routed = workload === 'select' && shards === 1 ? [ROUTED] : [];
  return [DIRECT, ...poolers, FORESHARD, ...routed, ...(workers > 1 && shards === 1 ? [WORKERS] : [])];
}

/** The order in which peers take their turn: another one is first in each round and each cell, so that being first helps nobody. */
export function rotate<T>(peers: readonly T[], by: number): T[] {
  const first = peers.length === 0 ? 0 : by % peers.length;
  return [...peers.slice(first), ...peers.slice(0, first)];
}

/** Clients of the load that warms up, at most. */
const WARM_CLIENTS = 16;

/** One measurement that does not count for each peer, workload and protocol. */
export function warmUps(cells: readonly Cell[]): { cell: Cell; peer: string }[] {
  const kinds = new Map<string, Cell>();
  for (const cell of cells) {
    const kind = `${cell.workload} ${cell.shards} ${cell.protocol}`;
    const known = kinds.get(kind);
    // The most clients that are not too many: each brings a connection into the pool.
    if (known === undefined || (cell.clients <= WARM_CLIENTS && cell.clients > known.clients)) kinds.set(kind, cell);
  }
  return [...kinds.values()].flatMap((cell) => cell.peers.map((peer) => ({ cell, peer })));
}

/** Seconds beside the measuring itself that one measurement takes: connecting, reading the log, settling. */
const OVERHEAD_SECONDS = 0.6;

/** How long the cells will take, in seconds. */
export function estimateSeconds(cells: readonly Cell[], options: Pick<Options, 'rounds' | 'seconds'>): number {
  const round = cells.reduce((sum, cell) => sum + cell.peers.length, 0);
  const runs = round * options.rounds + warmUps(cells).length;
  return runs * (options.seconds + OVERHEAD_SECONDS);
}
