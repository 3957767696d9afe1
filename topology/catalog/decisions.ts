import type pg from 'pg';
import { errorCode, explainConnectError } from '../connection.js';
import { CatalogUnavailableError } from '../errors.js';
import type { CoordinatorId, Outcome, TransactionName } from '../prepared-transactions.js';
import type { ShardName } from '../topology.js';
import { timedQuery } from './timed-query.js';

const FOREIGN_KEY_VIOLATION = '23503';

/**
 * So long nothing of a fenced coordinator must have been found before it is forgotten: a PREPARE TRANSACTION whose connection was lost may
 * still be on its way, or wait at its server. A connection that nobody answers is given up by TCP before (15 minutes on Linux are those of
 * a machine that has vanished, which sends nothing any more).
 */
export const CLEAN_FOR_MS = 600_000;
/** How often a fenced coordinator is looked after of which nothing was found. */
const LOOK_AGAIN_MS = 60_000;

const EXPIRED = `NOT EXISTS (SELECT FROM foreshard.proxy p WHERE p.id = c.proxy_id AND p.lease_until > clock_timestamp())`;

/** So long a statement waits for another one's lock in the catalog: less than its caller for the answer, so that none is left waiting there. */
const LOCK_MS = 4_000;

/** A decision is not to be forgotten by a crash of the catalog's server once it is known. For the transaction, which is this statement. */
const DURABLE = `set_config('lock_timeout', '${LOCK_MS}', true) IS NOT NULL AND set_config('synchronous_commit',
  CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true) IS NOT NULL`;

/** A commit that is to be decided. */
export interface Decision {
  readonly number: bigint;
  readonly shards: readonly ShardName[];
}

/** A coordinator that the catalog knows. */
export interface KnownCoordinator {
  readonly id: CoordinatorId;
  /** Of the proxy, for people. */
  readonly proxy: string;
  /** It decides nothing any more. */
  readonly fenced: boolean;
  /** Nor does it live: it is to be fenced, if it is not. */
  readonly expired: boolean;
}

/**
 * What coordinators of transactions on several shards have decided. A coordinator decides by itself for as long as nobody has fenced it; once it is
 * fenced, what it has not decided is rolled back, and anybody may carry out what it has.
 *
 * A coordinator belongs to one lease of its proxy. When that has ended, by the catalog's clock, anybody fences it: a proxy that registers again, under
 * the same id, enrolls a new one. It learns of the end by its lease (`LiveTopology.era` has changed), and at the latest by `decide`, which records nothing
 * for a coordinator that was fenced, or whose lease has ended.
 */
export class Decisions {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /** A new coordinator. @returns false when the proxy's lease has ended */
  async enroll(id: CoordinatorId, proxyId: string): Promise<boolean> {
    const { rowCount } = await this.#pool.query(
      timedQuery(
        `INSERT INTO foreshard.coordinator (id, proxy_id, proxy_name)
         SELECT $1, p.id, p.name FROM foreshard.proxy p WHERE p.id = $2 AND p.lease_until > clock_timestamp()`,
        [id, proxyId],
      ),
    );
    return rowCount === 1;
  }

  /**
   * Decides that all of these are committed: the point of no return. One statement, so all of them or none.
   *
   * Only while the lease lasts in which it enrolled, as what a branch has only locked, or read, is protected by that alone: a flip waits for the writers of
   * an interval at their shard, but for the others only by their proxy's acknowledgement. One that slept would commit by what was.
   * @returns false: none is, for the coordinator was fenced, or the lease has ended
   * @throws CatalogUnavailableError when it was not asked, and nothing is recorded; any other error: `settle` tells whether they are
   */
  async decide(id: CoordinatorId, commits: readonly Decision[]): Promise<boolean> {
    let client: pg.PoolClient;
    try {
      client = await this.#pool.connect();
    } catch (error) {
      const { reason, hint } = explainConnectError(error);
      throw new CatalogUnavailableError(`cannot use the catalog: ${reason}`, { hint, cause: error });
    }
    try {
      // While it holds the lock on the coordinator's row nobody fences it; and it waits for whoever is about to.
      const { rowCount } = await client.query(
        timedQuery(
          `INSERT INTO foreshard.decision (coordinator, number, committed, shards)
           SELECT c.id, d.number, true, ARRAY(SELECT json_array_elements_text(d.shards::json))
             FROM foreshard.coordinator c, unnest($2::bigint[], $3::text[]) AS d(number, shards)
            WHERE c.id = $1 AND c.fenced_at IS NULL AND NOT ${EXPIRED} AND ${DURABLE} FOR SHARE OF c`,
          [id, commits.map(({ number }) => String(number)), commits.map(({ shards }) => JSON.stringify(shards))],
        ),
      );
      client.release();
      return rowCount === commits.length;
    } catch (error) {
      client.release(true);
      throw error;
    }
  }

  /**
   * How a transaction ends of which it is not known whether a decision was recorded: if none is there yet, none can be from now on, also if the
   * statement is still on its way.
   * @returns null when the coordinator is gone: somebody has ended all that it had prepared
   */
  async settle({ coordinator, number }: TransactionName): Promise<Outcome | null> {
    try {
      await this.#pool.query(
        timedQuery(
          `INSERT INTO foreshard.decision (coordinator, number, committed, shards)
           SELECT $1, $2, false, '{}' WHERE ${DURABLE} ON CONFLICT (coordinator, number) DO NOTHING`,
          [coordinator, String(number)],
        ),
      );
    } catch (error) {
      if (errorCode(error) === FOREIGN_KEY_VIOLATION) return null;
      throw error;
    }
    // A statement of its own: it sees the row that the other one has waited for.
    const { rows } = await this.#pool.query<{ committed: boolean }>(
      timedQuery('SELECT committed FROM foreshard.decision WHERE coordinator = $1 AND number = $2', [
        coordinator,
        String(number),
      ]),
    );
    const row = rows[0];
    if (row === undefined) return null;
    return row.committed ? 'commit' : 'rollback';
  }

  /** Whether its commit is recorded. Without one, only that of a coordinator that was fenced can be rolled back. */
  async isDecided({ coordinator, number }: TransactionName): Promise<boolean> {
    const { rowCount } = await this.#pool.query(
      timedQuery('SELECT FROM foreshard.decision WHERE coordinator = $1 AND number = $2 AND committed', [
        coordinator,
        String(number),
      ]),
    );
    return rowCount === 1;
  }

  /** How many commits are recorded in which this shard has a part, carried out there or not. */
  async countOn(shard: ShardName): Promise<number> {
    const { rows } = await this.#pool.query<{ n: number }>(
      timedQuery('SELECT count(*)::int AS n FROM foreshard.decision WHERE committed AND $1 = ANY(shards)', [shard]),
    );
    return rows[0]?.n ?? 0;
  }

  /** They are carried out on all of their shards. */
  async forget(id: CoordinatorId, numbers: readonly bigint[]): Promise<void> {
    await this.#pool.query(
      timedQuery('DELETE FROM foreshard.decision WHERE coordinator = $1 AND number = ANY($2::bigint[])', [
        id,
        numbers.map(String),
      ]),
    );
  }

  /**
   * Fences every coordinator whose proxy's lease has ended, by the catalog's clock. One with a decision under way is left for the next time: it may
   * be recorded at any moment, and nobody is to queue up behind it.
   */
  async fenceExpired(): Promise<KnownCoordinator[]> {
    return this.#fence(EXPIRED, []);
  }

  /** Fences one whose proxy's lease has ended; if it has not, nothing happens. */
  async fenceIfExpired(id: CoordinatorId): Promise<void> {
    await this.#fence(`c.id = $1 AND ${EXPIRED}`, [id]);
  }

  /** Fences a coordinator of one's own. */
  async fence(id: CoordinatorId): Promise<void> {
    await this.#fence('c.id = $1', [id]);
  }

  async #fence(which: string, values: readonly unknown[]): Promise<KnownCoordinator[]> {
    const { rows } = await this.#pool.query<KnownCoordinator>(
      timedQuery(
        `UPDATE foreshard.coordinator c SET fenced_at = clock_timestamp()
          WHERE c.id IN (SELECT c.id FROM foreshard.coordinator c WHERE c.fenced_at IS NULL AND ${which} FOR NO KEY UPDATE SKIP LOCKED)
         RETURNING c.id, c.proxy_name AS proxy, true AS fenced, ${EXPIRED} AS expired`,
        values,
      ),
    );
    return rows;
  }

  /** Those that were fenced, and are to be looked after now. */
  async due(): Promise<CoordinatorId[]> {
    const { rows } = await this.#pool.query<{ id: CoordinatorId }>(
      timedQuery(
        `SELECT id FROM foreshard.coordinator WHERE fenced_at IS NOT NULL
            AND (clean_since IS NULL OR looked_at < clock_timestamp() - $1 * interval '1 ms') ORDER BY fenced_at`,
        [LOOK_AGAIN_MS],
      ),
    );
    return rows.map(({ id }) => id);
  }

  /**
   * Every shard was looked at since they were fenced, and nothing of them is left. Those of which that has been so for long enough go, with their
   * decisions.
   */
  async foundClean(ids: readonly CoordinatorId[]): Promise<void> {
    await this.#pool.query(
      timedQuery(
        `UPDATE foreshard.coordinator SET looked_at = clock_timestamp(), clean_since = coalesce(clean_since, clock_timestamp())
          WHERE id = ANY($1::uuid[]) AND fenced_at IS NOT NULL`,
        [ids],
      ),
    );
    await this.#pool.query(
      timedQuery(
        `DELETE FROM foreshard.coordinator WHERE id = ANY($1::uuid[]) AND clean_since < clock_timestamp() - $2 * interval '1 ms'`,
        [ids, CLEAN_FOR_MS],
      ),
    );
  }

  /** Something of them was found. */
  async foundLeft(ids: readonly CoordinatorId[]): Promise<void> {
    await this.#pool.query(
      timedQuery(
        'UPDATE foreshard.coordinator SET clean_since = NULL WHERE id = ANY($1::uuid[]) AND clean_since IS NOT NULL',
        [ids],
      ),
    );
  }

  /** One's own goes, which has left nothing anywhere. */
  async leave(id: CoordinatorId): Promise<void> {
    await this.#pool.query(timedQuery('DELETE FROM foreshard.coordinator WHERE id = $1', [id]));
  }

  /** What is known of these. */
  async known(ids: readonly CoordinatorId[]): Promise<Map<CoordinatorId, KnownCoordinator>> {
    const { rows } = await this.#pool.query<KnownCoordinator>(
      timedQuery(
        `SELECT c.id, c.proxy_name AS proxy, c.fenced_at IS NOT NULL AS fenced, ${EXPIRED} AS expired
           FROM foreshard.coordinator c WHERE c.id = ANY($1::uuid[])`,
        [ids],
      ),
    );
    return new Map(rows.map((row) => [row.id, row]));
  }
}
