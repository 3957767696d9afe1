import { changeReplica, requestAbort, requestPromotion } from '../../migrator/migration-requests.js';
import { loadMigration, RESTING_STATES } from '../../migrator/migration-row.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import type { MoveSpec } from '../../topology/migration.js';
import { oneOf, type Random } from '../support/random.js';
import { ask, Entry, persist } from './entry.js';
import { Follower, type Told } from './follower.js';
import { type Kind, type Plan, somePlan } from './kinds.js';
import { STALENESS_MS } from './world.js';

/** Changes that are made while a replica follows, at most. */
const BESIDE_REPLICA = 4;

export interface DirectorOptions extends Told {
  readonly catalog: Catalog;
  readonly random: Random;
  readonly kinds: readonly Kind[];
  /** Reads that replicas have answered so far, as those proxies say that can be asked. */
  readonly replicaReads: () => Promise<number>;
}

interface Replica {
  readonly id: bigint;
  readonly spec: MoveSpec;
  /** Changes still to be made beside it. */
  left: number;
}

/** Has one change made after the other, some of them taken back, and counts the flips. */
export class Director {
  readonly follower: Follower;
  /** Answered by replicas. */
  replicaReads = 0;
  readonly #options: DirectorOptions;
  readonly #entry: Entry;
  readonly #running: Promise<void>;
  #replica: Replica | null = null;
  #stopped = false;

  constructor(options: DirectorOptions) {
    this.#options = options;
    this.follower = new Follower(options);
    this.#entry = new Entry(options.catalog);
    this.#running = this.#loop();
  }

  /** Ends with the migrations that are under way, which come to rest by themselves. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  get failed(): Promise<never> {
    return this.#running.then(() => new Promise<never>(() => undefined));
  }

  async #loop(): Promise<void> {
    const { random, kinds } = this.#options;
    while (!this.#stopped) {
      const replica = this.#replica;
      if (replica !== null && replica.left === 0) {
        await this.#endReplica(replica);
        continue;
      }
      const topology = await persist(() => this.#options.catalog.loadTopology());
      const some = somePlan(kinds, topology, random, replica?.spec ?? null);
      if (some === null) {
        // The replica is in the way of everything.
        if (replica === null) throw new Error('the map offers nothing');
        replica.left = 0;
        continue;
      }
      await this.#carryOut(some.name, some.plan);
      if (replica !== null) {
        replica.left -= 1;
        if (random(3) === 0) await this.#changeReplica(replica);
      }
    }
    if (this.#replica !== null) await this.#endReplica(this.#replica);
    this.follower.over();
  }

  async #carryOut(name: string, plan: Plan): Promise<void> {
    const { random, log, catalog } = this.#options;
    if (plan.as === 'separate' || plan.as === 'join') {
      await this.#entry.regroup(plan.as);
      log(`${plan.as}d`);
      this.follower.count(`${name}: done`);
      return;
    }
    // Whoever is to ask for the flip has to come by in time.
    const auto = plan.as === 'replica' || random(6) > 0;
    const entered = await this.#entry.enter(plan, auto);
    if (entered === null) {
      this.follower.count(`${name}: not begun`);
      return;
    }
    if (plan.as !== 'replica') {
      await this.follower.follow(name, entered, auto);
      return;
    }
    const [id] = entered as [bigint];
    await this.follower.untilServing(name, id);
    const { state } = await persist(() => loadMigration(catalog.pool, id));
    if (!RESTING_STATES.includes(state)) this.#replica = { id, spec: plan.spec, left: random(BESIDE_REPLICA + 1) };
  }

  /** It becomes the owner, or is dropped. */
  async #endReplica({ id }: Replica): Promise<void> {
    const { catalog, random, replicaReads } = this.#options;
    const promotes = random(4) > 0;
    this.replicaReads = Math.max(this.replicaReads, await replicaReads());
    await ask(async () => {
      if (promotes) await requestPromotion(catalog.pool, id, 'chaos');
      else await requestAbort(catalog.pool, id, 'chaos');
    });
    if (!promotes) this.follower.asked(id);
    await this.follower.follow(promotes ? 'promote' : 'drop', [id], true);
    this.#replica = null;
  }

  async #changeReplica({ id }: Replica): Promise<void> {
    const { catalog, random } = this.#options;
    const terms = {
      maxStalenessMs: oneOf(random, [STALENESS_MS / 4, STALENESS_MS]),
      readPercent: oneOf(random, [0, 50, 100]),
    };
    await ask(() => changeReplica(catalog.pool, id, terms, 'chaos'));
  }
}
