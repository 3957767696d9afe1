import { describe, type Move, type PlanningInput, type SplitChoice, segmentsOfMove } from './choose-split.js';
import { type Assessment, assess, stepAt, sumSeries } from './outlook.js';
import type { Proposal, ShardOutlook } from './proposal.js';
import type { Rates } from './rates.js';
import { formatLoad, formatMoment, formatPercent } from './report/format.js';
import type { TableSize } from './sizes.js';

/** Moves whose loads are this near to the wanted one, as a share of the shard's load, are told apart by what they cost. */
const NEAR = 0.05;
export const DEFAULT_MARGIN_SECONDS = 900;

export interface MoveCost {
  readonly move: Move;
  readonly sizes: readonly TableSize[];
}

export interface ProposeOptions {
  readonly rates: Rates;
  readonly marginSeconds?: number;
  /** Further reasons for which it cannot be carried out now. */
  readonly blockers?: readonly string[];
}

/** Of the moves that relieve about as well as the best, the one with the fewest bytes. */
export function cheapest(choice: SplitChoice, costs: readonly MoveCost[]): MoveCost {
  const [nearest] = choice.moves;
  const candidates = costs.filter((c) => Math.abs(c.move.load - (nearest as Move).load) <= NEAR * choice.sourceLoad);
  return (candidates.length > 0 ? candidates : costs).reduce((a, b) => (bytesOf(b) < bytesOf(a) ? b : a));
}

/**
 * Turns a chosen move into a proposal: what it costs, how long it takes, when to start, and how both shards look
 * afterwards (forecast anew from the histories they would have had). Pure.
 */
export function propose(
  input: PlanningInput,
  choice: SplitChoice,
  { move, sizes }: MoveCost,
  options: ProposeOptions,
): Proposal {
  const { source, target, keyspace, loads, window } = choice;
  const { grid, assessments } = input;
  const { rates, marginSeconds = DEFAULT_MARGIN_SECONDS } = options;
  const blockers = [...(options.blockers ?? [])];

  const rows = sizes.reduce((sum, s) => sum + s.rows, 0);
  const bytes = bytesOf({ move, sizes });
  const copySeconds = bytes / rates.copyBytesPerSecond;
  // Every writing statement is taken as one row: history counts statements. Busiest recent day, not the mean.
  const writesPerSecond = loads.reduce(
    (sum, { segment }, i) => sum + (move.shares[i] as number) * busiest(segment.writes, grid.stepSeconds),
    0,
  );
  const spare = rates.applyRowsPerSecond - writesPerSecond;
  if (spare <= 0)
    blockers.push(
      `the range is written at ${Math.round(writesPerSecond)} statements/s, the target can apply ${Math.round(rates.applyRowsPerSecond)} rows/s: it would never catch up`,
    );
  // What is written during the copy waits; while it is applied, more is written.
  const catchUpSeconds = spare > 0 ? (writesPerSecond * copySeconds) / spare : 0;

  const moved = sumSeries(
    loads.map(({ segment }, i) => segment.load.map((v) => v * (move.shares[i] as number))),
    grid.length,
  );
  const before = assessments.get(source.name) as Assessment;
  const targetBefore = assessments.get(target.name);
  const remaining = before.load.map((v, i) => Math.max(0, v - (moved[i] as number)));
  const received = targetBefore === undefined ? moved : sumSeries([targetBefore.load, moved], grid.length);
  const after = [
    assess(source.name, source.capacityMsPerSecond as number, remaining, grid),
    assess(target.name, target.capacityMsPerSecond as number, received, grid),
  ].filter((a): a is Assessment => a !== null);

  const { outlook } = before;
  const likely = outlook.forecast.p95.findIndex((v) => v > outlook.capacityMsPerSecond);
  const deadline = outlook.crossesAt ?? (likely < 0 ? null : (outlook.forecast.at[likely] as number));
  const leadMs = (copySeconds + catchUpSeconds + marginSeconds) * 1000 + rates.pauseMs;
  const share = move.load / choice.sourceLoad;
  return {
    kind: 'split_move',
    spec: {
      kind: 'move',
      keyspace: keyspace.name,
      lo: move.interval.lo,
      hi: move.interval.hi,
      from: source.name,
      to: target.name,
    },
    why: why(choice, move, outlook, after, share),
    splitAt: move.splitAt,
    keyspace: keyspace.name,
    rows,
    bytes,
    tables: sizes,
    copySeconds,
    catchUpSeconds,
    copyBytesPerSecond: rates.copyBytesPerSecond,
    applyRowsPerSecond: rates.applyRowsPerSecond,
    ratesFrom: rates.source,
    expectedPauseMs: rates.pauseMs,
    startBy: deadline === null ? null : Math.floor(deadline - leadMs),
    deadline,
    marginSeconds,
    before: targetBefore === undefined ? [outlook] : [outlook, targetBefore.outlook],
    after: after.map((a) => a.outlook),
    movedLoadShare: share,
    crossShardShare: null,
    segments: segmentsOfMove(choice, move),
    peakWindow: {
      from: stepAt(grid, grid.length + window.from),
      to: stepAt(grid, grid.length + window.to),
    },
    blockers,
    ifNothingIsDone: ifNothing(outlook),
  };
}

function bytesOf(cost: MoveCost): number {
  return cost.sizes.reduce((sum, s) => sum + s.bytes, 0);
}

/** Mean rate of the busiest hour of the last day. */
function busiest(rates: Float64Array, stepSeconds: number): number {
  const day = rates
    .subarray(Math.max(0, rates.length - Math.ceil(86_400 / stepSeconds)))
    .filter((v) => !Number.isNaN(v));
  const hour = Math.max(1, Math.round(3600 / stepSeconds));
  let best = 0;
  for (let i = 0; i < day.length; i += hour) {
    const part = day.subarray(i, i + hour);
    best = Math.max(best, part.reduce((a, b) => a + b, 0) / part.length);
  }
  return best;
}

function why(
  choice: SplitChoice,
  move: Move,
  outlook: ShardOutlook,
  after: readonly Assessment[],
  share: number,
): string {
  const { source, target, keyspace } = choice;
  const crossing =
    outlook.crossesAt === null
      ? `is likely to pass its capacity of ${formatLoad(outlook.capacityMsPerSecond)} (its median forecast peaks at ${formatLoad(outlook.peak.p50)}, its 95 % quantile at ${formatLoad(outlook.peak.p95)})`
      : outlook.crossesAt === outlook.forecast.at[0]
        ? `is passing its capacity of ${formatLoad(outlook.capacityMsPerSecond)} now, and is expected to reach a peak of ${formatLoad(outlook.peak.p50)}`
        : `is expected to pass its capacity of ${formatLoad(outlook.capacityMsPerSecond)} at ${formatMoment(outlook.crossesAt)}, with a peak of ${formatLoad(outlook.peak.p50)}`;
  const middle =
    choice.targetLoad === 0 && share > 0.45 && share < 0.55
      ? 'the median of its load'
      : 'the cut that leaves both shards most equally loaded';
  const still = after.filter((a) => a.outlook.crossesAt !== null).map((a) => `"${a.outlook.shard}"`);
  const rest =
    still.length === 0
      ? ''
      : ` This is not enough by itself: ${still.join(' and ')} would still pass capacity, so another split will be proposed after it.`;
  return `Shard "${source.name}" ${crossing}; the probability within the horizon is ${formatPercent(outlook.score)}. Keyspace "${keyspace.name}" is cut at ${describe(keyspace, move.splitAt)}, ${middle} at the forecast peak: ${formatPercent(share)} of it goes to shard "${target.name}", the one with the most room.${rest}`;
}

function ifNothing(outlook: ShardOutlook): string {
  const { capacityMsPerSecond: capacity, forecast } = outlook;
  const over = forecast.p50.filter((v) => v > capacity).length;
  const hours = (over * forecast.stepSeconds) / 3600;
  const horizon = (forecast.p50.length * forecast.stepSeconds) / 3600;
  if (over === 0)
    return `With a probability of ${formatPercent(outlook.score)}, "${outlook.shard}" passes its capacity within the next ${horizon.toFixed(0)} hours; its median forecast stays below.`;
  return `"${outlook.shard}" spends about ${hours < 1 ? `${Math.round(hours * 60)} minutes` : `${hours.toFixed(hours < 10 ? 1 : 0)} hours`} of the next ${horizon.toFixed(0)} above its capacity, at up to ${formatPercent(outlook.peak.p50 / capacity)} of it; statements queue and slow down for every key on the shard.`;
}
