import { type CellResult, cellId, DIRECT, FORESHARD, PGBOUNCER, type Results, ROUTED, type Sample } from './results.js';
import { ratioSpread, type Spread } from './statistics.js';

/** Ratios by name. All are made so that more is better for Foreshard. */
export type Ratios = Readonly<Record<string, Spread>>;

const PAIRS: readonly (readonly [ours: string, theirs: string])[] = [
  [FORESHARD, DIRECT],
  [FORESHARD, PGBOUNCER],
  [ROUTED, FORESHARD],
];

/** `select/1/simple/16 foreshard/direct`: transactions per second. */
export function ratioId(cell: string, ours: string, theirs: string): string {
  return `${cell} ${ours}/${theirs}`;
}

/** One figure of a peer's samples by round. */
export function byRound(
  cell: CellResult,
  peer: string,
  figure: (sample: Sample) => number | null,
): Map<number, number> {
  const values = new Map<number, number>();
  for (const sample of cell.samples) {
    const value = sample.peer === peer ? figure(sample) : null;
    if (value !== null) values.set(sample.round, value);
  }
  return values;
}

/** Throughput of one peer over that of another in a cell; null when a round with both is missing. */
export function throughputRatio(cell: CellResult, ours: string, theirs: string): Spread | null {
  const tps = (sample: Sample) => sample.tps;
  return ratioSpread(byRound(cell, ours, tps), byRound(cell, theirs, tps));
}

/** All ratios that are kept and compared between runs: throughput, processor time, memory, microbenchmarks. */
export function ratiosOf(results: Pick<Results, 'cells' | 'memory' | 'micro'>): Ratios {
  const ratios: Record<string, Spread> = {};
  const keep = (id: string, spread: Spread | null) => {
    if (spread !== null) ratios[id] = spread;
  };
  for (const cell of results.cells) {
    for (const [ours, theirs] of PAIRS) keep(ratioId(cellId(cell), ours, theirs), throughputRatio(cell, ours, theirs));
    const cpu = (sample: Sample) => sample.cpuUsPerTransaction;
    keep(
      `${cellId(cell)} cpu ${PGBOUNCER}/${FORESHARD}`,
      ratioSpread(byRound(cell, PGBOUNCER, cpu), byRound(cell, FORESHARD, cpu)),
    );
  }
  for (const ours of results.memory.filter(({ peer }) => peer === FORESHARD))
    for (const theirs of results.memory) {
      if (theirs.peer !== PGBOUNCER || theirs.idleClients !== ours.idleClients) continue;
      const ratio = theirs.bytesWith / ours.bytesWith;
      keep(`memory/${ours.idleClients} ${PGBOUNCER}/${FORESHARD}`, {
        median: ratio,
        low: ratio,
        high: ratio,
        count: 1,
      });
    }
  for (const ours of results.micro.filter(({ role }) => role === 'ours'))
    for (const theirs of results.micro) {
      if (theirs.role !== 'reference' || theirs.task !== ours.task) continue;
      // Not measured in the same rounds: the extremes are what lies furthest apart.
      keep(`micro ${ours.task}: ${theirs.contender}/${ours.contender}`, {
        median: theirs.us.median / ours.us.median,
        low: theirs.us.low / ours.us.high,
        high: theirs.us.high / ours.us.low,
        count: ours.us.count,
      });
    }
  return ratios;
}
