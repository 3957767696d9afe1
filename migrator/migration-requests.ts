import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { ForeshardError } from '../topology/errors.js';
import type { MigrationSpec, MigrationState, ReplicaTerms } from '../topology/migration.js';
import type { MigrationControls, ThrottleLimits } from '../topology/migration-controls.js';
import type { Keyspace } from '../topology/topology.js';
import { areAllNamed, differingTables, IS_DIFFERENT } from './comparison.js';
import { differedAsOfFlip, remedyOf } from './differed.js';
import {
  BESIDE,
  type Db,
  encodeSpec,
  loadMigration,
  type MigrationRow,
  PAST_FLIP,
  RESTING_STATES,
} from './migration-row.js';
import { doubtedTables, doubtText, IS_DOUBTED } from './sampled.js';
import { shardsSql } from './turn.js';

/**
 * Enters an approved migration; the migrator picks it up by itself.
 * @returns its id
 */
export async function createMigration(
  db: Db,
  keyspace: Pick<Keyspace, 'method' | 'keyTypes'>,
  spec: MigrationSpec,
  options: { planId?: bigint; actor: string; controls?: Partial<MigrationControls>; replica?: ReplicaTerms },
): Promise<bigint> {
  const result = await (db as pg.Pool).query<{ id: string }>(
    `WITH made AS (
       INSERT INTO foreshard.migration (plan_id, kind, spec, state, controls) VALUES ($1, $5, $2, 'approved', $4) RETURNING id
     ), event AS (
       INSERT INTO foreshard.migration_event (migration_id, state, detail)
       SELECT id, 'approved', jsonb_build_object('by', $3::text) FROM made
     ), replica AS (
       INSERT INTO foreshard.range_replica (migration_id, max_staleness_ms, read_percent)
       SELECT id, ($6::jsonb->>'maxStalenessMs')::int, ($6::jsonb->>'readPercent')::int FROM made WHERE $6 IS NOT NULL
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object, detail)
       SELECT $3, 'migration.approve', 'migration ' || id, $2::jsonb FROM made
     ), told AS (
       SELECT pg_notify('foreshard_migration', id::text) FROM made
     )
     SELECT id::text FROM made, told`,
    [
      options.planId?.toString() ?? null,
      JSON.stringify(encodeSpec(keyspace, spec)),
      options.actor,
      JSON.stringify(options.controls ?? {}),
      spec.kind,
      options.replica === undefined ? null : JSON.stringify(options.replica),
    ],
  );
  return BigInt((result.rows[0] as { id: string }).id);
}

/**
 * Asks the migrator to abort; it answers by the state `aborting`. Safe at any moment: whether the flip came first is decided
 * by the catalog.
 * @throws ForeshardError 55000 when the migration is past its flip or at rest
 */
export async function requestAbort(db: Db, id: bigint, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET abort_requested = true, updated_at = clock_timestamp()
        WHERE id = $1 AND state <> ALL ($3::text[]) AND NOT facts ? 'flipEpoch' RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.abort', 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, [...PAST_FLIP, 'aborted']],
  );
  if (updated.rowCount !== 0) return;
  const { state } = await loadMigration(db, id);
  if (state === 'done' || state === 'aborted' || state === 'rolled_back')
    throw new ForeshardError('55000', `migration ${id} is already ${state}`, { hint: 'Nothing is left to abort.' });
  throw new ForeshardError('55000', `migration ${id} has flipped: its rows belong to the destination now`, {
    hint:
      state === 'reversing'
        ? `It can be taken back: "foreshard migrate rollback ${id}".`
        : 'It finishes by itself. To undo it, move the range back with a new migration.',
  });
}

/** From these a migration comes to its flip. */
const BEFORE_FLIP: readonly MigrationState[] = [
  'approved',
  'preparing',
  'copying',
  'catching_up',
  'verifying',
  'ready',
];

/**
 * Asks the migrator to flip as soon as it can: at once, when the migration is ready.
 * @returns the migration as it is now
 * @throws ForeshardError 55000 when it does not wait for that, or cannot flip (any more)
 */
export async function requestFlip(db: Db, id: bigint, actor: string): Promise<MigrationRow> {
  const before = await loadMigration(db, id);
  const [differing] = differingTables(before);
  if ((before.state === 'ready' || before.state === 'verifying') && differing !== undefined)
    throw new ForeshardError(
      '55000',
      `migration ${id} cannot flip: ${differing.differing} rows of "${differing.table}" differ`,
      {
        hint: `Have them repaired: "foreshard migrate verify ${id} --repair"; or undo it: "foreshard migrate abort ${id}".`,
      },
    );
  if (!before.controls.auto || before.controls.flipWindow !== null) {
    const updated = await (db as pg.Pool).query(
      `WITH asked AS (
         UPDATE foreshard.migration SET controls = controls || '{"flipRequested": true}', updated_at = clock_timestamp()
          WHERE id = $1 AND state = ANY ($3) AND NOT paused AND NOT abort_requested
            AND NOT coalesce((controls->>'flipRequested')::boolean, false) RETURNING id
       ), audit AS (
         INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.flip_request', 'migration ' || id FROM asked
       )
       SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
      [id.toString(), actor, [...BEFORE_FLIP]],
    );
    if (updated.rowCount !== 0) return before;
  }
  const { state, paused, abortRequested, controls } = await loadMigration(db, id);
  const refuse = (why: string, hint: string) => new ForeshardError('55000', `migration ${id} ${why}`, { hint });
  const watch = `Follow it with "foreshard migrate watch ${id}".`;
  if (abortRequested || state === 'aborting') throw refuse('is being aborted', 'Start it again when that is done.');
  if (PAST_FLIP.includes(state)) throw refuse(`has flipped: it is ${state.replaceAll('_', ' ')}`, watch);
  if (state === 'fencing') throw refuse('is flipping now', watch);
  if (!BEFORE_FLIP.includes(state)) throw refuse(`is ${state}`, `See "foreshard migrate show ${id}".`);
  if (paused) throw refuse('is paused', `Resume it first: "foreshard migrate resume ${id}".`);
  if (controls.flipRequested) throw refuse('has been asked to flip already', watch);
  throw refuse('flips by itself, as soon as it is ready', watch);
}

/**
 * Limits what a migration does to the servers, at once; what is left out is as the migrator's configuration has it.
 * @throws ForeshardError 55000 when it is at rest
 */
export function setThrottle(db: Db, id: bigint, throttle: Partial<ThrottleLimits>, actor: string): Promise<void> {
  return setControls(db, id, { throttle }, 'throttle', actor);
}

/**
 * Says what becomes of transactions that are open on the interval at the flip, also while it is being tried.
 * @param afterMs they are ended when they have been waited for so long; null: never
 * @throws ForeshardError 55000 when it is at rest
 */
export function setEndTransactions(db: Db, id: bigint, afterMs: number | null, actor: string): Promise<void> {
  return setControls(db, id, { endTransactionsAfterMs: afterMs }, 'end_transactions', actor);
}

async function setControls(
  db: Db,
  id: bigint,
  controls: Partial<MigrationControls>,
  action: string,
  actor: string,
): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET controls = controls || $3::jsonb, updated_at = clock_timestamp()
        WHERE id = $1 AND (state <> ALL ($4) OR state = 'planned') RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object, detail)
       SELECT $2, 'migration.' || $5, 'migration ' || id, $3::jsonb FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, JSON.stringify(controls), [...RESTING_STATES], action],
  );
  if (updated.rowCount !== 0) return;
  const { state } = await loadMigration(db, id);
  throw new ForeshardError('55000', `migration ${id} is ${state}: there is nothing to change`, {
    hint: 'See "foreshard migrate list".',
  });
}

/** As a condition in SQL: both sides follow one another, and nothing else is about to happen. */
const FOLLOWS = `(state IN ('ready', 'reversing') OR (state = 'verifying' AND ${IS_DIFFERENT}))
  AND NOT paused AND requested IS NULL AND NOT facts ? 'wayBackLost'`;

/**
 * Asks the migrator to compare all tables on both sides once more.
 * @returns the request, which the answer in `facts.comparison` repeats
 * @throws ForeshardError 55000 when the migration does not wait in a state in which that can be done
 */
export function requestComparison(db: Db, id: bigint, actor: string): Promise<string> {
  return request(db, id, actor, 'comparison', 'migration.verify');
}

/**
 * Asks the migrator to make the rows that the last comparison has named the same at the side that follows as at the owner, and to compare them again.
 * @returns the request, which the answer in `facts.repair` repeats
 * @throws ForeshardError 55000 when the migration does not wait in a state in which that can be done, or there are none, or too many
 */
export async function requestRepair(db: Db, id: bigint, actor: string): Promise<string> {
  const row = await loadMigration(db, id);
  refuseBehindFlip(row);
  const differing = differingTables(row);
  if (differing.length > 0 && !areAllNamed(differing))
    throw new ForeshardError('55000', `more rows of migration ${id} differ than can be repaired`, {
      hint: `${differing.map((t) => `${t.differing} of "${t.table}"`).join(', ')}: "foreshard migrate abort ${id}", or behind the flip "foreshard migrate finish ${id}", and copy anew.`,
    });
  if (differing.length > 0) return request(db, id, actor, 'repair', 'migration.repair');
  throw new ForeshardError('55000', `no rows of migration ${id} are known to differ`, {
    hint: `Compare both sides first: "foreshard migrate verify ${id}".`,
  });
}

/** @throws ForeshardError 55000 when it stopped because the shards differed as of its flip */
function refuseBehindFlip(row: MigrationRow): void {
  const differed = differedAsOfFlip(row);
  if (row.state !== 'failed' || differed === null) return;
  throw new ForeshardError('55000', `migration ${row.id} found rows that differed as of its flip`, {
    hint: `${remedyOf(differed, row.id)}.`,
  });
}

async function request(
  db: Db,
  id: bigint,
  actor: string,
  control: 'comparison' | 'repair',
  action: string,
): Promise<string> {
  const uuid = randomUUID();
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET controls = controls || jsonb_build_object($4::text, $3::text), updated_at = clock_timestamp()
        WHERE id = $1 AND ${FOLLOWS} RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, $5, 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, uuid, control, action],
  );
  if (updated.rowCount !== 0) return uuid;
  const row = await loadMigration(db, id);
  refuseBehindFlip(row);
  const { state, paused, facts } = row;
  if (paused)
    throw new ForeshardError('55000', `migration ${id} is paused`, {
      hint: `Resume it first: "foreshard migrate resume ${id}".`,
    });
  if (state === 'reversing' && facts.wayBackLost !== undefined)
    throw new ForeshardError('55000', `migration ${id} has no way back any more: the source does not follow`, {
      hint: 'Both sides were compared exactly at the flip.',
    });
  throw new ForeshardError('55000', `migration ${id} is ${state.replaceAll('_', ' ')}: it cannot be compared now`, {
    hint: 'All tables are compared on the way to "ready" and at the flip anyway. On request: while it waits to flip, because rows differ too, and while its way back is open.',
  });
}

/**
 * Lets a migration go on that stopped because the shards differed as of its flip, after a person has looked into it: the rows
 * at the source are removed after all.
 * @throws ForeshardError 55000 when it is not such a one
 */
export async function acceptDifference(db: Db, id: bigint, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH accepted AS (
       UPDATE foreshard.migration
          SET state = CASE WHEN facts ? 'backEpoch' THEN 'flipped_back' ELSE 'cleaning' END,
              generation = generation + 1, error = NULL, updated_at = clock_timestamp(),
              facts = facts || jsonb_build_object(CASE WHEN facts ? 'backEpoch' THEN 'backExact' ELSE 'exact' END,
                                                  'difference accepted by ' || $2::text)
        WHERE id = $1 AND state = 'failed' AND facts ? 'flipEpoch' RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.accept', 'migration ' || id FROM accepted
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM accepted`,
    [id.toString(), actor],
  );
  if (updated.rowCount === 0)
    throw new ForeshardError('55000', `migration ${id} has no difference to accept`, {
      hint: 'See "foreshard migrate show".',
    });
}

/**
 * Has a migration go no further, or go on. A fence that has begun is not paused, but what follows if it misses.
 * @throws ForeshardError 55000 when it is at rest, or is so already
 */
export async function setPaused(db: Db, id: bigint, paused: boolean, actor: string): Promise<void> {
  const action = paused ? 'pause' : 'resume';
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET paused = $3, updated_at = clock_timestamp()
        WHERE id = $1 AND paused <> $3 AND (NOT $3 OR state <> ALL ($4::text[])) RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'migration.' || $5, 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, paused, [...RESTING_STATES], action],
  );
  if (updated.rowCount !== 0) return;
  const { state, paused: already } = await loadMigration(db, id);
  throw new ForeshardError(
    '55000',
    already === paused
      ? `migration ${id} is ${paused ? 'paused already' : 'not paused'}`
      : `migration ${id} is ${state}`,
    { hint: 'See "foreshard migrate show".' },
  );
}

/**
 * Asks the migrator to take a migration back that has flipped (`rollback`), or to give up its way back now (`finish`).
 * @param force also a rollback to rows that are known to differ
 * @throws ForeshardError 55000 when there is no way back (any more), or none that is to be trusted
 */
export async function requestEnd(
  db: Db,
  id: bigint,
  end: 'finish' | 'rollback',
  actor: string,
  { force = false }: { readonly force?: boolean } = {},
): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration SET requested = $3, updated_at = clock_timestamp()
        WHERE id = $1 AND state = 'reversing' AND (requested IS NULL OR (requested = 'rollback' AND facts ? 'wayBackLost'))
          AND ($3 = 'finish' OR (NOT facts ? 'wayBackLost' AND ($4 OR NOT ${IS_DOUBTED}))) RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object, detail)
       SELECT $2, 'migration.' || $3, 'migration ' || id, CASE WHEN $4 THEN '{"force": true}'::jsonb ELSE '{}' END FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor, end, force],
  );
  if (updated.rowCount !== 0) return;
  const row = await loadMigration(db, id);
  const { state, requested, facts } = row;
  const doubted = doubtedTables(row);
  if (state === 'reversing' && requested === null && facts.wayBackLost === undefined && doubted.length > 0)
    throw new ForeshardError(
      '55000',
      `migration ${id} is not taken back: ${doubtText(doubted)} between the new owner and the old one`,
      {
        hint: `Put the rows right ("foreshard migrate show ${id}" has their keys) and compare all again: "foreshard migrate verify ${id}". Or "foreshard migrate finish ${id}"; or take it back to rows that differ, with --force.`,
      },
    );
  // One that was asked for while the way back was lost will not be begun.
  if (requested !== null && !(requested === 'rollback' && facts.wayBackLost !== undefined))
    throw new ForeshardError('55000', `migration ${id} has been asked for "${requested}" already`, {
      hint: `Follow it with "foreshard migrate watch ${id}".`,
    });
  if (state === 'reversing')
    throw new ForeshardError('55000', `migration ${id} cannot be taken back: ${String(facts.wayBackLost)}`, {
      hint: 'Finish it, and move the range back with a new migration.',
    });
  throw new ForeshardError('55000', `migration ${id} has no way back: it is ${state.replaceAll('_', ' ')}`, {
    hint: 'There is one from the flip on, for as long as migrator.wayBackMs says. Before it, "foreshard migrate abort" undoes a migration.',
  });
}

/**
 * Has a replica become the owner of its interval, by the flip that ends every move.
 * @throws ForeshardError 55000 when it is none, or another migration of the keyspace is at work
 */
export async function requestPromotion(db: Db, id: bigint, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH asked AS (
       UPDATE foreshard.migration m SET requested = 'promote', updated_at = clock_timestamp()
        WHERE id = $1 AND state = 'following' AND requested IS NULL AND NOT paused AND NOT abort_requested
          AND NOT EXISTS (SELECT FROM foreshard.migration o WHERE o.id <> m.id AND ${shardsSql('o')} && ${shardsSql('m')}
                            AND o.state NOT IN (${BESIDE})) RETURNING id
     ), audit AS (
       INSERT INTO foreshard.audit (actor, action, object) SELECT $2, 'replica.promote', 'migration ' || id FROM asked
     )
     SELECT pg_notify('foreshard_migration', id::text) FROM asked`,
    [id.toString(), actor],
  );
  if (updated.rowCount !== 0) return;
  const { state, paused, requested, replica } = await loadMigration(db, id);
  const refuse = (why: string, hint: string) => new ForeshardError('55000', why, { hint });
  if (replica === null) throw refuse(`migration ${id} keeps no replica`, 'It goes on to its flip by itself.');
  if (requested === 'promote')
    throw refuse(`migration ${id} is being promoted already`, `Follow it with "foreshard migrate watch ${id}".`);
  if (state !== 'following')
    throw refuse(
      `migration ${id} is ${state.replaceAll('_', ' ')}`,
      'A replica can be promoted while it is following.',
    );
  if (paused) throw refuse(`migration ${id} is paused`, `Resume it first: "foreshard migrate resume ${id}".`);
  throw refuse(
    `another migration is at work on one of the shards of migration ${id}`,
    'Wait until it has ended; see "foreshard migrate list".',
  );
}

/**
 * Changes on what terms a replica is read.
 * @throws ForeshardError 55000 when the migration keeps none
 */
export async function changeReplica(db: Db, id: bigint, terms: Partial<ReplicaTerms>, actor: string): Promise<void> {
  const updated = await (db as pg.Pool).query(
    `WITH changed AS (
       UPDATE foreshard.range_replica r SET max_staleness_ms = coalesce($2, max_staleness_ms), read_percent = coalesce($3, read_percent)
         FROM foreshard.migration m
        WHERE r.migration_id = $1 AND m.id = $1 AND m.state NOT IN ('done', 'aborted', 'rolled_back', 'failed') RETURNING m.id
     )
     INSERT INTO foreshard.audit (actor, action, object, detail) SELECT $4, 'replica.change', 'migration ' || id, $5 FROM changed`,
    [id.toString(), terms.maxStalenessMs ?? null, terms.readPercent ?? null, actor, JSON.stringify(terms)],
  );
  if (updated.rowCount !== 0) return;
  const { state, replica } = await loadMigration(db, id);
  throw new ForeshardError('55000', `migration ${id} ${replica === null ? 'keeps no replica' : `is ${state}`}`, {
    hint: 'See "foreshard migrate list".',
  });
}
