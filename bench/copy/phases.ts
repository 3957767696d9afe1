import { cpuUs, processTree } from '../suite/process-figures.js';

/** A part of a migration, on Unix's clock in ms, with the processor time that each server took in it. */
export interface Phase {
  readonly from: number;
  readonly to: number;
  /** s; null where the system does not tell. */
  readonly sourceCpu: number | null;
  readonly destinationCpu: number | null;
}

interface Moment {
  readonly at: number;
  readonly cpu: readonly (number | null)[];
}

/** Bulk phases, and the states or actions with which they begin. */
const BEGINNINGS: Readonly<Record<string, string>> = {
  preparing: 'preparation',
  'create-subscription': 'copy',
  'create-index': 'index build',
  'analyze-table': 'index build',
  catching_up: 'catch-up',
  verifying: 'verification',
  ready: 'following',
  fencing: 'flip',
  cleaning: 'removal',
  done: 'after it',
};

/** Processor time of a server and all its processes, also of those that have ended, s. */
export function serverCpu(pid: number): number | null {
  const us = cpuUs(processTree(pid));
  return us === null ? null : us / 1e6;
}

/** Told by the migrator's own log: when which phase began. For pino. */
export class PhaseLog {
  readonly #pids: readonly number[];
  readonly #moments = new Map<string, Moment>();

  constructor(pids: readonly [source: number, destination: number]) {
    this.#pids = pids;
  }

  write(line: string): void {
    const entry = JSON.parse(line) as { level: number; state?: string; action?: string };
    if (entry.level > 30) process.stderr.write(line);
    const phase = BEGINNINGS[entry.action ?? entry.state ?? ''];
    if (phase !== undefined) this.mark(phase);
  }

  /** A phase begins now, unless it has. */
  mark(phase: string): void {
    if (!this.#moments.has(phase)) this.#moments.set(phase, { at: Date.now(), cpu: this.#pids.map(serverCpu) });
  }

  /** Each lasts until the next begins. */
  phases(): Map<string, Phase> {
    const moments = [...this.#moments].sort(([, a], [, b]) => a.at - b.at);
    const phases = new Map<string, Phase>();
    for (const [i, [name, begin]] of moments.entries()) {
      const end = moments[i + 1]?.[1];
      if (end === undefined) continue;
      const cpu = (side: number) => {
        const [before, after] = [begin.cpu[side] ?? null, end.cpu[side] ?? null];
        return before === null || after === null ? null : after - before;
      };
      phases.set(name, { from: begin.at, to: end.at, sourceCpu: cpu(0), destinationCpu: cpu(1) });
    }
    return phases;
  }
}
