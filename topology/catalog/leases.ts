import type pg from 'pg';
import { errorCode } from '../connection.js';
import type { Interval } from '../key.js';
import { positionToJson } from '../key-codec.js';
import type { Epoch, Keyspace } from '../topology.js';
import type { CatalogClient } from './change.js';
import { timedQuery } from './timed-query.js';

const FOREIGN_KEY_VIOLATION = '23503';

export interface ProxyIdentity {
  /** A UUID made at start-up: a restarted proxy is another one. */
  readonly id: string;
  /** For people. */
  readonly name: string;
  /** host:port it listens on. */
  readonly listen: string;
}

/** What a proxy says of itself with its lease. */
export interface LeaseFacts {
  readonly ttlMs: number;
  /** No statement placed by an earlier epoch is running any more. */
  readonly epochAcked: Epoch;
  /** It has heard of this generation of the schema. */
  readonly schemaHeard: bigint;
}

export interface RenewedLease {
  /** By the catalog's clock. */
  readonly remainingMs: number;
  /** The catalog's, now. */
  readonly schemaGeneration: bigint;
}

/**
 * By so much of its length whoever holds a lease believes in an earlier end than the catalog. Clocks of two machines run at different
 * rates: their crystals by less than 0.01 %, and adjtime(3) and ntpd put a clock right by 0.05 %. Beyond this margin are a clock that is
 * set to another time, and one that chrony brings back from far out (`maxslewrate`: 8.3 %).
 */
const CLOCK_MARGIN = 0.02;

/** Until when its holder may believe in a lease, on the clock by which it was asked for at `askedAt`; ms. */
export function ownLeaseEnd(askedAt: number, ttlMs: number): number {
  return askedAt + ttlMs * (1 - CLOCK_MARGIN);
}

/** A proxy whose lease has not ended. */
export interface LiveProxy extends ProxyIdentity {
  readonly epochAcked: Epoch;
  /** ms until its lease ends, by the catalog's clock. */
  readonly remainingMs: number;
}

export interface NewHold extends Interval {
  readonly migrationId: bigint;
  readonly keyspace: Keyspace;
  readonly referenceTables: boolean;
  /** ms from now, by the catalog's clock, after which proxies let go by themselves. */
  readonly deadlineMs: number;
}

export interface HoldStatus {
  /** ms until proxies let go by themselves; 0 when the deadline has passed or the hold is gone. */
  readonly remainingMs: number;
  /** Live proxies that have not acknowledged; empty and `remainingMs` > 0: the interval is quiet. */
  readonly waitingFor: readonly LiveProxy[];
}

const LIVE_PROXY = `p.id, p.name, p.listen, p.epoch_acked::text AS "epochAcked",
  (extract(epoch FROM p.lease_until - clock_timestamp()) * 1000)::float8 AS "remainingMs"`;

type LiveProxyRow = Omit<LiveProxy, 'epochAcked'> & { epochAcked: string };

function liveProxy(row: LiveProxyRow): LiveProxy {
  return { ...row, epochAcked: BigInt(row.epochAcked) as Epoch };
}

/**
 * Proxies' right to serve. The catalog counts a lease from when it executes the statement, the proxy from before it
 * asked and a little shorter (`ownLeaseEnd`), so the proxy always believes in the earlier end, and has stopped by the time the catalog counts it as gone.
 *
 * The order that keeps this safe: register, load the topology, serve. A lease that has ended is never renewed, for the
 * world may have moved on without asking this proxy: it registers again, and loads again, before it serves again.
 */
export class ProxyLeases {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /** Starts a lease: from here on every flip waits for this proxy. What an earlier lease of it acknowledged is void, and whoever coordinated by that decides nothing any more. */
  async register(proxy: ProxyIdentity & LeaseFacts): Promise<void> {
    // A coordinator whose row is locked has a decision under way, and had the lease when that began.
    await this.#pool.query(
      timedQuery(
        `WITH void AS (DELETE FROM foreshard.hold_ack WHERE proxy_id = $1),
       fenced AS (UPDATE foreshard.coordinator SET fenced_at = clock_timestamp() WHERE id IN (
         SELECT id FROM foreshard.coordinator WHERE proxy_id = $1 AND fenced_at IS NULL FOR NO KEY UPDATE SKIP LOCKED))
       INSERT INTO foreshard.proxy (id, name, listen, lease_until, epoch_acked, schema_heard)
       VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 ms', $5, $6)
       ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, epoch_acked = excluded.epoch_acked, schema_heard = excluded.schema_heard`,
        [proxy.id, proxy.name, proxy.listen, proxy.ttlMs, proxy.epochAcked.toString(), proxy.schemaHeard.toString()],
      ),
    );
    // Proxies that never said goodbye need not be kept for ever.
    await this.#pool.query(
      timedQuery(`DELETE FROM foreshard.proxy WHERE lease_until < clock_timestamp() - interval '1 day'`),
    );
  }

  /**
   * Lengthens a lease, and acknowledges an epoch and a generation of the schema.
   * @returns null when it had ended: stop serving, register and load again
   */
  async renew(proxyId: string, { ttlMs, epochAcked, schemaHeard }: LeaseFacts): Promise<RenewedLease | null> {
    const { rows } = await this.#pool.query<{ remainingMs: number; schemaGeneration: string }>(
      timedQuery(
        `UPDATE foreshard.proxy
          SET lease_until = clock_timestamp() + $2 * interval '1 ms', epoch_acked = greatest(epoch_acked, $3),
              schema_heard = greatest(schema_heard, $4)
        WHERE id = $1 AND lease_until > clock_timestamp()
        RETURNING (extract(epoch FROM lease_until - clock_timestamp()) * 1000)::float8 AS "remainingMs",
                  (SELECT schema_generation::text FROM foreshard.meta) AS "schemaGeneration"`,
        [proxyId, ttlMs, epochAcked.toString(), schemaHeard.toString()],
        'foreshard renew',
      ),
    );
    const row = rows[0];
    return row === undefined ? null : { remainingMs: row.remainingMs, schemaGeneration: BigInt(row.schemaGeneration) };
  }

  /** Ends a lease at once: nobody waits for a proxy that has stopped serving. */
  async unregister(proxyId: string): Promise<void> {
    await this.#pool.query(timedQuery('DELETE FROM foreshard.proxy WHERE id = $1', [proxyId]));
  }

  /**
   * Says that nothing new starts on the hold's interval there, and that no transaction is open on it.
   * @returns false when the hold is gone, or the proxy's lease has ended
   */
  async ackHold(holdId: bigint, proxyId: string): Promise<boolean> {
    // Clients wait for this. Should the catalog lose it in a crash, the flip, which looks at it once more, does not happen.
    const acknowledged = this.#pool.query(
      timedQuery(
        `INSERT INTO foreshard.hold_ack (hold_id, proxy_id)
       SELECT h.id, p.id FROM foreshard.hold h, foreshard.proxy p
        WHERE h.id = $1 AND p.id = $2 AND p.lease_until > clock_timestamp()
          AND set_config('synchronous_commit', 'off', true) = 'off'
       ON CONFLICT (hold_id, proxy_id) DO UPDATE SET acked_at = clock_timestamp()`,
        [holdId.toString(), proxyId],
        'foreshard acknowledge',
      ),
    );
    return acknowledged.then(
      ({ rowCount }) => rowCount === 1,
      (error: unknown) => {
        // One of the two was seen, and went before this was written.
        if (errorCode(error) === FOREIGN_KEY_VIOLATION) return false;
        throw error;
      },
    );
  }
}

/** Asks the proxies to hold an interval; they learn of it when the transaction commits. */
export async function createHold(client: CatalogClient, hold: NewHold): Promise<bigint> {
  const { rows } = await client.query<{ id: string }>(
    `INSERT INTO foreshard.hold (migration_id, keyspace, lo, hi, reference_tables, deadline)
     VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6 * interval '1 ms') RETURNING id`,
    [
      hold.migrationId.toString(),
      hold.keyspace.name,
      jsonOrNull(positionToJson(hold.keyspace, hold.lo)),
      jsonOrNull(positionToJson(hold.keyspace, hold.hi)),
      hold.referenceTables,
      hold.deadlineMs,
    ],
  );
  return BigInt((rows[0] as { id: string }).id);
}

/** Has the proxies end, when the transaction commits, what transactions are open on the interval. A hold that is gone already is no error. */
export async function endTransactions(client: CatalogClient, holdId: bigint): Promise<void> {
  await client.query('UPDATE foreshard.hold SET ends_transactions = true WHERE id = $1', [holdId.toString()]);
}

/** Lets the proxies go on when the transaction commits. A hold that is gone already is no error. */
export async function dropHold(client: CatalogClient, holdId: bigint): Promise<void> {
  await client.query('DELETE FROM foreshard.hold WHERE id = $1', [holdId.toString()]);
}

/** Who has yet to acknowledge a hold. Proxies whose lease has ended do not count: they have stopped serving. */
export async function holdStatus(client: CatalogClient, holdId: bigint): Promise<HoldStatus> {
  const { rows } = await client.query<{ remainingMs: number; waiting: LiveProxyRow[] }>({
    name: 'foreshard hold status',
    text: `SELECT greatest(0, extract(epoch FROM h.deadline - clock_timestamp()) * 1000)::float8 AS "remainingMs",
       (SELECT coalesce(json_agg(w), '[]') FROM (
          SELECT ${LIVE_PROXY} FROM foreshard.proxy p
           WHERE p.lease_until > clock_timestamp()
             AND NOT EXISTS (SELECT FROM foreshard.hold_ack a WHERE a.hold_id = h.id AND a.proxy_id = p.id)
           ORDER BY p.name, p.id) w) AS waiting
     FROM foreshard.hold h WHERE h.id = $1`,
    values: [holdId.toString()],
  });
  const row = rows[0];
  if (row === undefined) return { remainingMs: 0, waitingFor: [] };
  return { remainingMs: row.remainingMs, waitingFor: row.waiting.map(liveProxy) };
}

/** Every live proxy. */
export async function liveProxies(client: CatalogClient): Promise<LiveProxy[]> {
  const { rows } = await client.query<LiveProxyRow>(
    `SELECT ${LIVE_PROXY} FROM foreshard.proxy p WHERE p.lease_until > clock_timestamp() ORDER BY p.name, p.id`,
  );
  return rows.map(liveProxy);
}

/** Whether no live proxy is still on an epoch before this one. */
export async function epochAckedByAll(client: CatalogClient, epoch: Epoch): Promise<boolean> {
  return (await liveProxies(client)).every((proxy) => proxy.epochAcked >= epoch);
}

function jsonOrNull(value: unknown): string | null {
  return value === null ? null : JSON.stringify(value);
}
