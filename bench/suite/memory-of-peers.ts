import { withIdleClients } from '../load/generator.js';
import type { MemoryResult } from '../results/results.js';
import { USER } from './data.js';
import { memoryBytes } from './process-figures.js';
import type { Setting } from './run-cells.js';
import type { Target } from './target.js';

/**
 * What clients cost that are connected, have asked one thing and do nothing. Each peer is started anew for it. Pgpool-II is left out: it has
 * a process for each client.
 */
export async function measureMemory({ scene, options, say }: Setting): Promise<MemoryResult[]> {
  const starts: (() => Promise<Target | null>)[] = scene.poolers
    .filter(({ peer }) => peer !== 'pgpool')
    .map(
      ({ peer }) =>
        () =>
          scene.startPeer(peer),
    );
  starts.push(() => scene.startForeshard());
  const results: MemoryResult[] = [];
  for (const start of starts) {
    const target = await start();
    if (target === null) continue;
    const { peer, port, database } = target;
    const bytesBefore = memoryBytes(target.pids());
    const half = options.idleClients >> 1;
    const request = {
      workload: 'select',
      protocol: 'simple',
      threads: 1,
      seconds: 0,
      scale: 1,
      port,
      database,
      user: USER,
      password: scene.password,
    } as const;
    const measured = () => memoryBytes(target.pids());
    const [bytesWithHalf, bytesWith] = await withIdleClients({ ...request, clients: half }, async () => [
      measured(),
      await withIdleClients({ ...request, clients: options.idleClients - half }, async () => measured()),
    ]);
    await target.stop();
    if (bytesBefore === null || bytesWithHalf == null || bytesWith == null) {
      say('memory of processes is not known on this system');
      return [];
    }
    say(`memory  ${peer}: ${(bytesWith / 1e6).toFixed(0)} MB with ${options.idleClients} idle clients`);
    results.push({ peer, idleClients: options.idleClients, bytesBefore, bytesWithHalf, bytesWith });
  }
  return results;
}
