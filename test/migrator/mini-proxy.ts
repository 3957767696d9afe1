import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { Catalog } from '../../topology/catalog/catalog.js';
import { ProxyLeases } from '../../topology/catalog/leases.js';
import { contains, type Position } from '../../topology/key.js';
import { type KeyspaceName, rangeOf, type ShardName, type Topology } from '../../topology/topology.js';

const TTL_MS = 3000;

/** What of a proxy a migration relies on: a lease, holds that are honoured and acknowledged, epochs, retries after SH001. */
export class MiniProxy {
  readonly #catalog: Catalog;
  readonly #lease: ProxyLeases;
  readonly #id = randomUUID();
  readonly #keyspace: KeyspaceName;
  readonly #pools = new Map<ShardName, pg.Pool>();
  readonly #inFlight = new Set<{ readonly position: Position; readonly epoch: bigint }>();
  readonly #acked = new Set<bigint>();
  #topology!: Topology;
  #waiters: (() => void)[] = [];
  #watch: { close(): Promise<void> } | null = null;
  #closing = false;
  #renewing: Promise<void> = Promise.resolve();
  /** Longest time a statement took, ms. */
  longestMs = 0;
  /** Statements that met a guard and were tried again. */
  retries = 0;

  private constructor(catalog: Catalog, keyspace: string) {
    this.#catalog = catalog;
    this.#keyspace = keyspace as KeyspaceName;
    this.#lease = new ProxyLeases(catalog.pool);
  }

  static async start(catalogUrl: string, keyspace: string): Promise<MiniProxy> {
    const proxy = new MiniProxy(await Catalog.connect(catalogUrl), keyspace);
    await proxy.#lease.register({
      id: proxy.#id,
      name: 'mini',
      listen: 'none',
      ttlMs: TTL_MS,
      epochAcked: 0n as Topology['epoch'],
      schemaHeard: 0n,
    });
    await proxy.#reload();
    proxy.#watch = await proxy.#catalog.watch(() => void proxy.#reload().catch(() => undefined));
    proxy.#renewing = proxy.#renew();
    return proxy;
  }

  async close(): Promise<void> {
    this.#closing = true;
    await this.#renewing;
    await this.#watch?.close();
    await this.#lease.unregister(this.#id);
    await Promise.all([...this.#pools.values()].map((pool) => pool.end()));
    await this.#catalog.close();
  }

  /** Runs statements as one transaction on the owner of `position`; waits out holds, retries when the owner has changed. */
  async run(position: Position, statements: readonly { sql: string; values: unknown[] }[]): Promise<void> {
    const began = performance.now();
    for (;;) {
      await this.#permission(position);
      const topology = this.#topology;
      const keyspace = topology.keyspaces.get(this.#keyspace);
      if (keyspace === undefined) throw new Error('no keyspace');
      const shard = rangeOf(keyspace, position).shard;
      const work = { position, epoch: topology.epoch };
      this.#inFlight.add(work);
      try {
        await this.#on(shard, topology, statements);
        this.longestMs = Math.max(this.longestMs, performance.now() - began);
        return;
      } catch (error) {
        if ((error as { code?: string }).code !== 'SH001') throw error;
        this.retries++;
        await delay(2);
        await this.#reload();
      } finally {
        this.#inFlight.delete(work);
        await this.#ackWhatIsQuiet();
      }
    }
  }

  async #on(
    shard: ShardName,
    topology: Topology,
    statements: readonly { sql: string; values: unknown[] }[],
  ): Promise<void> {
    let pool = this.#pools.get(shard);
    if (pool === undefined) {
      pool = new pg.Pool({ connectionString: topology.shards.get(shard)?.url, max: 8 });
      pool.on('error', () => undefined); // an idle connection that a test's DROP DATABASE ends
      this.#pools.set(shard, pool);
    }
    const client = await pool.connect();
    try {
      await client.query('BEGIN');
      for (const s of statements) await client.query(s.sql, s.values);
      await client.query('COMMIT');
    } catch (error) {
      await client.query('ROLLBACK');
      throw error;
    } finally {
      client.release();
    }
  }

  async #permission(position: Position): Promise<void> {
    while (this.#topology.holds.some((h) => contains(h, position))) {
      const soonest = Math.min(...this.#topology.holds.map((h) => h.remainingMs));
      const changed = new Promise<void>((resolve) => this.#waiters.push(resolve));
      await Promise.race([changed, delay(Math.max(5, Math.min(soonest, 1000))).then(() => this.#reload())]);
    }
  }

  async #reload(): Promise<void> {
    const topology = await this.#catalog.loadTopology();
    if (this.#topology === undefined || topology.epoch >= this.#topology.epoch) this.#topology = topology;
    for (const wake of this.#waiters.splice(0)) wake();
    await this.#ackWhatIsQuiet();
  }

  async #ackWhatIsQuiet(): Promise<void> {
    for (const hold of this.#topology.holds) {
      if (this.#acked.has(hold.id) || [...this.#inFlight].some((w) => contains(hold, w.position))) continue;
      this.#acked.add(hold.id);
      await this.#lease.ackHold(hold.id, this.#id);
    }
  }

  async #renew(): Promise<void> {
    while (!this.#closing) {
      const oldest = [...this.#inFlight].reduce((e, w) => (w.epoch < e ? w.epoch : e), this.#topology.epoch as bigint);
      await this.#lease.renew(this.#id, {
        ttlMs: TTL_MS,
        epochAcked: oldest as Topology['epoch'],
        schemaHeard: this.#topology.schemaGeneration,
      });
      await delay(100);
    }
  }
}
