import { throughputRatio } from './ratios.js';
import {
  cellId,
  DIRECT,
  FORESHARD,
  type MemoryResult,
  PGBOUNCER,
  type Protocol,
  type Results,
  ROUTED,
  type WorkloadName,
} from './results.js';
import type { Spread } from './statistics.js';

/** What Foreshard is meant to reach on a machine with two cores, the server and the load on the same machine, one shard. */
interface Target {
  readonly workload: WorkloadName;
  readonly protocol: Protocol;
  readonly ours: string;
  readonly against: string;
  /** Least ratio of throughputs by number of clients. */
  readonly ratios: Readonly<Record<number, number>>;
}

const byClients = (...ratios: readonly [number, number, number, number, number]): Record<number, number> =>
  Object.fromEntries([1, 4, 16, 64, 256].map((clients, i) => [clients, ratios[i] as number]));

const TARGETS: readonly Target[] = [
  select('simple', FORESHARD, DIRECT, byClients(0.75, 0.6, 1.0, 1.5, 2.5)),
  select('simple', FORESHARD, PGBOUNCER, byClients(0.95, 1.0, 1.25, 1.7, 1.65)),
  select('extended', FORESHARD, PGBOUNCER, byClients(0.95, 1.0, 1.2, 1.5, 1.6)),
  select('prepared', FORESHARD, PGBOUNCER, byClients(0.95, 1.0, 1.2, 1.5, 1.6)),
  ...(['simple', 'extended', 'prepared'] as const).map(
    (protocol): Target => ({
      workload: 'tpcb',
      protocol,
      ours: FORESHARD,
      against: PGBOUNCER,
      ratios: byClients(0.9, 0.95, 0.95, 1.0, 1.0),
    }),
  ),
  select('simple', ROUTED, FORESHARD, byClients(0.92, 0.92, 0.92, 0.92, 0.92)),
];

function select(protocol: Protocol, ours: string, against: string, ratios: Record<number, number>): Target {
  return { workload: 'select', protocol, ours, against, ratios };
}

/** How one target came out. */
export interface Outcome {
  readonly cell: string;
  readonly ours: string;
  readonly against: string;
  readonly least: number;
  /** null: not measured. */
  readonly ratio: Spread | null;
  /** Why it was not measured. */
  readonly reason: string;
}

export function isMet({ ratio, least }: Outcome): boolean {
  return ratio !== null && ratio.median >= least;
}

/** Each target beside what a run measured. */
export function outcomes(results: Pick<Results, 'cells'>): Outcome[] {
  return TARGETS.flatMap(({ workload, protocol, ours, against, ratios }) =>
    Object.entries(ratios).map(([clients, least]) => {
      const id = cellId({ workload, shards: 1, protocol, clients: Number(clients) });
      const cell = results.cells.find((candidate) => cellId(candidate) === id);
      const ratio = cell === undefined ? null : throughputRatio(cell, ours, against);
      const reason = cell?.absent.find(({ peer }) => peer === ours || peer === against)?.reason ?? 'not in this run';
      return { cell: id, ours, against, least, ratio, reason: ratio === null ? reason : '' };
    }),
  );
}

const KIB = { name: 'KiB', bytes: 1024 } as const;
const MIB = { name: 'MiB', bytes: 1024 * 1024 } as const;
/** What one idle client may take, and so many of them with the process itself. */
const CLIENT_BYTES = 20 * KIB.bytes;
const MANY_CLIENTS = 5000;
const MANY_BYTES = 200 * MIB.bytes;

/** How a target of memory came out. */
interface MemoryOutcome {
  readonly what: string;
  readonly most: number;
  readonly bytes: number;
  readonly unit: typeof KIB | typeof MIB;
}

/** What one of the second half of the clients took: the first thousand make V8's young generation grow, once for the process. */
export function bytesOfOne(found: Pick<MemoryResult, 'idleClients' | 'bytesWithHalf' | 'bytesWith'>): number {
  return (found.bytesWith - found.bytesWithHalf) / (found.idleClients - (found.idleClients >> 1));
}

/** None where it was not measured with so many. */
export function memoryOutcomes(found: readonly MemoryResult[]): MemoryOutcome[] {
  const ours = found.find(({ peer, idleClients }) => peer === FORESHARD && idleClients >= MANY_CLIENTS);
  if (ours === undefined) return [];
  const { idleClients, bytesWith } = ours;
  return [
    { what: 'an idle client', most: CLIENT_BYTES, bytes: bytesOfOne(ours), unit: KIB },
    { what: `${idleClients} of them`, most: (MANY_BYTES / MANY_CLIENTS) * idleClients, bytes: bytesWith, unit: MIB },
  ];
}
