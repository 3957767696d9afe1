import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { audit as note } from '../../topology/catalog/change.js';
import { OUT_OF_THE_WAY } from '../migration-row.js';
import { type Audited, audit } from './audit.js';

/** What an audit is written down as, in the audit trail. */
const ACTION = 'audit';
/** Of a lock in the catalog: one process audits at a time. Any number that nobody else uses there. */
const AUDIT_LOCK = 0x666f_7265_7368;
/** While a migration is under way it is looked this often whether it still is, ms. */
const LOOK_MS = 60_000;

export interface StandingAuditSetup {
  readonly catalog: Catalog;
  readonly logger: Logger;
  /** Time between two audits, whichever process makes them, ms; each is up to a quarter earlier or later. */
  readonly everyMs: number;
}

/** The last audit that a migrator has made by itself. */
export interface LastAudit {
  readonly at: Date;
  readonly findings: readonly Audited[];
}

/** Audits (reads only) from time to time until `signal` fires: never while a migration is under way, and in one process at a time. */
export async function auditStandingly(
  { catalog, logger, everyMs }: StandingAuditSetup,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    let pauseMs = everyMs * (0.75 + Math.random() / 2);
    try {
      if ((await auditOnce(catalog, logger, everyMs / 2)) === 'later') pauseMs = Math.min(pauseMs, LOOK_MS);
    } catch (error) {
      logger.warn({ error: String(error) }, 'the shards could not be audited; it is tried again');
    }
    await delay(pauseMs, undefined, { signal }).catch(() => undefined); // cut short by the signal
  }
}

/** @returns `later`: a migration is in the way */
async function auditOnce(catalog: Catalog, logger: Logger, youngMs: number): Promise<'done' | 'later'> {
  const client = await catalog.pool.connect();
  try {
    const { rows } = await client.query<{ got: boolean }>('SELECT pg_try_advisory_lock($1) AS got', [AUDIT_LOCK]);
    if (rows[0]?.got !== true) return 'done'; // another process is at it
    const { rows: now } = await client.query<{ busy: boolean; young: boolean }>(
      `SELECT EXISTS (SELECT FROM foreshard.migration WHERE state NOT IN (${OUT_OF_THE_WAY})) AS busy,
              EXISTS (SELECT FROM foreshard.audit WHERE action = $1 AND at > clock_timestamp() - $2 * interval '1 ms') AS young`,
      [ACTION, youngMs],
    );
    if (now[0]?.young === true) return 'done';
    if (now[0]?.busy === true) return 'later';
    const began = performance.now();
    const findings = await audit(catalog, false, true);
    const seconds = Math.round((performance.now() - began) / 100) / 10;
    await note(client, { actor: 'migrator', action: ACTION, object: 'shards', detail: { findings, seconds } });
    for (const { kind, shard, object, text, remedy } of findings) logger.warn({ kind, shard, object, remedy }, text);
    logger.info({ findings: findings.length, seconds }, 'the shards have been audited');
    return 'done';
  } finally {
    client.release(true); // and with it the lock
  }
}

/** Null: there was none yet. */
export async function lastAudit(catalog: Catalog): Promise<LastAudit | null> {
  const { rows } = await catalog.pool.query<LastAudit>(
    `SELECT at, detail->'findings' AS findings FROM foreshard.audit WHERE action = $1 ORDER BY id DESC LIMIT 1`,
    [ACTION],
  );
  return rows[0] ?? null;
}
