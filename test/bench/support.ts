import type { CellResult, Results, Sample } from '../../bench/results/results.js';

/** A sample with this throughput; nothing else about it matters. */
export function sample(peer: string, round: number, tps: number, more: Partial<Sample> = {}): Sample {
  return {
    peer,
    round,
    position: 0,
    transactions: tps * 2,
    seconds: 2,
    tps,
    latencyMs: { p50: 1, p99: 2, p999: 3, count: 100 },
    cpuUsPerTransaction: null,
    ...more,
  };
}

/** A cell of select-only, simple, one shard. @param tps throughputs of each peer, round by round */
export function cell(
  clients: number,
  tps: Readonly<Record<string, readonly number[]>>,
  more: Partial<CellResult> = {},
): CellResult {
  return {
    workload: 'select',
    shards: 1,
    protocol: 'simple',
    clients,
    load: 'pgbench',
    samples: Object.entries(tps).flatMap(([peer, values]) => values.map((value, round) => sample(peer, round, value))),
    absent: [],
    ...more,
  };
}

export function results(cells: CellResult[], more: Partial<Results> = {}): Results {
  return {
    format: 1,
    startedAt: '2026-01-02T03:04:05.678Z',
    seconds: 60,
    options: { quick: false, rounds: 3, seconds: 2, scale: 10, poolSize: 20, workers: 1, lanes: 'auto' },
    machine: { processor: 'A <processor>', cores: 2, memoryBytes: 8e9, system: 'Linux 6', node: '20.19.0' },
    versions: { foreshard: '0.1.0', postgresql: '18.4' },
    cells,
    memory: [],
    micro: [],
    reports: {},
    ...more,
  };
}
