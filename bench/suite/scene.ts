import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Supervisor } from '../../deploy/embedded/supervisor.js';
import { reachableTemporaryBase } from '../../deploy/embedded/temporary-base.js';
import { serverUser } from '../../deploy/embedded/unprivileged.js';
import { Registry } from '../../topology/catalog/registry.js';
import { intervalPredicate } from '../../topology/interval-sql.js';
import type { KeyScheme } from '../../topology/key-codec.js';
import { ACCOUNTS } from '../load/workloads.js';
import { newCatalog } from '../new-catalog.js';
import { PEERS } from '../peers/peers.js';
import { DIRECT, FORESHARD, ROUTED, WORKERS } from '../results/results.js';
import { createDatabase, createRole, fillDatabase, tidy, withServer } from './data.js';
import type { Options } from './options.js';
import type { Cell } from './plan.js';
import { startForeshard, startPeer, type Target } from './target.js';

/** The database that one server has all of, and the one that three share. */
const WHOLE = 'bench';
const SHARED = 'bench3';

/**
 * Disks are not what is compared: commits do not wait for them, and no checkpoint or vacuum comes in between. Everything fits into memory.
 */
const SETTINGS = {
  // 256 clients without a pooler, and as many processes of Pgpool-II, which keep theirs.
  max_connections: '700',
  shared_buffers: '512MB',
  synchronous_commit: 'off',
  checkpoint_timeout: '1h',
  max_wal_size: '8GB',
  autovacuum: 'off',
};

/** Where ranges of the hash space end: three equal parts of it. */
const THIRDS: readonly (readonly [lo: bigint | null, hi: bigint | null])[] = (() => {
  const third = 2n ** 64n / 3n;
  const [first, second] = [-(2n ** 63n) + third, -(2n ** 63n) + 2n * third];
  return [
    [null, first],
    [first, second],
    [second, null],
  ];
})();
const BY_HASH: KeyScheme = { method: 'hash', keyTypes: ['int4'] };

/** The servers with their data, and what stands before them. */
export class Scene {
  readonly #options: Options;
  readonly #clusters: EmbeddedCluster[] = [];
  readonly #targets: Target[] = [];
  readonly #threeShards: Target[] = [];
  #folder = '';
  /** Poolers that do not run here, and why. */
  readonly missing = new Map<string, string>();

  private constructor(options: Options) {
    this.#options = options;
  }

  /** Starts what the options' parts need. */
  static async start(options: Options, say: (text: string) => void): Promise<Scene> {
    const scene = new Scene(options);
    const three = options.shards.includes(3) && options.parts.some((part) => part === 'select' || part === 'tpcb');
    const routed = options.parts.includes('select') && options.shards.includes(1);
    say(`starting ${three ? 3 : routed ? 2 : 1} PostgreSQL servers`);
    await scene.#startServers(three ? 3 : routed ? 2 : 1, three, routed);
    say('starting Foreshard and the poolers, and filling the tables');
    await scene.#startTargets(three, routed);
    await scene.#fill(three);
    return scene;
  }

  async #startServers(count: number, three: boolean, routed: boolean): Promise<void> {
    this.#folder = await Supervisor.shared().makeTemporary(
      reachableTemporaryBase(serverUser()),
      'foreshard-bench-',
      0o711,
    );
    for (let i = 0; i < count; i++) this.#clusters.push(await EmbeddedCluster.start({ settings: SETTINGS }));
    for (const [i, cluster] of this.#clusters.entries()) {
      await createRole(cluster, this.#password);
      if (i === 0 || (i === 1 && routed)) await createDatabase(cluster, WHOLE);
      if (three) await createDatabase(cluster, SHARED);
    }
  }

  /** After the keyspaces are declared: a shard that has rows of others is refused then. The second shard of the routed keyspace stays empty. */
  async #fill(three: boolean): Promise<void> {
    const { scale } = this.#options;
    await fillDatabase(this.#first, WHOLE, scale, 'true');
    if (!three) return;
    for (const [i, [lo, hi]] of THIRDS.entries()) {
      const interval = { lo: lo === null ? null : [lo], hi: hi === null ? null : [hi] };
      const owned = intervalPredicate(BY_HASH, ['aid'], interval);
      await fillDatabase(this.#clusters[i] as EmbeddedCluster, SHARED, scale, owned);
    }
  }

  async #startTargets(three: boolean, routed: boolean): Promise<void> {
    this.#targets.push({
      peer: DIRECT,
      port: this.#first.port,
      database: WHOLE,
      prepared: true,
      version: '',
      pids: () => [],
      stop: async () => undefined,
    });
    for (const { name } of PEERS) {
      if (this.#options.peers !== null && !this.#options.peers.includes(name)) continue;
      try {
        const target = await this.startPeer(name);
        if (target === null) this.missing.set(name, 'not installed');
        else this.#targets.push(target);
      } catch (error) {
        // Somebody else's program that does not start here must not keep the others from being measured.
        this.missing.set(name, error instanceof Error ? error.message : String(error));
      }
    }
    this.#targets.push(await this.startForeshard());
    const { workers } = this.#options;
    if (workers > 1) this.#targets.push(await this.#startUnsharded(WORKERS, workers));
    const end = String(ACCOUNTS * this.#options.scale + 1);
    if (routed) {
      const catalogUrl = await this.#catalog('routed', WHOLE, 'range', [
        [null, end],
        [end, null],
      ]);
      this.#targets.push(await startForeshard(ROUTED, { ...this.#behind, database: WHOLE, catalogUrl }));
    }
    if (three) {
      const bounds = THIRDS.map((range) => range.map((bound) => bound?.toString() ?? null) as [string, string]);
      const catalogUrl = await this.#catalog('three', SHARED, 'hash', bounds);
      this.#threeShards.push(await startForeshard(FORESHARD, { ...this.#behind, database: SHARED, catalogUrl }));
    }
  }

  /** Another pooler of this name, before the server that has all data; null when it is not installed. */
  async startPeer(name: string): Promise<Target | null> {
    const peer = PEERS.find((candidate) => candidate.name === name);
    if (peer === undefined) throw new Error(`no pooler is called "${name}"`);
    return startPeer(peer, this.#behind, this.#first.port);
  }

  /** Another Foreshard, whose database is not sharded. */
  async startForeshard(): Promise<Target> {
    return this.#startUnsharded(FORESHARD, 1);
  }

  async #startUnsharded(name: string, workers: number): Promise<Target> {
    const catalogUrl = await this.#catalog(`plain_${this.#catalogs++}`, WHOLE, null, []);
    return startForeshard(name, { ...this.#behind, catalogUrl, workers });
  }

  #catalogs = 1;

  /** A catalog on the first server. @param ranges bounds, one range for each server */
  async #catalog(
    name: string,
    database: string,
    method: 'range' | 'hash' | null,
    ranges: readonly (readonly [lo: string | null, hi: string | null])[],
  ): Promise<string> {
    await withServer(this.#first.url(), (client) => client.query(`CREATE DATABASE catalog_${name}`));
    const url = this.#first.url(`catalog_${name}`);
    const shards = this.#clusters.slice(0, Math.max(1, ranges.length)).map((cluster) => cluster.url(database));
    const catalog = await newCatalog(url, database, shards);
    try {
      if (method === null) return url;
      const registry = new Registry(catalog, 'bench');
      await registry.createKeyspace({ name: 'accounts', method, keyTypes: ['int4'] });
      for (const table of ['pgbench_accounts', 'pgbench_history'])
        await registry.addTable({
          table: { schema: 'public', table },
          keyspace: 'accounts',
          keyColumns: ['aid'],
        });
      // The rows are where they belong already: there is nothing to migrate.
      await catalog.pool.query('DELETE FROM foreshard.range');
      for (const [i, [lo, hi]] of ranges.entries())
        await catalog.pool.query(
          `INSERT INTO foreshard.range (keyspace, lo, hi, shard)
             VALUES ('accounts', to_jsonb($1::text[]), to_jsonb($2::text[]), $3)`,
          [lo === null ? null : [lo], hi === null ? null : [hi], `s${i + 1}`],
        );
      await catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    } finally {
      await catalog.close();
    }
    return url;
  }

  get #first(): EmbeddedCluster {
    return this.#clusters[0] as EmbeddedCluster;
  }

  get #password(): string {
    return this.#first.password;
  }

  get #behind() {
    const { poolSize, lanes } = this.#options;
    return { folder: this.#folder, database: WHOLE, password: this.#password, poolSize, lanes };
  }

  get password(): string {
    return this.#password;
  }

  get folder(): string {
    return this.#folder;
  }

  /** Poolers that run, by name, without Foreshard. */
  get poolers(): Target[] {
    return this.#targets.filter(({ peer }) => ![DIRECT, FORESHARD, ROUTED, WORKERS].includes(peer));
  }

  /** Where a peer of a cell listens. */
  target({ shards }: Pick<Cell, 'shards'>, peer: string): Target {
    const candidates = shards === 1 ? this.#targets : [...this.#threeShards, ...this.#targets];
    const target = candidates.find((candidate) => candidate.peer === peer);
    if (target === undefined) throw new Error(`no "${peer}" runs`);
    return target;
  }

  /** Brings the data back to how it was, wherever a cell's peers have changed it. */
  async tidy({ workload, shards }: Pick<Cell, 'workload' | 'shards'>): Promise<void> {
    const shared = shards === 1 ? [] : this.#clusters.map((cluster) => cluster.url(SHARED));
    await tidy(workload, [this.#first.url(WHOLE), ...shared]);
  }

  /** Writes to disk what has been changed, so that this does not happen in the middle of a measurement. */
  async checkpoint(): Promise<void> {
    for (const cluster of this.#clusters) await withServer(cluster.url(), (client) => client.query('CHECKPOINT'));
  }

  /** Stops everything, the servers last. */
  async stop(): Promise<void> {
    await Promise.all([...this.#targets, ...this.#threeShards].map((target) => target.stop()));
    await Promise.all(this.#clusters.map((cluster) => cluster.stop()));
    await Supervisor.shared().remove(this.#folder);
  }

  async serverVersion(): Promise<string> {
    return withServer(this.#first.url(), async (client) => {
      const { rows } = await client.query<{ version: string }>(`SELECT current_setting('server_version') AS version`);
      return (rows[0] as { version: string }).version;
    });
  }
}
