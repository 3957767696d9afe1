import { availableParallelism } from 'node:os';
import { runGenerator } from '../load/generator.js';
import type { LoadOutcome, LoadRequest } from '../load/load.js';
import { runPgbench } from '../load/pgbench.js';
import { type CellResult, cellId, type Sample } from '../results/results.js';
import { USER } from './data.js';
import type { Options } from './options.js';
import { type Cell, rotate, warmUps } from './plan.js';
import { cpuUs } from './process-figures.js';
import type { Scene } from './scene.js';
import type { Target } from './target.js';

/** What cells are run with. */
export interface Setting {
  readonly options: Options;
  readonly scene: Scene;
  /** null: not there. */
  readonly pgbench: string | null;
  readonly say: (text: string) => void;
}

/**
 * Measures all cells, round by round. In each round every cell runs all of its peers one right after the other, in another order each
 * time. A peer that fails in a cell is left out of it, with the reason.
 */
export async function runCells(setting: Setting, cells: readonly Cell[]): Promise<CellResult[]> {
  const results = cells.map(({ peers, ...cell }) => ({
    ...cell,
    samples: [] as Sample[],
    absent: peers.flatMap((peer) => {
      const reason = cannot(setting, cell, peer);
      return reason === null ? [] : [{ peer, reason }];
    }),
  }));
  const isAbsent = (i: number, peer: string) => results[i]?.absent.some((entry) => entry.peer === peer) === true;
  await warmUp(setting, cells);
  const { rounds } = setting.options;
  for (let round = 0; round < rounds; round++)
    for (const [i, cell] of cells.entries()) {
      const result = results[i] as (typeof results)[number];
      const present = cell.peers.filter((peer) => !isAbsent(i, peer));
      const told: string[] = [];
      for (const [position, peer] of rotate(present, round + i).entries())
        try {
          const sample = await measure(setting, cell, peer);
          result.samples.push({ peer, round, position, ...sample });
          told.push(`${peer} ${Math.round(sample.tps)}`);
        } catch (error) {
          const reason = error instanceof Error ? error.message : String(error);
          result.absent.push({ peer, reason });
          setting.say(`${cellId(cell)} ${peer}: ${reason}`);
        }
      setting.say(`round ${round + 1} of ${rounds}  ${cellId(cell)}  ${told.join('  ')}`);
    }
  return results;
}

/** Why a peer cannot take part in a cell; null when it can. */
function cannot({ scene }: Setting, cell: Omit<Cell, 'peers'>, peer: string): string | null {
  const { prepared, version } = scene.target(cell, peer);
  if (cell.protocol === 'prepared' && !prepared)
    return `${peer} ${version} has no prepared statements in transaction mode`;
  return null;
}

/** Every peer gets each kind of load before anything counts: compilers, caches and pools are warm then. */
async function warmUp(setting: Setting, cells: readonly Cell[]): Promise<void> {
  for (const { cell, peer } of warmUps(cells)) {
    if (cannot(setting, cell, peer) !== null) continue;
    try {
      await measure(setting, cell, peer);
    } catch {
      // It will fail again where it counts, and say why.
    }
  }
  await setting.scene.checkpoint();
}

async function measure(
  setting: Setting,
  cell: Cell,
  peer: string,
): Promise<Omit<Sample, 'peer' | 'round' | 'position'>> {
  await setting.scene.tidy(cell);
  const target = setting.scene.target(cell, peer);
  const pids = target.pids();
  const before = cpuUs(pids);
  const outcome = await load(setting, request(setting, cell, target), cell.load);
  const after = cpuUs(pids);
  const known = pids.length > 0 && before !== null && after !== null && outcome.transactions > 0;
  return { ...outcome, cpuUsPerTransaction: known ? (after - before) / outcome.transactions : null };
}

function request(
  { options, scene }: Setting,
  cell: Pick<Cell, 'workload' | 'protocol' | 'clients'>,
  { port, database }: Target,
): LoadRequest {
  const { workload, protocol, clients } = cell;
  const threads = Math.min(2, availableParallelism());
  const { seconds, scale } = options;
  return { workload, protocol, clients, threads, seconds, scale, port, database, user: USER, password: scene.password };
}

function load({ pgbench, scene }: Setting, wanted: LoadRequest, by: Cell['load']): Promise<LoadOutcome> {
  return pgbench === null || by === 'generator' ? runGenerator(wanted) : runPgbench(pgbench, scene.folder, wanted);
}
