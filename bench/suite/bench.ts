import { FORESHARD, type Results, ROUTED } from '../results/results.js';
import { foreshardVersion, machine } from './machine.js';
import { measureMemory } from './memory-of-peers.js';
import type { Options } from './options.js';
import { runMemoryReport, runMicro } from './parts.js';
import { estimateSeconds, planCells } from './plan.js';
import { findProgram, versionOf } from './programs.js';
import { runCells, type Setting } from './run-cells.js';
import { Scene } from './scene.js';

/**
 * Runs what the options ask for.
 * @param say shows progress
 * @returns what was found, and whether Foreshard or the server itself failed somewhere
 */
export async function bench(
  options: Options,
  say: (text: string) => void,
): Promise<{ results: Results; failed: boolean }> {
  const startedAt = new Date();
  const { quick, rounds, seconds, scale, poolSize, workers, lanes, parts } = options;
  const found = machine();
  say(`${found.processor}, ${found.cores} cores, ${found.system}, Node ${found.node}`);
  const results: Results = {
    format: 1,
    startedAt: startedAt.toISOString(),
    seconds: 0,
    options: { quick, rounds, seconds, scale, poolSize, workers, lanes },
    machine: found,
    versions: { foreshard: foreshardVersion() },
    cells: [],
    memory: [],
    micro: [],
    reports: {},
  };
  const show = (text: string) => process.stderr.write(text);
  if (parts.some((part) => part !== 'micro')) await withScene(options, results, say);
  // Alone, when no server and no pooler is left to disturb it.
  if (parts.includes('micro')) results.micro.push(...(await runMicro(show)));
  if (parts.includes('memory') && !quick) results.reports.memory = await runMemoryReport(options.idleClients, show);
  results.seconds = Math.round((Date.now() - startedAt.getTime()) / 1000);
  const ours = (peer: string) => peer === FORESHARD || peer === ROUTED || peer === 'direct';
  return { results, failed: results.cells.some(({ absent }) => absent.some(({ peer }) => ours(peer))) };
}

async function withScene(options: Options, results: Results, say: (text: string) => void): Promise<void> {
  const pgbench = findProgram('pgbench');
  const scene = await Scene.start(options, say);
  try {
    for (const [peer, reason] of scene.missing) say(`${peer}: ${reason}`);
    const poolers = scene.poolers.map(({ peer }) => peer);
    const setting: Setting = { options, scene, pgbench, say };
    Object.assign(results.versions, {
      postgresql: await scene.serverVersion(),
      ...(pgbench === null ? {} : { pgbench: versionOf(pgbench) }),
      ...Object.fromEntries(scene.poolers.map(({ peer, version }) => [peer, version])),
    });
    const cells = planCells(options, poolers, pgbench !== null);
    say(
      Object.entries(results.versions)
        .map((version) => version.join(' '))
        .join(', '),
    );
    if (pgbench === null) say('pgbench is not installed: our own generator makes all load');
    if (cells.length > 0) say(`${cells.length} cells, about ${duration(estimateSeconds(cells, options))}`);
    results.cells.push(...(await runCells(setting, cells)));
    if (options.parts.includes('memory')) results.memory.push(...(await measureMemory(setting)));
  } finally {
    await scene.stop();
  }
}

function duration(seconds: number): string {
  return seconds < 120 ? `${Math.ceil(seconds)} seconds` : `${Math.round(seconds / 60)} minutes`;
}
