import { setTimeout as sleep } from 'node:timers/promises';
import type { Catalog } from '../topology/catalog/catalog.js';
import type { Keyspace, ShardName, Topology } from '../topology/topology.js';
import { chooseSplit, DEFAULT_MIN_SCORE, type PlanningInput } from './choose-split.js';
import { HistoryStore, type KeySample, type Retention, type SegmentSeries } from './history-store.js';
import { type Assessment, assess, type Grid, rangesOn, segmentsIn, sumSeries } from './outlook.js';
import { type PlanReport, proposalToJson, type SavedReport } from './plan-report.js';
import { PlanStore, type StoredPlan } from './plan-store.js';
import { cheapest, DEFAULT_MARGIN_SECONDS, propose } from './propose.js';
import { measuredRates } from './rates.js';
import { ensureSegments } from './segments.js';
import { measureInterval } from './sizes.js';

export interface PlannerOptions {
  /** How far to look ahead, seconds; default 24 hours. */
  readonly horizonSeconds?: number;
  /** A shard is relieved from this probability of passing its capacity, 0–1; default 0.5. A median forecast above capacity always counts. */
  readonly minScore?: number;
  /** Kept free between the end of a migration and the moment it is needed, seconds; default 900. */
  readonly marginSeconds?: number;
  readonly retention?: Partial<Retention>;
  /** What migrations are throttled to, bytes a second; default null: they are not. */
  readonly maxCopyRate?: number | null;
  /** The clock, ms since 1970; default `Date.now`. */
  readonly now?: () => number;
}

export interface PlanOptions {
  /** Enter the proposal in the catalog, so that it can be approved; default true. */
  readonly save?: boolean;
  /** When a plan waits for a decision at this epoch, return it as it is instead of replacing it; default false. */
  readonly keepOpen?: boolean;
}

export interface RunOptions {
  /** Seconds between two plans; default 300. */
  readonly intervalSeconds?: number;
  readonly onReport: (report: SavedReport) => void;
  /** A round that failed; the next comes all the same. */
  readonly onError: (error: unknown) => void;
}

const DAY = 86_400;
const HOUR = 3600;
/** History is read in hours once there is a week of them, and as far back as this. */
const HOURLY_FROM_SECONDS = 7 * DAY;
const HOURLY_WINDOW_SECONDS = 56 * DAY;
/** A younger history is read in steps of five minutes, as far back as minutes are kept. */
const YOUNG_STEP_SECONDS = 300;
const YOUNG_WINDOW_SECONDS = 14 * DAY;
/** Fewer steps than these make no forecast. */
const MIN_STEPS = 24;
const ROLL_UP_SECONDS = 60;

/** Watches the load, forecasts it, and proposes a change before a shard gets hot. Changes nothing but plans and history. */
export class Planner {
  readonly history: HistoryStore;
  readonly plans: PlanStore;
  readonly #catalog: Catalog;
  readonly #options: Required<Omit<PlannerOptions, 'retention'>>;

  constructor(catalog: Catalog, options: PlannerOptions = {}) {
    this.#catalog = catalog;
    this.history = new HistoryStore(catalog.pool, options.retention);
    this.plans = new PlanStore(catalog.pool);
    this.#options = Object.freeze({
      horizonSeconds: options.horizonSeconds ?? DAY,
      minScore: options.minScore ?? DEFAULT_MIN_SCORE,
      marginSeconds: options.marginSeconds ?? DEFAULT_MARGIN_SECONDS,
      maxCopyRate: options.maxCopyRate ?? null,
      now: options.now ?? Date.now,
    });
  }

  /**
   * One run: roll up, read, forecast, score, propose, measure, save.
   * @throws CatalogUnavailableError, or ForeshardError when a shard that would change cannot be measured
   */
  async plan(options: PlanOptions = {}): Promise<SavedReport> {
    const { save = true, keepOpen = false } = options;
    const now = this.#options.now();
    await this.history.maintain(now);
    if (keepOpen) {
      const open = await this.plans.openPlan();
      if (open !== null) return withPlan(open);
    }
    const topology = await this.#catalog.loadTopology();
    const report = await this.#report(topology, now);
    if (!save || report.proposal === null) return { ...report, plan: null };
    return withPlan(await this.plans.savePlan(report));
  }

  /** Rolls up every minute and plans every `intervalSeconds`, until aborted. A plan that waits for a decision is left alone. */
  async run(signal: AbortSignal, options: RunOptions): Promise<void> {
    const { intervalSeconds = 300, onReport, onError } = options;
    let planned = -Infinity;
    while (!signal.aborted) {
      const now = this.#options.now();
      try {
        if (now - planned >= intervalSeconds * 1000) {
          planned = now;
          onReport(await this.plan({ keepOpen: true }));
        } else await this.history.maintain(now);
      } catch (error) {
        onError(error);
      }
      const pause = Math.min(ROLL_UP_SECONDS, intervalSeconds) * 1000;
      // Aborting the pause ends the loop; nothing else can reject here.
      await sleep(pause, undefined, { signal }).catch(() => undefined);
    }
  }

  async #report(topology: Topology, now: number): Promise<PlanReport> {
    const notes: string[] = [];
    const frame = (rest: Pick<PlanReport, 'stepSeconds' | 'outlooks' | 'proposal' | 'verdict'>): PlanReport => ({
      database: topology.database,
      epoch: topology.epoch.toString(),
      createdAt: now,
      horizonSeconds: this.#options.horizonSeconds,
      notes,
      ...rest,
    });
    const keyspaces = [...topology.keyspaces.values()];
    for (const keyspace of keyspaces) await ensureSegments(this.history, keyspace, []);
    const grid = await this.#grid(keyspaces, now);
    if (grid === null)
      return frame({
        stepSeconds: YOUNG_STEP_SECONDS,
        outlooks: [],
        proposal: null,
        verdict:
          keyspaces.length === 0
            ? 'Nothing to plan: there is no keyspace yet. Create one with "foreshard keyspace create".'
            : `Nothing can be said yet: a forecast needs ${(MIN_STEPS * YOUNG_STEP_SECONDS) / HOUR} hours of history. Let the proxy count, or import history.`,
      });

    const input = await this.#input(topology, keyspaces, grid, notes);
    const outlooks = [...input.assessments.values()].map((a) => a.outlook);
    const choice = chooseSplit(input);
    if (choice.kind === 'none') {
      const judged = outlooks.length > 0;
      const verdict = choice.needed
        ? `A shard will pass its capacity, but no split is proposed: ${choice.reasons.join('; ')}.`
        : judged
          ? `Nothing to do: ${choice.reasons.join('; ')}.`
          : 'Nothing can be said: no shard could be judged.';
      return frame({ stepSeconds: grid.stepSeconds, outlooks, proposal: null, verdict });
    }
    const costs = [];
    for (const move of choice.moves)
      costs.push({ move, sizes: await measureInterval(choice.source, choice.keyspace, move.interval) });
    const proposal = propose(input, choice, cheapest(choice, costs), {
      rates: await measuredRates(this.#catalog.pool, this.#options.maxCopyRate),
      marginSeconds: this.#options.marginSeconds,
      blockers: await this.#blockers(),
    });
    return frame({
      stepSeconds: grid.stepSeconds,
      outlooks,
      proposal: proposalToJson(choice.keyspace, proposal),
      verdict: proposal.why,
    });
  }

  /** Hours when there is a week of them, else steps of five minutes; null when there is too little of either. */
  async #grid(keyspaces: readonly Keyspace[], now: number): Promise<Grid | null> {
    const oldest = async (step: 60 | 3600): Promise<number> => {
      const found = await Promise.all(keyspaces.map((k) => this.history.oldest(k, step)));
      return Math.min(...found.map((at) => at ?? Infinity));
    };
    const make = (stepSeconds: number, first: number, windowSeconds: number): Grid => {
      const stepMs = stepSeconds * 1000;
      const end = Math.floor(now / stepMs) * stepMs;
      const start = Math.max(Math.ceil(first / stepMs) * stepMs, end - windowSeconds * 1000);
      const horizon = Math.max(1, Math.round(this.#options.horizonSeconds / stepSeconds));
      return { stepSeconds, start, length: Math.max(0, (end - start) / stepMs), horizon };
    };
    const hourly = make(HOUR, await oldest(3600), HOURLY_WINDOW_SECONDS);
    if (hourly.length * HOUR >= HOURLY_FROM_SECONDS) return hourly;
    const young = make(YOUNG_STEP_SECONDS, await oldest(60), YOUNG_WINDOW_SECONDS);
    return young.length >= MIN_STEPS ? young : null;
  }

  async #input(
    topology: Topology,
    keyspaces: readonly Keyspace[],
    grid: Grid,
    notes: string[],
  ): Promise<PlanningInput> {
    const segments: SegmentSeries[] = [];
    const samples = new Map<bigint, KeySample[]>();
    const end = grid.start + grid.length * grid.stepSeconds * 1000;
    for (const keyspace of keyspaces) {
      const series = await this.history.series(keyspace, grid.stepSeconds, grid.start, end);
      const silent = series.every((s) => s.load.every((v) => Number.isNaN(v)));
      if (silent) notes.push(`Keyspace "${keyspace.name}" has no history yet and is counted as without load.`);
      const zero = new Float64Array(grid.length);
      segments.push(...(silent ? series.map((s) => ({ ...s, load: zero, writes: zero })) : series));
      for (const [id, keys] of await this.history.keySamples(keyspace)) samples.set(id, keys);
    }
    const assessments = new Map<ShardName, Assessment>();
    for (const shard of topology.shards.values()) {
      const own = rangesOn(topology, shard.name).flatMap(({ range }) => segmentsIn(range, segments));
      if (shard.capacityMsPerSecond === null) {
        notes.push(`Shard "${shard.name}" has no capacity set and cannot be judged.`);
        continue;
      }
      if (own.length === 0) continue;
      const load = sumSeries(
        own.map((s) => s.load),
        grid.length,
      );
      const assessment = assess(shard.name, shard.capacityMsPerSecond, load, grid);
      if (assessment === null) notes.push(`The history of shard "${shard.name}" is too short for a forecast.`);
      else {
        assessments.set(shard.name, assessment);
        notes.push(...assessment.outlook.forecast.notes.map((note) => `Shard "${shard.name}": ${note}.`));
      }
    }
    return { topology, grid, segments, samples, assessments, minScore: this.#options.minScore };
  }

  async #blockers(): Promise<string[]> {
    const result = await this.#catalog.pool.query<{ id: string; state: string }>(
      `SELECT id::text, state FROM foreshard.migration WHERE state NOT IN ('done', 'aborted', 'failed') ORDER BY id`,
    );
    return result.rows.map((m) => `migration ${m.id} is under way (${m.state})`);
  }
}

function withPlan(stored: StoredPlan): SavedReport {
  const { id, hash, status, expiresAt } = stored;
  return { ...stored.report, plan: { id: id.toString(), hash, status, expiresAt: expiresAt.getTime() } };
}
