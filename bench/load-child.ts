/**
 * A process of our own load generator: it is told by its parent what to do, see load/generator.ts, and ends with it.
 */
import { randomInt } from 'node:crypto';
import type { ChildOrder, ChildReport } from './load/generator.js';
import { Histogram } from './load/histogram.js';
import type { LoadRequest } from './load/load.js';
import { LoadClient } from './load/load-client.js';
import { ACCOUNTS, type Draw, GENERATED, type Step } from './load/workloads.js';

/** Logins at the same time. */
const LOGINS = 32;

/** Numbers that are uniform enough, much cheaper than the ones of crypto (xorshift32 of Marsaglia). */
function randomNumbers(): Draw {
  let state = randomInt(1, 2 ** 31);
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) % n) + 1;
  };
}

const tell = (report: ChildReport) => process.send?.(report);
const fail = (error: Error) => tell({ kind: 'failed', message: error.message });

let clients: LoadClient[] = [];
let go: (seconds: number) => void = () => undefined;

async function connect(request: LoadRequest): Promise<void> {
  const draw = randomNumbers();
  const workload = GENERATED[request.workload];
  const histogram = new Histogram();
  let transactions = 0;
  let stopAt = 0;
  let startedAt = 0;
  let busy = request.clients;
  const done = (us: number): boolean => {
    const now = performance.now();
    transactions += 1;
    histogram.add(us);
    if (now < stopAt) return true;
    busy -= 1;
    if (busy === 0) tell({ kind: 'done', transactions, seconds: (now - startedAt) / 1000, counts: histogram.counts });
    return false;
  };
  const next = (): readonly Step[] => workload(draw, request.scale);
  await logins(request.clients, () => LoadClient.connect(request, { next, done, failed: fail }));
  go = (seconds) => {
    startedAt = performance.now();
    stopAt = startedAt + seconds * 1000;
    for (const client of clients) client.start();
  };
}

/** Clients that ask one question and then do nothing. */
async function idle(request: LoadRequest): Promise<void> {
  const draw: Draw = () => 1 + (clients.length % ACCOUNTS);
  await logins(
    request.clients,
    () =>
      new Promise((resolve, reject) => {
        const connecting = LoadClient.connect(request, {
          next: () => GENERATED.select(draw, 1),
          done: () => {
            void connecting.then(resolve);
            return false;
          },
          failed: reject,
        });
        connecting.then((client) => client.start(), reject);
      }),
  );
}

async function logins(count: number, login: () => Promise<LoadClient>): Promise<void> {
  let left = count;
  const one = async () => {
    while (left > 0) {
      left -= 1;
      clients.push(await login());
    }
  };
  await Promise.all(Array.from({ length: Math.min(LOGINS, count) }, one));
  tell({ kind: 'connected' });
}

process.on('message', (order: ChildOrder) => {
  switch (order.kind) {
    case 'connect':
      connect(order.request).catch(fail);
      break;
    case 'idle':
      idle(order.request).catch(fail);
      break;
    case 'go':
      go(order.seconds);
      break;
    case 'end':
      for (const client of clients) client.end();
      clients = [];
      process.disconnect();
  }
});
// Ctrl-C is our parent's affair.
process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit());
