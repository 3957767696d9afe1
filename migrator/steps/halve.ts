import { setTimeout as delay } from 'node:timers/promises';
import { splitStatements } from '../../topology/catalog/column-split.js';
import { errorCode } from '../../topology/connection.js';
import type { HalveSpec } from '../../topology/migration.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import { tableId } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import { MigrationFailure } from '../executor.js';
import {
  filledAction,
  type HalvesWork,
  objectsAction,
  removalAction,
  sitesOf,
  splitOf,
  triggersAction,
} from '../halves.js';
import { differingHalves, HALF_ROW_BYTES, throttleOn } from '../halves-compare.js';
import { preflightHalves, tableAt } from '../preflight-halves.js';
import { raiseEpochStatement } from '../ranges.js';
import type { ShardSession } from '../shard-session.js';
import { beginStatements, sameEpochStatement } from '../turn.js';
import { PreflightRefusal } from './prepare.js';

/** Rows that are filled in by one statement, which keeps their writers waiting. */
const BATCH = 500;
/** Shorter than a server waits until it looks for a deadlock: it is never a client's transaction that is ended. */
const LOCK_TIMEOUT_MS = 500;
const RETRY_MS = 50;
/** Batches after which it is noted how far the filling is. */
const NOTE_EVERY = 50;

type Halving = HalvesWork<HalveSpec>;

/** approved → preparing: looks, and touches nothing. */
export async function approveHalve(h: Halving): Promise<void> {
  h.exec.at('before:halve');
  const { findings } = await preflightHalves(h, await h.exec.openCleanup());
  if (findings.some((f) => f.severity === 'blocker')) throw new PreflightRefusal(findings);
  h.row = await h.exec.commit(
    h.row,
    [...beginStatements(h.row.id), sameEpochStatement(h.topology.epoch)],
    'preparing',
    { facts: { sites: sitesOf(h.topology, h.spec, h.row), warnings: findings } },
  );
}

/** preparing → copying: the hot table on every shard, and then the triggers that keep it like the table. */
export async function prepareHalve(h: Halving): Promise<void> {
  const { findings, tables } = await preflightHalves(h, await h.exec.openCleanup());
  if (findings.some((f) => f.severity === 'blocker')) throw new PreflightRefusal(findings);
  const split = splitOf(h.spec);
  for (const shard of h.sites.keys())
    await h.exec.perform(objectsAction(shard, tableAt(tables, shard, h.spec.table), split));
  for (const shard of h.sites.keys()) await h.exec.perform(triggersAction(shard, h.spec.table, split));
  h.row = await h.exec.transition(h.row, 'copying');
}

/** copying → verifying: the rows that nobody has written since. */
export async function fillHalve(h: Halving): Promise<void> {
  for (const [shard, session] of h.sites) await fillSite(h, shard, session);
  h.row = await h.exec.transition(h.row, 'verifying');
}

/** How far a shard is: `done`, or the primary key of the last row. */
type Filled = Readonly<Record<string, 'done' | Key>>;
/** A primary key, as text. */
type Key = readonly string[];

async function fillSite(h: Halving, shard: string, session: ShardSession): Promise<void> {
  const filled = (h.row.facts.filled ?? {}) as Filled;
  if (filled[shard] === 'done') return;
  const { table, hot, primaryKey, columns } = h.spec;
  const key = primaryKey.map(quoteIdent).join(', ');
  const all = [...primaryKey, ...columns].map(quoteIdent).join(', ');
  // The rows are locked while they are copied, so that none is changed in between; what a trigger has brought is newer than what is read here.
  const params = (from: number) => primaryKey.map((_, i) => `$${from + i + 1}`).join(', ');
  const past = (after: Key | undefined) => (after === undefined ? 'true' : `(${key}) > (${params(0)})`);
  // Where a batch ends is read without locks: of a row whose key is changed while it is waited for, the new key comes, and it may be behind rows that
  // are not in the batch.
  const bound = (after: Key | undefined, limit: number) =>
    `SELECT ${primaryKey.map((c, i) => `${quoteIdent(c)}::text AS k${i}`).join(', ')} FROM ${quoteTable(table)} WHERE ${past(after)} ORDER BY ${key} OFFSET ${limit - 1} LIMIT 1`;
  const fill = (after: Key | undefined, until: Key | undefined) => `WITH batch AS MATERIALIZED (
      SELECT ${all} FROM ${quoteTable(table)} WHERE ${past(after)}${until === undefined ? '' : ` AND (${key}) <= (${params(after?.length ?? 0)})`} ORDER BY ${key} FOR SHARE),
    filled AS (INSERT INTO ${quoteTable(hot)} (${all}) SELECT ${all} FROM batch ON CONFLICT (${key}) DO NOTHING)
    SELECT count(*)::int AS rows FROM batch`;
  if (h.exec.dry) {
    await h.exec.perform({
      name: 'fill-halves',
      on: { shard },
      text: `fill ${tableId(hot)} from ${tableId(table)}, ${BATCH} rows at a time`,
      mode: 'single',
      sql: [fill(undefined, undefined)],
    });
    return;
  }
  const throttle = throttleOn(h, shard, session);
  let last = filled[shard] as Key | undefined;
  let limit = BATCH;
  let rows = 0;
  for (let n = 1; ; n++) {
    h.exec.at('before:fill-halves');
    await h.exec.rest();
    await throttle.pause(limit * HALF_ROW_BYTES);
    const [end] = await session.query<Record<string, string>>(bound(last, limit), last);
    const until = end === undefined ? undefined : Object.values(end);
    const filling = await fillBatch(session, fill(last, until), [...(last ?? []), ...(until ?? [])]);
    if (filling === 'locked') {
      // One at a time waits for nobody while others wait for it.
      limit = Math.max(1, Math.floor(limit / 8));
      await delay(RETRY_MS);
      continue;
    }
    h.exec.at('within:fill-halves');
    rows += filling;
    await h.exec.progress({
      rowsCopied: rows,
      note: `filling ${tableId(hot)} on shard "${shard}"${throttle.note === null ? '' : `, ${throttle.note}`}`,
    });
    if (until === undefined) break;
    last = until;
    limit = Math.min(BATCH, limit * 2);
    if (n % NOTE_EVERY === 0) h.row = await h.exec.noteFacts(h.row, { filled: { ...filled, [shard]: last } });
  }
  h.row = await h.exec.noteFacts(h.row, { filled: { ...(h.row.facts.filled as Filled | undefined), [shard]: 'done' } });
}

async function fillBatch(session: ShardSession, sql: string, values: readonly string[]): Promise<number | 'locked'> {
  await session.query(`SET lock_timeout = ${LOCK_TIMEOUT_MS}`);
  try {
    return (await session.query<{ rows: number }>(sql, values))[0]?.rows ?? 0;
  } catch (error) {
    if (errorCode(error) === '55P03' || errorCode(error) === '40P01') return 'locked';
    throw error;
  } finally {
    await session.query('SET lock_timeout = 0').catch(() => undefined); // the first error says more
  }
}

/** verifying → done: both halves are the same on every shard, and then one transaction of the catalog says so. */
export async function finishHalve(h: Halving): Promise<void> {
  if (!h.exec.dry)
    for (const [shard, session] of h.sites) {
      const found = await differingHalves(h, splitOf(h.spec), shard, session);
      if (found.length > 0)
        throw new MigrationFailure(
          `"${tableId(h.spec.hot)}" differs from "${tableId(h.spec.table)}" on shard "${shard}": ${found.join('; ')}`,
          'Somebody writes past the triggers (session_replication_role, or the hot table itself): find out who, and begin again.',
        );
    }
  for (const shard of h.sites.keys()) await h.exec.perform(filledAction(shard, h.spec.table, splitOf(h.spec)));
  h.exec.at('before:commit-halves');
  const { findings } = await preflightHalves(h, await h.exec.openCleanup());
  if (!h.exec.dry && findings.some((f) => f.severity === 'blocker')) throw new PreflightRefusal(findings);
  const missing = sitesOf(h.topology, h.spec, { ...h.row, facts: {} }).filter((shard) => !h.sites.has(shard));
  if (missing.length > 0)
    throw new MigrationFailure(
      `rows of the table have come to shard "${missing.join('", "')}" meanwhile`,
      'Begin again.',
    );
  const epoch = (h.topology.epoch + 1n).toString();
  h.row = await h.exec.commit(h.row, [raiseEpochStatement(h.topology.epoch), ...halveStatements(h)], 'done', {
    facts: { epoch },
    detail: { epoch },
  });
  h.exec.at('after:halve');
}

function halveStatements({ row, spec }: Halving): CatalogStatement[] {
  const { keyspace, table, hot, columns, primaryKey, as } = spec;
  return [
    ...splitStatements(spec, primaryKey),
    {
      text: 'proxies look at the schema again',
      sql: 'UPDATE foreshard.meta SET schema_generation = schema_generation + 1',
      values: [],
      elseConflict: null,
    },
    {
      text: 'what was made is there to stay',
      sql: 'UPDATE foreshard.migration_cleanup SET done_at = clock_timestamp() WHERE migration_id = $1',
      values: [row.id.toString()],
      elseConflict: null,
    },
    {
      text: 'audit',
      sql: `INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ('migrator', 'migration.halve', $1, $2)`,
      values: [
        `migration ${row.id}`,
        JSON.stringify({ keyspace, table: tableId(table), columns, hot: tableId(hot), as }),
      ],
      elseConflict: null,
    },
  ];
}

/** aborting → aborted: what was made on each shard goes, the last first. */
export async function abortHalve(h: Halving): Promise<void> {
  for (;;) {
    const record = (await h.exec.openCleanup()).at(-1);
    if (record === undefined) break;
    await h.exec.progress({ note: `undoing: ${record.kind} on ${record.shard}` });
    await h.exec.perform(removalAction(record.shard, h.spec.table, h.spec.hot));
    await h.exec.markCleanupDone(record);
  }
  h.row = await h.exec.transition(h.row, 'aborted');
}
