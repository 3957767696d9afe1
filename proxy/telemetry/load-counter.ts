import { comparePositions, type KeyTuple, type Position } from '../../topology/key.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import type { Touch } from '../router/route.js';

/** Width of the finest step of the load history. */
export const STEP_MS = 10_000;
/** Of this many statements one has its key sampled, with its weight raised accordingly. */
const SAMPLE_EVERY = 8;
/** Distinct keys kept per step at most. */
const SAMPLED_KEYS = 2000;
/** Distinct templates counted per step at most; the rest is counted together. */
const TEMPLATES = 500;
const OTHER_TEMPLATES = '(other)';

/** One execution, done. */
export interface LoadRecord {
  readonly template: string;
  /** Where it ran; null for several shards. */
  readonly shard: ShardName | null;
  readonly touches: readonly Touch[];
  readonly write: boolean;
  readonly rows: number;
  readonly bytes: number;
  /** From the statement's way to the server to the end of its answer: the time it kept a backend busy. */
  readonly ms: number;
  /** It shared its server connection with others' statements. */
  readonly lane?: boolean;
}

/** Sums over one step for one segment. */
export interface LoadSums {
  reads: number;
  writes: number;
  rows: number;
  bytes: number;
  serverMs: number;
}

export interface TemplateSums {
  readonly template: string;
  readonly route: string;
  calls: number;
  rows: number;
  serverMs: number;
}

export interface Segment {
  readonly id: bigint;
  readonly lo: Position | null;
}

/** Everything counted in one step. */
export interface LoadStep {
  /** Start of the step, ms since 1970. */
  readonly at: number;
  readonly segments: Map<bigint, LoadSums>;
  readonly templates: Map<string, TemplateSums>;
  /** Weight (ms) of sampled keys, by segment and key. */
  readonly keys: Map<
    string,
    { readonly keyspace: KeyspaceName; readonly segment: bigint; readonly key: KeyTuple; weight: number }
  >;
}

/** Counts what passes through the proxy, per segment and step of ten seconds. No I/O. */
export class LoadCounter {
  readonly #now: () => number;
  #segments = new Map<KeyspaceName, readonly Segment[]>();
  #current: LoadStep;
  #closed: LoadStep[] = [];
  #tick = 0;
  /** Of the current step, by template: where it ran last. To make a key of both for each statement takes longer than all the rest. */
  #lastSums = new Map<string, TemplateSums>();

  /** @param now ms since 1970 */
  constructor(now: () => number) {
    this.#now = now;
    this.#current = emptyStep(now());
  }

  /** @param segments sorted by `lo`, the first with null */
  setSegments(keyspace: KeyspaceName, segments: readonly Segment[]): void {
    this.#segments.set(keyspace, segments);
  }

  record(r: LoadRecord): void {
    const step = this.#step();
    this.#recordTemplate(step, r);
    const share = 1 / Math.max(1, r.touches.length);
    for (const touch of r.touches) {
      const segments = this.#segments.get(touch.keyspace);
      if (segments === undefined || segments.length === 0) continue;
      if (touch.position === null) {
        for (const segment of segments) add(step, segment.id, r, share / segments.length);
        continue;
      }
      const segment = find(segments, touch.position);
      add(step, segment.id, r, share);
      this.#tick += 1;
      if (this.#tick % SAMPLE_EVERY === 0)
        if (touch.key !== undefined && touch.key.length > 0)
          sampleKey(step, touch.keyspace, segment.id, touch.key, r.ms * share * SAMPLE_EVERY);
    }
  }

  /**
   * Takes what has been counted and not been taken; steps may come in parts, to be added up. Every keyspace has a segment in
   * every step, if only with zeros: a step without any is one in which nobody was counting.
   */
  drain(): LoadStep[] {
    const steps = [...this.#closed, this.#current];
    for (const step of steps)
      for (const [first] of this.#segments.values())
        if (first !== undefined && !step.segments.has(first.id)) step.segments.set(first.id, noLoad());
    this.#closed = [];
    this.#begin(this.#now());
    return steps;
  }

  /** Puts back what could not be stored, oldest first, at most `limit` steps. */
  putBack(steps: readonly LoadStep[], limit: number): void {
    this.#closed = [...steps, ...this.#closed].slice(-limit);
  }

  #step(): LoadStep {
    const now = this.#now();
    if (now >= this.#current.at + STEP_MS || now < this.#current.at) {
      this.#closed.push(this.#current);
      this.#begin(now);
    }
    return this.#current;
  }

  #begin(now: number): void {
    this.#current = emptyStep(now);
    this.#lastSums.clear();
  }

  #recordTemplate(step: LoadStep, r: LoadRecord): void {
    const route = r.shard ?? '(several)';
    const last = this.#lastSums.get(r.template);
    const sums = last?.route === route ? last : this.#sumsOf(step, r.template, route);
    sums.calls += 1;
    sums.rows += r.rows;
    sums.serverMs += r.ms;
  }

  #sumsOf(step: LoadStep, template: string, route: string): TemplateSums {
    let key = `${route}\0${template}`;
    let sums = step.templates.get(key);
    if (sums === undefined) {
      const full = step.templates.size >= TEMPLATES;
      if (full) key = `${route}\0${OTHER_TEMPLATES}`;
      sums = step.templates.get(key) ?? {
        template: full ? OTHER_TEMPLATES : template,
        route,
        calls: 0,
        rows: 0,
        serverMs: 0,
      };
      step.templates.set(key, sums);
    }
    if (sums.template === template) this.#lastSums.set(template, sums);
    return sums;
  }
}

function emptyStep(now: number): LoadStep {
  return { at: Math.floor(now / STEP_MS) * STEP_MS, segments: new Map(), templates: new Map(), keys: new Map() };
}

function noLoad(): LoadSums {
  return { reads: 0, writes: 0, rows: 0, bytes: 0, serverMs: 0 };
}

function add(step: LoadStep, id: bigint, r: LoadRecord, share: number): void {
  let sums = step.segments.get(id);
  if (sums === undefined) {
    sums = noLoad();
    step.segments.set(id, sums);
  }
  if (r.write) sums.writes += share;
  else sums.reads += share;
  sums.rows += r.rows * share;
  sums.bytes += r.bytes * share;
  sums.serverMs += r.ms * share;
}

function find(segments: readonly Segment[], position: Position): Segment {
  let lo = 0;
  let hi = segments.length - 1;
  while (lo < hi) {
    const mid = (lo + hi + 1) >>> 1;
    const bound = (segments[mid] as Segment).lo;
    if (bound === null || comparePositions(bound, position) <= 0) lo = mid;
    else hi = mid - 1;
  }
  return segments[lo] as Segment;
}

function sampleKey(step: LoadStep, keyspace: KeyspaceName, segment: bigint, key: KeyTuple, weight: number): void {
  const id = `${segment}\0${key.join('\0')}`;
  const known = step.keys.get(id);
  if (known) known.weight += weight;
  else if (step.keys.size < SAMPLED_KEYS) step.keys.set(id, { keyspace, segment, key, weight });
}
