import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { orderValue } from './audit.js';
import { itemValue } from './inspect.js';
import type { Effect, JournalEntry } from './journal.js';
import type { LoadOptions } from './load-options.js';
import { LIVE_ORDER_ID, loadedOrderValue, places } from './shop.js';

/** Shared by all clients of one load. */
export interface LoadCounters {
  statements: number;
  reads: number;
  writes: number;
  staleReads: number;
  readonly errors: Map<string, number>;
}

export interface LoadSink {
  journal(entry: JournalEntry): void;
  waited(startMs: number, waitMs: number, tenant: number): void;
}

/** An order that only this client changes, so that it knows what it must read. */
interface OwnOrder {
  readonly tenant: number;
  readonly id: number;
  value: string;
}

/** The outcome of what was sent is not known: the connection went, or the server says that it does not know. */
class OutcomeUnknownError extends Error {}

const REMEMBERED_ORDERS = 400;

/** One connection of the load: an ordinary node-postgres client that does one thing after the other. */
export class LoadClient {
  private client: pg.Client | null = null;
  private readonly random: () => number;
  private orders: OwnOrder[] = [];
  private readonly loadedTouched = new Set<string>();
  private nextOrder = 0;
  private writeId = 0;

  constructor(
    readonly index: number,
    private readonly options: LoadOptions,
    private readonly counters: LoadCounters,
    private readonly sink: LoadSink,
  ) {
    this.random = seeded(index + 1);
  }

  /** Does the next thing, for a tenant drawn by group weights; resolves with the number of statements it sent. */
  async next(weights: readonly number[]): Promise<number> {
    const tenant = this.drawTenant(weights);
    const dice = this.random();
    try {
      if (dice < 0.3) return await this.readOrder(tenant);
      if (dice < 0.42) return await this.readRecent(tenant);
      if (dice < 0.5) return await this.readItems(tenant);
      if (dice < 0.56) return await this.readTurnover(tenant);
      if (dice < 0.74) return await this.insertOrder(tenant);
      if (dice < 0.88) return await this.updateOrder(tenant);
      return await this.placeOrder(tenant);
    } catch (error) {
      this.count(error);
      // PostgreSQL leaves the session usable after an error; anything else ends it.
      if (!(error instanceof pg.DatabaseError) || error.severity !== 'ERROR') await this.drop();
      return 1;
    }
  }

  async close(): Promise<void> {
    await this.client?.end();
    this.client = null;
  }

  private async readOrder(tenant: number): Promise<number> {
    const own = this.random() < 0.5 ? this.own() : undefined;
    const of = own?.tenant ?? tenant;
    const id = own?.id ?? 1 + this.below(this.options.loadedOrders[tenant] as number);
    const expected = own?.value;
    const { rows } = await this.read<{ total_cents: string; note: string; revision: number }>(of, {
      name: 'read_order',
      text: 'SELECT total_cents, note, revision FROM orders WHERE tenant_id = $1 AND id = $2',
      values: [of, id],
    });
    const [row] = rows;
    const found = row === undefined ? 'nothing' : orderValue(row.total_cents, row.note, row.revision);
    if (row === undefined || (expected !== undefined && found !== expected)) this.counters.staleReads++;
    return 1;
  }

  /** Simple protocol, with literals in the text. */
  private async readRecent(tenant: number): Promise<number> {
    const since = `2025-${String(1 + this.below(12)).padStart(2, '0')}-01`;
    await this.read(tenant, {
      text: `SELECT id, total_cents, note FROM orders WHERE tenant_id = ${tenant} AND placed_at >= '${since}' ORDER BY placed_at LIMIT 10`,
    });
    return 1;
  }

  /** Unnamed statement with parameters, colocated join. */
  private async readItems(tenant: number): Promise<number> {
    await this.read(tenant, {
      text: `SELECT o.id, o.total_cents, i.line, i.sku, i.quantity
               FROM orders o JOIN order_items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id
              WHERE o.tenant_id = $1 AND o.id = $2 ORDER BY i.line`,
      values: [tenant, 1 + this.below(this.options.loadedOrders[tenant] as number)],
    });
    return 1;
  }

  /** Aggregates over one tenant, joined with the reference table. */
  private async readTurnover(tenant: number): Promise<number> {
    await this.read(tenant, {
      name: 'read_turnover',
      text: `SELECT t.name, c.name AS country, count(*) AS orders, sum(o.total_cents) AS turnover
               FROM tenants t JOIN countries c ON c.code = t.country JOIN orders o ON o.tenant_id = t.id
              WHERE t.id = $1 AND o.tenant_id = $1 GROUP BY t.name, c.name`,
      values: [tenant],
    });
    return 1;
  }

  private async insertOrder(tenant: number): Promise<number> {
    const { id, total, note } = this.newOrder();
    const value = orderValue(total, note, 0);
    await this.write(tenant, [{ kind: 'insert', table: 'orders', id: String(id), value }], async (client) => {
      await this.send(client, tenant, {
        text: 'INSERT INTO orders (tenant_id, id, placed_at, total_cents, note) VALUES ($1, $2, now(), $3, $4)',
        values: [tenant, id, total, note],
      });
    });
    this.remember({ tenant, id, value });
    return 1;
  }

  private async updateOrder(tenant: number): Promise<number> {
    const order = (this.random() < 0.5 ? this.own() : undefined) ?? this.loadedOrder(tenant);
    if (order === undefined) return await this.insertOrder(tenant);
    const note = this.newNote();
    const [total, revision] = order.value.split('|', 2) as [string, string];
    const from = order.id < LIVE_ORDER_ID ? loadedOrderValue(order.tenant, order.id) : null;
    // While the outcome is unknown nobody may rely on the order: it is forgotten until the server has answered.
    this.orders = this.orders.filter((o) => o !== order);
    await this.write(
      order.tenant,
      [{ kind: 'update', table: 'orders', id: String(order.id), note, from }],
      async (client) => {
        const result = await this.send(client, order.tenant, {
          name: 'update_order',
          text: 'UPDATE orders SET note = $1, revision = revision + 1 WHERE tenant_id = $2 AND id = $3',
          values: [note, order.tenant, order.id],
        });
        if (result.rowCount !== 1) throw new Error(`an update of one order changed ${result.rowCount} rows`);
      },
    );
    this.remember({ ...order, value: orderValue(total, note, Number(revision) + 1) });
    return 1;
  }

  /** A transaction of several statements: the order, its items, the tenant's counter. */
  private async placeOrder(tenant: number): Promise<number> {
    const { id, total, note } = this.newOrder();
    const value = orderValue(total, note, 0);
    const lines = Array.from({ length: 2 }, (_, i) => ({
      line: i + 1,
      sku: `sku-${this.below(5000)}`,
      quantity: 1 + this.below(9),
    }));
    const effects: Effect[] = [
      { kind: 'insert', table: 'orders', id: String(id), value },
      ...lines.map(
        (l): Effect => ({
          kind: 'insert',
          table: 'order_items',
          id: `${id}/${l.line}`,
          value: itemValue(l.sku, l.quantity),
        }),
      ),
      { kind: 'count', table: 'tenants', id: String(tenant) },
    ];
    await this.write(tenant, effects, async (client) => {
      try {
        await this.send(client, tenant, { text: 'BEGIN' });
        await this.send(client, tenant, {
          text: `INSERT INTO orders (tenant_id, id, placed_at, total_cents, note) VALUES (${tenant}, ${id}, now(), ${total}, '${note}')`,
        });
        await this.send(client, tenant, {
          text: `INSERT INTO order_items (tenant_id, order_id, line, sku, quantity, price_cents) VALUES ${places(lines.length, 6)}`,
          values: lines.flatMap((l) => [tenant, id, l.line, l.sku, l.quantity, total]),
        });
        await this.send(client, tenant, {
          name: 'count_order',
          text: 'UPDATE tenants SET orders_placed = orders_placed + 1 WHERE id = $1',
          values: [tenant],
        });
      } catch (error) {
        // Nothing was committed, whatever became of the connection.
        if (isDefinite(error)) await client.query('ROLLBACK');
        else await this.drop();
        throw error instanceof OutcomeUnknownError ? error.cause : error;
      }
      const { command } = await this.send(client, tenant, { text: 'COMMIT' });
      if (command !== 'COMMIT') throw new Error(`COMMIT was answered with ${command}`);
    });
    this.remember({ tenant, id, value });
    return 5;
  }

  private async read<R extends pg.QueryResultRow>(tenant: number, query: pg.QueryConfig): Promise<pg.QueryResult<R>> {
    const result = await this.send<R>(await this.connected(), tenant, query);
    this.counters.reads++;
    return result;
  }

  /** Runs a write and journals what the client then knows. An error of the server means that nothing was written. */
  private async write(
    tenant: number,
    effects: readonly Effect[],
    run: (client: pg.Client) => Promise<void>,
  ): Promise<void> {
    const client = await this.connected();
    try {
      await run(client);
    } catch (error) {
      if (!(error instanceof OutcomeUnknownError)) throw error;
      this.sink.journal({ outcome: 'unknown', tenant, effects });
      throw error.cause;
    }
    this.sink.journal({ outcome: 'acknowledged', tenant, effects });
    this.counters.writes++;
  }

  private async send<R extends pg.QueryResultRow>(
    client: pg.Client,
    tenant: number,
    query: pg.QueryConfig,
  ): Promise<pg.QueryResult<R>> {
    const start = performance.now();
    try {
      return await client.query<R>(query);
    } catch (error) {
      throw isDefinite(error) ? error : new OutcomeUnknownError('the outcome is unknown', { cause: error });
    } finally {
      this.counters.statements++;
      this.sink.waited(performance.timeOrigin + start, performance.now() - start, tenant);
    }
  }

  private async connected(): Promise<pg.Client> {
    if (this.client !== null) return this.client;
    const client = new pg.Client({
      connectionString: this.options.url,
      application_name: `shop-${this.index}`,
      connectionTimeoutMillis: 10_000,
    });
    // The query that was under way rejects with the same error, and is counted there.
    client.on('error', () => undefined);
    await client.connect();
    this.client = client;
    return client;
  }

  private async drop(): Promise<void> {
    const client = this.client;
    this.client = null;
    await client?.end().catch((error: unknown) => this.count(error));
    await delay(50);
  }

  private count(error: unknown): void {
    const cause = error instanceof OutcomeUnknownError ? error.cause : error;
    const text =
      cause instanceof pg.DatabaseError
        ? `${cause.severity} ${cause.code}: ${cause.message}`
        : cause instanceof Error
          ? cause.message
          : String(cause);
    this.counters.errors.set(text, (this.counters.errors.get(text) ?? 0) + 1);
  }

  private newOrder(): { id: number; total: number; note: string } {
    const id = LIVE_ORDER_ID + this.nextOrder++ * this.options.connections + this.index;
    return { id, total: 100 + this.below(100_000), note: this.newNote() };
  }

  /** Unique among all writes of the load. */
  private newNote(): string {
    return `w${this.index}-${this.writeId++}`;
  }

  private remember(order: OwnOrder): void {
    if (this.orders.length >= REMEMBERED_ORDERS) this.orders.splice(this.below(this.orders.length), 1);
    this.orders.push(order);
  }

  private own(): OwnOrder | undefined {
    return this.orders[this.below(this.orders.length)];
  }

  /** A loaded order that is this client's own to change: ids are dealt out among the clients, and each is taken up once. */
  private loadedOrder(tenant: number): OwnOrder | undefined {
    const { connections, loadedOrders } = this.options;
    const mine = Math.floor((loadedOrders[tenant] as number) / connections);
    if (mine === 0) return undefined;
    const id = 1 + this.index + connections * this.below(mine);
    const key = `${tenant}/${id}`;
    if (this.loadedTouched.has(key)) return undefined;
    this.loadedTouched.add(key);
    return { tenant, id, value: loadedOrderValue(tenant, id) };
  }

  /** Each group is as many neighbouring tenants as the others. */
  private drawTenant(weights: readonly number[]): number {
    const perGroup = this.options.tenants / weights.length;
    let left = this.random() * weights.reduce((a, b) => a + b, 0);
    let group = 0;
    while (group < weights.length - 1 && left >= (weights[group] as number)) left -= weights[group++] as number;
    return Math.min(this.options.tenants, 1 + Math.floor((group + this.random()) * perGroup));
  }

  private below(n: number): number {
    return Math.floor(this.random() * n);
  }
}

/** Whether the server said that the statement was not carried out. Class 08, 40003 and the shutdown errors say that nobody knows. */
function isDefinite(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError) || error.severity !== 'ERROR') return false;
  const code = error.code ?? '';
  return !code.startsWith('08') && !code.startsWith('57P') && code !== '40003';
}

/** mulberry32: the same load for the same seed. */
function seeded(seed: number): () => number {
  let state = seed * 0x9e3779b1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}
