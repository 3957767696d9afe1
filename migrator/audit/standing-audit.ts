import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { Logger } from 'pino';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { audit as note } from '../../topology/catalog/change.js';
import { OUT_OF_THE_WAY } from '../migration-row.js';
import { type Audited, audit } from './audit.js';
import { AuditInterrupted, Portions } from './portions.js';

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
  // What was looked through before an audit was interrupted is not looked through again.
  let portions: Portions | null = null;
  while (!signal.aborted) {
    let pauseMs = everyMs * (0.75 + Math.random() / 2);
    try {
      portions ??= new Portions(true, async () => signal.aborted || (await isBusy(catalog.pool)));
      if ((await auditOnce(catalog, logger, everyMs / 2, portions)) === 'later') pauseMs = Math.min(pauseMs, LOOK_MS);
      else portions = null;
    } catch (error) {
      logger.warn({ error: String(error) }, 'the shards could not be audited; it is tried again');
    }
    await delay(pauseMs, undefined, { signal }).catch(() => undefined); // cut short by the signal
  }
}

/** @returns `later`: a migration is in the way */
async function auditOnce(
  catalog: Catalog,
  logger: Logger,
  youngMs: number,
  portions: Portions,
): Promise<'done' | 'later'> {
  const client = await catalog.pool.connect();
  try {
    const { rows } = await client.query<{ got: boolean }>('SELECT pg_try_advisory_lock($1) AS got', [AUDIT_LOCK]);
    if (rows[0]?.got !== true) return 'done'; // another process is at it
    const { rows: now } = await client.query<{ young: boolean }>(
      `SELECT EXISTS (SELECT FROM foreshard.audit WHERE action = $1 AND at > clock_timestamp() - $2 * interval '1 ms') AS young`,
      [ACTION, youngMs],
    );
    if (now[0]?.young === true) return 'done';
    if (await isBusy(client)) return 'later';
    const began = performance.now();
    const findings = await audit(catalog, false, portions);
    const seconds = Math.round((performance.now() - began) / 100) / 10;
    await note(client, { actor: 'migrator', action: ACTION, object: 'shards', detail: { findings, seconds } });
    for (const { kind, shard, object, text, remedy } of findings) logger.warn({ kind, shard, object, remedy }, text);
    logger.info({ findings: findings.length, seconds }, 'the shards have been audited');
    return 'done';
  } catch (error) {
    if (!(error instanceof AuditInterrupted)) throw error;
    return 'later';
  } finally {
    client.release(true); // and with it the lock
  }
}

/** A migration is under way. */
async function isBusy(db: Pick<pg.ClientBase, 'query'> | pg.Pool): Promise<boolean> {
  const { rows } = await (db as pg.Pool).query<{ busy: boolean }>(
    `SELECT EXISTS (SELECT FROM foreshard.migration WHERE state NOT IN (${OUT_OF_THE_WAY})) AS busy`,
  );
  return rows[0]?.busy === true;
}

/** Null: there was none yet. */
export async function lastAudit(catalog: Catalog): Promise<LastAudit | null> {
  const { rows } = await catalog.pool.query<LastAudit>(
    `SELECT at, detail->'findings' AS findings FROM foreshard.audit WHERE action = $1 ORDER BY id DESC LIMIT 1`,
    [ACTION],
  );
  return rows[0] ?? null;
}
