import { setTimeout as delay } from 'node:timers/promises';
import { changeReplica, requestAbort, requestPromotion } from '../../migrator/migration-requests.js';
import { loadMigration, RESTING_STATES } from '../../migrator/migration-row.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import type { MoveSpec } from '../../topology/migration.js';
import { oneOf, type Random } from '../support/random.js';
import type { Shown } from './client.js';
import { ask, Entry, persist } from './entry.js';
import { Follower, type Told } from './follower.js';
import { type Kind, type Plan, somePlan, tenantsOf, uniting } from './kinds.js';
import { STALENESS_MS } from './world.js';

/** Changes that are made while a replica follows, at most. */
const BESIDE_REPLICA = 4;
/** And before them it is only read, for so long and as long again at most, ms. */
const REPLICA_ALONE_MS = 3000;
/** After so long transactions that are in the way of a flip are ended, ms; null: never. */
const END_TRANSACTIONS_MS = [null, null, 0, 300, 1500] as const;

export interface DirectorOptions extends Told {
  readonly catalog: Catalog;
  readonly random: Random;
  readonly kinds: readonly Kind[];
  /** Is told what a replica shows from now on. */
  readonly shown: Shown;
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
    // A try may be one of those that are taken back on their way.
    for (;;) {
      const plan = uniting(await persist(() => this.#options.catalog.loadTopology()));
      if (plan === null) break;
      await this.#carryOut('unite', plan);
    }
    this.follower.over();
  }

  async #carryOut(name: string, plan: Plan): Promise<void> {
    const { random, log, catalog, shown } = this.#options;
    if (plan.as === 'separate' || plan.as === 'join') {
      await this.#entry.regroup(plan);
      log(plan.as === 'join' ? `joined ${plan.keyspace} to ${plan.into}` : `separated ${plan.separation.as}`);
      this.follower.count(`${name}: done`);
      return;
    }
    // Whoever is to ask for the flip has to come by in time.
    const auto = plan.as === 'replica' || random(6) > 0;
    const endTransactionsAfterMs = oneOf(random, END_TRANSACTIONS_MS);
    const entered = await this.#entry.enter(plan, { auto, endTransactionsAfterMs });
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
    if (RESTING_STATES.includes(state)) return;
    const { spec } = plan;
    this.#replica = { id, spec, left: random(BESIDE_REPLICA + 1) };
    shown.tenants = tenantsOf(spec.keyspace, spec);
    await delay(REPLICA_ALONE_MS + random(REPLICA_ALONE_MS));
  }

  /** It becomes the owner, or is dropped. */
  async #endReplica({ id }: Replica): Promise<void> {
    const { catalog, random, shown } = this.#options;
    const promotes = random(4) > 0;
    await ask(async () => {
      if (promotes) await requestPromotion(catalog.pool, id, 'chaos');
      else await requestAbort(catalog.pool, id, 'chaos');
    });
    if (!promotes) this.follower.asked(id);
    await this.follower.follow(promotes ? 'promote' : 'drop', [id], true);
    this.#replica = null;
    shown.tenants = null;
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
