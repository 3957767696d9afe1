import { errorCode } from '../topology/connection.js';
import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import { MigrationFailure } from './executor.js';
import { hashing } from './hashing.js';
import type { Move } from './move.js';
import { settlePartitions } from './partitions.js';
import { readTable } from './schema-read.js';

/** Times that a subscription which stopped is started again before the migration is given up. */
const MAX_RESTARTS = 8;
/** A subscription that has run for as long as this starts with a clean slate. */
const FORGET_AFTER_MS = 60_000;
/** How often what stands still is looked for, ms. */
const LOOK_MS = 1000;
/** A worker that PostgreSQL does not start for as long as this is missing; 15 starts one each wal_retrieve_retry_interval (5 s). */
const WORKER_MS = 15_000;
/** The part of max_slot_wal_keep_size of which there is less left when a slot is in danger. */
const LOW_HEADROOM = 0.25;
/** Written to see whether the disk is full. */
const DISK_PROBE = `CREATE TEMP TABLE foreshard_disk_probe ON COMMIT DROP AS SELECT repeat(md5(i::text), 200) AS filler FROM generate_series(1, 200) i`;

export interface ReplicationState {
  readonly lagBytes: number;
  /** What keeps it, and what to do about that; null: nothing that can be seen. */
  readonly note: string | null;
  /** Why the partitions of the two sides are not the same; null: they are. */
  readonly partitions: string | null;
}

interface SubscriptionRow {
  readonly oid: string;
  readonly enabled: boolean;
  readonly errors: string;
}

interface SlotRow {
  readonly lost: boolean;
  readonly lag: string;
  readonly headroom: string | null;
  readonly keep: string;
}

/** Watches a subscription and its slot; starts it again when it stopped, gives up when that does not help, and says why nothing moves. */
export class Supervisor {
  readonly #m: Move;
  #restarts = 0;
  #lastRestart = 0;
  /** Why it stopped last, as far as can be seen. */
  #cause: string | null = null;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #stalled: string | null = null;
  #settledAt = Number.NEGATIVE_INFINITY;
  #partitions: string | null = null;
  /** Since when a worker is missing. */
  #missingSince: number | null = null;

  constructor(m: Move) {
    this.#m = m;
  }

  /** @throws MigrationFailure when the slot is lost or the subscription keeps stopping */
  async check(): Promise<ReplicationState> {
    const m = this.#m;
    const sub = (
      await m.destination.query<SubscriptionRow>(
        `SELECT s.oid::text, s.subenabled AS enabled, (coalesce(t.apply_error_count, 0) + coalesce(t.sync_error_count, 0))::text AS errors
           FROM pg_subscription s LEFT JOIN pg_stat_subscription_stats t ON t.subid = s.oid WHERE s.subname = ${quoteLiteral(m.names.replication)}`,
      )
    )[0];
    const slot = await this.#slot(sub?.oid);
    // The destination sees no error when this happens.
    if (slot === undefined || slot.lost)
      throw new MigrationFailure(
        `the replication slot on shard "${m.spec.from}" is ${slot === undefined ? 'gone' : 'lost'}`,
        'Raise max_slot_wal_keep_size there (and see who drops slots), then start the migration again.',
      );
    if (sub === undefined)
      throw new MigrationFailure(
        `the subscription on shard "${m.spec.to}" is gone`,
        'Somebody dropped it: start the migration again.',
      );
    const lagBytes = Number(slot.lag);
    const partitions = await this.#settle(!sub.enabled);
    if (sub.enabled) {
      if (performance.now() - this.#lastRestart > FORGET_AFTER_MS) this.#restarts = 0;
      return { lagBytes, note: partitions ?? (await this.#stall(slot)), partitions };
    }
    // Started again when there is a place for every row.
    if (partitions !== null) return { lagBytes, note: partitions, partitions };
    // It would only stop again: it is started when there is room. The slot keeps what is to be followed.
    const full = await this.#fullDisk();
    if (full !== null) {
      const low = this.#lowHeadroom(slot);
      return { lagBytes, note: low === null ? full : `${full}; ${low}`, partitions };
    }
    // It also stops when only the connection broke. The log that says why is not to be read through SQL; a usual reason can be looked for.
    this.#cause = await this.#rowsInTheWay();
    const because = this.#cause === null ? '' : `: ${this.#cause}`;
    if (this.#restarts >= MAX_RESTARTS)
      throw new MigrationFailure(
        `replication into shard "${m.spec.to}" stopped ${this.#restarts} times (${sub.errors} errors)${because}`,
        `The log of that server says why, at "logical replication" and "${m.names.replication}".`,
      );
    if (performance.now() - this.#lastRestart > 250 * 2 ** this.#restarts) {
      this.#lastRestart = performance.now();
      this.#restarts++;
      await m.destination.query(`ALTER SUBSCRIPTION ${quoteIdent(m.names.replication)} ENABLE`);
    }
    return {
      lagBytes,
      note: `replication stopped with an error and was started again (${this.#restarts} of ${MAX_RESTARTS})${because}`,
      partitions,
    };
  }

  async #settle(now: boolean): Promise<string | null> {
    if (!now && performance.now() - this.#settledAt < LOOK_MS) return this.#partitions;
    this.#partitions = await settlePartitions(this.#m);
    this.#settledAt = performance.now();
    return this.#partitions;
  }

  /** Of the migration's slot and those of the workers that copy: the worst of them. */
  async #slot(subscription: string | undefined): Promise<SlotRow | undefined> {
    const { source, names } = this.#m;
    const name = quoteLiteral(names.replication);
    const rows = await source.query<SlotRow & { own: boolean }>(
      // The position that the destination has applied is told by its walsender; without one, by the slot.
      `SELECT s.slot_name = ${name} AS own, coalesce(s.wal_status = 'lost', false) AS lost, s.safe_wal_size::text AS headroom,
              (pg_size_bytes(current_setting('max_slot_wal_keep_size')))::text AS keep,
              greatest(0, pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(r.replay_lsn, s.confirmed_flush_lsn)))::text AS lag
         FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
        WHERE s.slot_name = ${name} OR starts_with(s.slot_name, $1)`,
      [`pg_${subscription ?? '0'}_sync_`],
    );
    const own = rows.find((r) => r.own);
    if (own === undefined) return undefined;
    const headrooms = rows.flatMap((r) => (r.headroom === null ? [] : [Number(r.headroom)]));
    return {
      ...own,
      lost: rows.some((r) => r.lost),
      headroom: headrooms.length === 0 ? null : Math.min(...headrooms).toString(),
    };
  }

  /** What keeps a subscription that runs from getting on, or is about to; null: nothing that can be seen. */
  async #stall(slot: SlotRow): Promise<string | null> {
    if (performance.now() - this.#lookedAt < LOOK_MS) return this.#stalled;
    this.#lookedAt = performance.now();
    this.#stalled = this.#lowHeadroom(slot) ?? (await this.#blocked()) ?? (await this.#missingWorker());
    return this.#stalled;
  }

  #lowHeadroom({ headroom, keep }: SlotRow): string | null {
    if (headroom === null || Number(headroom) > Number(keep) * LOW_HEADROOM) return null;
    const megabytes = Math.max(0, Number(headroom) / 1e6).toFixed(0);
    return `shard "${this.#m.spec.from}" keeps its log for this migration for ${megabytes} MB more only: raise max_slot_wal_keep_size there, or "foreshard migrate throttle"`;
  }

  /** Whoever has locked what the destination's workers write to. */
  async #blocked(): Promise<string | null> {
    const { destination, names, spec } = this.#m;
    const blockers = await destination.query<{ pid: number; who: string | null; state: string | null }>(
      `SELECT DISTINCT b.pid, coalesce(nullif(a.application_name, ''), a.usename::text) AS who, a.state
         FROM pg_stat_subscription w CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
         LEFT JOIN pg_stat_activity a ON a.pid = b.pid
        WHERE w.subname = $1 AND w.pid IS NOT NULL ORDER BY 1`,
      [names.replication],
    );
    if (blockers.length === 0) return null;
    const who = blockers.slice(0, 3).map((b) => `pid ${b.pid} (${b.who ?? '?'}, ${b.state ?? '?'})`);
    return `replication into shard "${spec.to}" waits for a lock of ${who.join(', ')}: end that transaction`;
  }

  async #missingWorker(): Promise<string | null> {
    const { destination, names, spec } = this.#m;
    const [row] = await destination.query<{ workers: number; copying: number; waiting: number }>(
      `SELECT count(w.pid)::int AS workers, count(w.pid) FILTER (WHERE w.relid IS NOT NULL)::int AS copying,
              (SELECT count(*) FROM pg_subscription_rel r WHERE r.srsubid = s.oid AND r.srsubstate = 'i')::int AS waiting
         FROM pg_subscription s LEFT JOIN pg_stat_subscription w ON w.subid = s.oid
        WHERE s.subname = $1 GROUP BY s.oid`,
      [names.replication],
    );
    if (row === undefined || (row.workers > 0 && (row.waiting === 0 || row.copying > 0))) {
      this.#missingSince = null;
      return null;
    }
    this.#missingSince ??= performance.now();
    const ms = performance.now() - this.#missingSince;
    if (ms < WORKER_MS) return null;
    return `shard "${spec.to}" has started no worker for logical replication for ${(ms / 1000).toFixed(0)} s: raise max_logical_replication_workers and max_worker_processes there, and restart it`;
  }

  async #fullDisk(): Promise<string | null> {
    const { destination, spec } = this.#m;
    try {
      await destination.transaction([DISK_PROBE]);
      return null;
    } catch (error) {
      // Whoever may not make temporary tables does not learn it.
      if (errorCode(error) === '42501') return null;
      if (errorCode(error) !== '53100') throw error;
      return `the disk of shard "${spec.to}" is full: make room there, or "foreshard migrate abort ${this.#m.row.id}"`;
    }
  }

  /** Rows of the interval that are there before their table has been copied: the copy cannot be seen before it is through. */
  async #rowsInTheWay(): Promise<string | null> {
    const { destination, names, spec, tables } = this.#m;
    const copying = await destination.query<{ oid: string }>(
      `SELECT r.srrelid::text AS oid FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
        WHERE s.subname = $1 AND r.srsubstate IN ('i', 'd')`,
      [names.replication],
    );
    for (const t of tables) {
      const info = await readTable(destination.reader, t.sql);
      if (info === null || !copying.some((c) => c.oid === info.oid)) continue;
      const rows = await destination.query<{ key: string }>(
        `SELECT ${hashing(info).key} AS key FROM ${t.sql} WHERE ${t.predicate()} LIMIT 3`,
      );
      if (rows.length > 0)
        return `table "${tableId(t)}" on shard "${spec.to}" has rows of the interval that the copy would make, such as ${rows.map((r) => r.key).join(', ')}: find who wrote them, and remove them there`;
    }
    return null;
  }
}
