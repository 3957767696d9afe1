import { UsageError } from '../../topology/errors.js';
import { cellId, type Results } from './results.js';

/**
 * One run that was made in pieces, which measured different things on the same machine with the same versions; of what several have
 * measured, the last counts. @throws {UsageError}
 */
export function joined(runs: readonly Results[]): Results {
  const [first] = runs;
  if (first === undefined) throw new UsageError('no runs to join');
  const versions: Record<string, string> = {};
  for (const run of runs) {
    if (JSON.stringify(run.machine) !== JSON.stringify(first.machine))
      throw new UsageError('runs of different machines cannot be joined');
    for (const [name, version] of Object.entries(run.versions)) {
      const known = versions[name] ?? version;
      versions[name] = known;
      if (known !== version)
        throw new UsageError(`runs of ${name} ${known} and ${version} cannot be joined`, 'Make all of them anew.');
    }
  }
  const latest = <T>(all: readonly T[], name: (one: T) => string): T[] => [
    ...new Map(all.map((one) => [name(one), one])).values(),
  ];
  return {
    ...first,
    seconds: runs.reduce((sum, { seconds }) => sum + seconds, 0),
    versions,
    cells: latest(
      runs.flatMap(({ cells }) => cells),
      cellId,
    ),
    memory: latest(
      runs.flatMap(({ memory }) => memory),
      ({ peer, idleClients }) => `${peer} ${idleClients}`,
    ),
    micro: latest(
      runs.flatMap(({ micro }) => micro),
      ({ task, contender }) => `${task} ${contender}`,
    ),
    reports: Object.assign({}, ...runs.map(({ reports }) => reports)),
  };
}
