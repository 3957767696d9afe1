import { setTimeout as delay } from 'node:timers/promises';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { descendants } from '../cli/process-tree.js';
import { withClient } from '../support/client.js';
import { oneOf, type Random } from '../support/random.js';
import { waitFor } from '../support/wait-for.js';
import type { Calm, Reach } from './calm.js';
import { type Program, running, send } from './program.js';
import type { Relay } from './relay.js';
import { LEASE_MS, type World } from './world.js';

/** A server may take so long to be back, ms. */
const RECOVERY_MS = 120_000;
/** The longest time that something is silent, ms: more than any lease. */
const LONG_MS = 3 * LEASE_MS;

/** Where faults happen. */
export interface Scene {
  readonly world: World;
  readonly random: Random;
  readonly calm: Calm;
  /** Resolves at the next flip, or after so many ms, or when all is to end. */
  flip(atMostMs: number): Promise<void>;
}

/** Something that can go wrong. */
export interface Fault {
  readonly name: string;
  /** What it may be done to; the same one is not harmed in two ways at once. Empty: nothing, here. */
  targets(world: World): readonly object[];
  /** Whose statements may fail by it. */
  reach(world: World, target: never): Reach;
  /** Does it, and puts it right again. @returns what was done, for people */
  harm(scene: Scene, target: never): Promise<string>;
}

function fault<T extends object>(
  name: string,
  targets: (world: World) => readonly T[],
  reach: (world: World, target: T) => Reach,
  harm: (scene: Scene, target: T) => Promise<string>,
): Fault {
  return { name, targets, reach, harm };
}

/** A time between nothing and `atMostMs`, mostly short. */
function someTime(random: Random, atMostMs: number): number {
  return Math.round((random(1000) / 1000) ** 2 * atMostMs);
}

const proxies = (world: World): Program[] => world.proxies.map(({ program }) => program);
const migrators = (world: World): Program[] => world.migrators.map(({ program }) => program);
const shards = (world: World): EmbeddedCluster[] => world.shards.map(({ cluster }) => cluster);
const catalog = (world: World): EmbeddedCluster[] => [world.catalogServer];

const everybody = (): Reach => 'everybody';
/** Clients wait for as long as a hold lasts, and that is all. */
const nobody = (): Reach => 'nobody';
const clientsOf = (world: World, program: Program): Reach =>
  world.proxies.findIndex((proxy) => proxy.program === program);

function behind(world: World, relay: Relay): Reach {
  if (world.shards.some((shard) => shard.relay === relay)) return 'everybody';
  const proxy = world.proxies.findIndex(({ clients, catalog: of }) => clients === relay || of === relay);
  return proxy < 0 ? 'nobody' : proxy;
}

async function killProgram({ random }: Scene, program: Program): Promise<string> {
  await program.kill();
  const ms = someTime(random, LONG_MS);
  await delay(ms);
  await program.start();
  return `${program.name}, gone for ${ms} ms`;
}

/** For a moment, for longer than its lease, or through a whole flip. */
async function stopProgram(scene: Scene, program: Program): Promise<string> {
  const through = scene.random(3) === 0;
  const ms = someTime(scene.random, LONG_MS);
  program.signal('SIGSTOP');
  try {
    if (through) await scene.flip(LONG_MS);
    await delay(ms);
  } finally {
    program.signal('SIGCONT');
  }
  return `${program.name}, ${through ? 'through a flip and ' : ''}for ${ms} ms`;
}

/** As after a power cut: the postmaster first, and its children when they notice. */
async function killServer({ random }: Scene, cluster: EmbeddedCluster): Promise<string> {
  const hard = random(2) === 0;
  const behind = descendants(cluster.pid);
  if (hard) {
    send(cluster.pid, 'SIGKILL');
    for (const pid of behind) send(pid, 'SIGKILL');
    await cluster.ended();
    await waitFor(() => running(behind).length === 0, { what: 'the backends to be gone', timeoutMs: RECOVERY_MS });
  } else await cluster.crash();
  const ms = someTime(random, LONG_MS);
  await delay(ms);
  await cluster.restart();
  return `port ${cluster.port}, ${hard ? 'kill -9' : 'immediate'}, gone for ${ms} ms`;
}

/** One process of a server is killed: it ends all others, and recovers by itself. */
async function killBackend({ random }: Scene, cluster: EmbeddedCluster): Promise<string> {
  const behind = descendants(cluster.pid);
  if (behind.length === 0) return 'nobody was there';
  send(oneOf(random, behind), 'SIGKILL');
  await answers(cluster);
  return `port ${cluster.port}`;
}

async function answers(cluster: EmbeddedCluster): Promise<void> {
  await waitFor(
    () =>
      withClient(cluster.url('postgres'), async (c) => {
        await c.query('SELECT 1');
        return true;
      }),
    { what: 'the server to be back', timeoutMs: RECOVERY_MS },
  );
}

async function stopServer(scene: Scene, cluster: EmbeddedCluster): Promise<string> {
  const ms = someTime(scene.random, LONG_MS);
  const pids = [cluster.pid, ...descendants(cluster.pid)];
  // The postmaster first: it starts no others then.
  for (const pid of pids) send(pid, 'SIGSTOP');
  try {
    await delay(ms);
  } finally {
    for (const pid of new Set([...pids, ...descendants(cluster.pid)])) send(pid, 'SIGCONT');
  }
  return `port ${cluster.port}, for ${ms} ms`;
}

async function cutNetwork({ world, random }: Scene, relay: Relay): Promise<string> {
  const how = random(4) === 0 ? 'half-close' : 'reset';
  const ms = random(3) === 0 ? someTime(random, LONG_MS) : 0;
  relay.refuse(ms > 0);
  relay.cut(how);
  await delay(ms);
  relay.refuse(false);
  return `${nameOf(world, relay)}: ${how}, refusing for ${ms} ms`;
}

async function slowNetwork({ world, random }: Scene, relay: Relay): Promise<string> {
  const byMs = 1 + someTime(random, 150);
  const ms = 500 + someTime(random, LONG_MS);
  relay.slow(byMs);
  await delay(ms);
  relay.slow(0);
  return `${nameOf(world, relay)}: by ${byMs} ms, for ${ms} ms`;
}

/** Nothing gets through; then all of it does, or the connections break. */
async function stallNetwork(scene: Scene, relay: Relay): Promise<string> {
  const { world, random } = scene;
  const through = random(4) === 0;
  const ms = someTime(random, LONG_MS);
  const breaks = random(2) === 0;
  relay.stall();
  if (through) await scene.flip(LONG_MS);
  await delay(ms);
  if (breaks) relay.cut('reset');
  relay.resume();
  return `${nameOf(world, relay)}: ${through ? 'through a flip and ' : ''}for ${ms} ms${breaks ? ', then cut' : ''}`;
}

function nameOf(world: World, relay: Relay): string {
  for (const { name, relay: of } of world.shards) if (of === relay) return `shard ${name}`;
  for (const { program, clients, catalog: of } of world.proxies) {
    if (clients === relay) return `clients of ${program.name}`;
    if (of === relay) return `catalog of ${program.name}`;
  }
  const migrator = world.migrators.find((one) => one.catalog === relay);
  return `catalog of ${migrator?.program.name}`;
}

async function fillDisk({ world, random, calm }: Scene, cluster: EmbeddedCluster): Promise<string> {
  const disk = world.shards.find((shard) => shard.cluster === cluster)?.disk;
  if (!disk) throw new Error('there is no small disk');
  const ms = 500 + someTime(random, LONG_MS);
  calm.diskFull(true);
  try {
    disk.fill();
    await delay(ms);
  } finally {
    disk.free();
    // Without room for its WAL a server ends itself, and finds none to recover in either.
    if (!cluster.running) await cluster.restart();
    else await answers(cluster).catch(() => cluster.restart());
    calm.diskFull(false);
  }
  return `port ${cluster.port}, for ${ms} ms`;
}

export const FAULTS: readonly Fault[] = [
  fault('kill-proxy', proxies, clientsOf, killProgram),
  fault('kill-proxy-worker', proxies, clientsOf, async (_, program) => {
    if (!program.killBehind()) return `${program.name} had none`;
    return program.name;
  }),
  fault('stop-proxy', proxies, clientsOf, stopProgram),
  fault('kill-migrator', migrators, nobody, killProgram),
  fault('stop-migrator', migrators, nobody, stopProgram),
  fault('kill-shard', shards, everybody, killServer),
  fault('kill-backend', shards, everybody, killBackend),
  fault('stop-shard', shards, everybody, stopServer),
  fault('kill-catalog', catalog, everybody, killServer),
  fault('stop-catalog', catalog, everybody, stopServer),
  fault('cut', (world) => world.relays, behind, cutNetwork),
  fault('slow', (world) => world.relays, behind, slowNetwork),
  fault('stall', (world) => world.relays, behind, stallNetwork),
  fault(
    'disk-full',
    (world) => world.shards.filter(({ disk }) => disk !== null).map(({ cluster }) => cluster),
    everybody,
    fillDisk,
  ),
];

/** Harms one thing after the other, with times in between in which nothing is wrong. */
export class Mischief {
  readonly done = new Map<string, number>();
  readonly #scene: Scene;
  readonly #faults: readonly Fault[];
  readonly #log: (text: string) => void;
  readonly #busy = new Set<object>();
  readonly #running: Promise<void>[] = [];
  #stopped = false;

  constructor(scene: Scene, faults: readonly Fault[], log: (text: string) => void) {
    this.#scene = scene;
    this.#faults = faults;
    this.#log = log;
  }

  get total(): number {
    return [...this.done.values()].reduce((sum, n) => sum + n, 0);
  }

  /** @param hands how many things may be wrong at a time @param restMs between two of them, at most */
  start(hands: number, restMs: number): void {
    for (let hand = 0; hand < hands; hand++) this.#running.push(this.#loop(restMs));
  }

  /** Waits until everything has been put right. @throws what could not be */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#running);
  }

  /** Rejects when something could not be put right. */
  get failed(): Promise<never> {
    return Promise.race(this.#running.map((one) => one.then(() => new Promise<never>(() => undefined))));
  }

  async #loop(restMs: number): Promise<void> {
    const { random, world, calm } = this.#scene;
    while (!this.#stopped) {
      await delay(random(restMs));
      if (this.#stopped) return;
      const one = oneOf(random, this.#faults);
      const target = oneOf(random, one.targets(world));
      if (target === undefined || this.#busy.has(target)) continue;
      this.#busy.add(target);
      try {
        const what = await calm.disturb(one.name, one.reach(world, target as never), () =>
          one.harm(this.#scene, target as never),
        );
        this.done.set(one.name, (this.done.get(one.name) ?? 0) + 1);
        this.#log(`${one.name}: ${what}`);
      } finally {
        this.#busy.delete(target);
      }
    }
  }
}
