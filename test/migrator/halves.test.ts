import { expect, test } from 'vitest';
import { dryRun } from '../../migrator/dry-run.js';
import { createMigration, requestAbort, requestEnd, setPaused } from '../../migrator/migration-requests.js';
import { DROP_SHARD_SCHEMA } from '../../migrator/replication.js';
import { HALVES_LOG, outboxTakeSql, sayHalvesSql } from '../../topology/halves-sql.js';
import type { HalveSpec, MoveSpec, UniteSpec } from '../../topology/migration.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import {
  addNotes,
  approveMove,
  approveReplica,
  keyspaceOf,
  leftovers,
  moveSpec,
  NOTES,
  pauseOnEntering,
} from './setting.js';

const HOT = { schema: 'public', table: 'notes_hot' };
const COLUMNS = ['views', 'seen', 'extra'];
const HALVE: HalveSpec = {
  kind: 'halve',
  keyspace: 'tenant' as KeyspaceName,
  table: NOTES,
  columns: COLUMNS,
  primaryKey: ['tenant_id', 'id'],
  hot: HOT,
  as: 'views' as KeyspaceName,
};
const UNITE: UniteSpec = { kind: 'unite', keyspace: 'views' as KeyspaceName, table: NOTES };

const moves = shopMoves(4, 2, { settings: { max_prepared_transactions: '5' } });
const { s } = moves;
const pool = () => s.catalog.pool;
const onOne = (sql: string) => withClient(s.urlOne, async (c) => (await c.query(sql)).rows);
const onTwo = (sql: string) => withClient(s.urlTwo, async (c) => (await c.query(sql)).rows);

async function addHotNotes(): Promise<void> {
  await addNotes(s);
  await onOne(`ALTER TABLE notes ADD views int NOT NULL DEFAULT 0 CHECK (views >= 0), ADD seen timestamptz, ADD extra json;
    INSERT INTO notes SELECT 21 + i % 9, i, 'more', i, now(), '{"i": 1}' FROM generate_series(1, 1500) i`);
}

const approve = async (spec: HalveSpec | UniteSpec | MoveSpec) =>
  createMigration(pool(), await keyspaceOf(s), spec, { actor: 'test' });

const DIFFERING = `SELECT * FROM notes n FULL JOIN notes_hot h USING (tenant_id, id)
  WHERE n.body IS NULL OR h.views IS NULL OR record_image_ne(ROW(n.views, n.seen, n.extra), ROW(h.views, h.seen, h.extra))`;

/** Rows whose halves are not the same on the first shard. */
const differing = () => onOne(DIFFERING);

/** Somebody inserts, updates, deletes and renumbers rows, in both isolation levels, until told to stop. @returns the errors */
function startWriter(): () => Promise<{ errors: string[]; writes: number }> {
  let going = true;
  let writes = 0;
  const errors: string[] = [];
  const running = withClient(s.urlOne, async (c) => {
    for (let i = 1; going; i++) {
      const tenant = 1 + (i % 25);
      const isolation = i % 3 === 0 ? 'REPEATABLE READ' : 'READ COMMITTED';
      try {
        await c.query(`BEGIN ISOLATION LEVEL ${isolation};
          INSERT INTO notes VALUES (${tenant}, ${10_000 + i}, 'new', ${i});
          UPDATE notes SET views = views + 1, extra = '{"n": ${i}}' WHERE tenant_id = ${tenant} AND id % 7 = ${i % 7};
          UPDATE notes SET body = 'changed' WHERE tenant_id = ${tenant};
          DELETE FROM notes WHERE (tenant_id, id) = (SELECT tenant_id, id FROM notes WHERE tenant_id = ${tenant} ORDER BY id LIMIT 1);
          UPDATE notes SET id = -${i} WHERE (tenant_id, id) = (SELECT tenant_id, id FROM notes WHERE tenant_id = ${tenant} ORDER BY id DESC LIMIT 1); COMMIT`);
        writes++;
      } catch (error) {
        await c.query('ROLLBACK');
        // Of those that do not see what has been filled in since they began.
        if ((error as { code?: string }).code !== '40001') errors.push((error as Error).message);
      }
    }
  });
  const stop = async () => {
    going = false;
    await running;
    return { errors, writes };
  };
  moves.atStop(async () => void (await stop()));
  return stop;
}

test('columns are split under writes, their table moves and comes back, and they are united', async () => {
  await addHotNotes();
  const stopWriter = startWriter();
  moves.startMigrator({ wayBackMs: 3_600_000 });
  const halved = await approve(HALVE);
  expect([await moves.atRest(halved), (await moves.load(halved)).error]).toEqual(['done', null]);
  const { errors, writes } = await stopWriter();
  expect(errors).toEqual([]);
  expect(writes).toBeGreaterThan(10);
  expect(await differing()).toEqual([]);
  const topology = await s.catalog.loadTopology();
  expect(topology.shardedTables.get('public.notes')?.split).toEqual({
    hot: HOT,
    columns: COLUMNS,
    primaryKey: ['tenant_id', 'id'],
  });

  // The table does not follow while its other half is where it is or goes.
  const blocked = await approveMove(s, null, null);
  expect(await moves.atRest(blocked)).toBe('failed');
  expect((await moves.load(blocked)).error).toMatch(/columns of table "public.notes" are in keyspace "views"/);
  const replica = await approveReplica(s, null, null);
  expect(await moves.atRest(replica)).toBe('failed');
  expect((await moves.load(replica)).error).toMatch(/replicas of such a table/);

  const there: MoveSpec = { ...moveSpec(null, null), keyspace: 'views' as KeyspaceName };
  // Nobody has done to the other what was done to one of them since.
  for (const [ddl, undo, finding] of SINCE) {
    await onOne(ddl);
    expect((await dryRun(s.catalog, there)).findings.map((f) => f.text).join('\n')).toMatch(finding);
    await onOne(undo);
  }
  await onTwo('CREATE TABLE notes (tenant_id int, id int, body text, views oid, PRIMARY KEY (tenant_id, id))');
  expect((await dryRun(s.catalog, there)).findings.map((f) => f.text).join('\n')).toMatch(
    /on shard "two", table "public.notes" has column "views" of type oid/,
  );
  await onTwo('DROP TABLE notes');
  const moved = await approve(there);
  await moves.inState(moved, 'reversing');
  // Whoever has slept through the flip.
  await expect(onOne(`UPDATE notes SET views = 5 WHERE tenant_id = 21`)).rejects.toMatchObject({ code: 'SH001' });
  const reading = `UPDATE notes SET body = body || views WHERE tenant_id = 21`;
  await expect(onOne(reading)).rejects.toMatchObject({
    code: 'SH001',
    message: expect.stringMatching(/in this interval/),
  });
  // Whoever knows of it.
  await onOne(`BEGIN; ${sayHalvesSql(HALVES_LOG)}; UPDATE notes SET body = 'known' WHERE tenant_id = 21; ROLLBACK`);
  await onTwo(`UPDATE notes_hot SET views = views + 1000, extra = '[]' WHERE tenant_id = 22`);

  // A row whose other half is committed there first, and changed since: what is replicated waits for it.
  const split = { hot: HOT, columns: COLUMNS, primaryKey: ['tenant_id', 'id'] };
  await withClient(s.urlOne, async (c) => {
    await c.query(`BEGIN; ${sayHalvesSql(HALVES_LOG)}; INSERT INTO notes VALUES (22, 77777, 'slow', 1)`);
    expect((await c.query(outboxTakeSql(NOTES, split, split.columns))).rows).toMatchObject([
      { op: 'I', new_2: '77777', hot_1: '1' },
    ]);
    await c.query(`PREPARE TRANSACTION 'slow'`);
    await onTwo(`INSERT INTO notes_hot VALUES (22, 77777, 1); UPDATE notes_hot SET views = 42 WHERE id = 77777`);
    await waitFor(
      async () =>
        (
          await onOne(
            `SELECT FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%' AND wait_event = 'transactionid'`,
          )
        ).length === 1,
      { what: 'what is replicated to wait for the prepared transaction' },
    );
    await c.query(`COMMIT PREPARED 'slow'`);
  });

  await requestEnd(pool(), moved, 'rollback', 'test');
  expect([await moves.atRest(moved), (await moves.load(moved)).error]).toEqual(['rolled_back', null]);
  // At once.
  expect(await differing()).toEqual([]);
  expect(await onOne('SELECT views FROM notes WHERE id = 77777')).toEqual([{ views: 42 }]);
  expect(
    await onOne(
      `SELECT min(views) >= 1000 AS raised, count(*) > 50 AS many FROM notes WHERE tenant_id = 22 AND id <> 77777`,
    ),
  ).toEqual([{ raised: true, many: true }]);
  await onOne(`UPDATE notes SET views = 7 WHERE tenant_id = 21; ${reading}`);
  expect(await differing()).toEqual([]);

  const united = await approve(UNITE);
  expect([await moves.atRest(united), (await moves.load(united)).error]).toEqual(['done', null]);
  expect([...(await s.catalog.loadTopology()).keyspaces.keys()]).toEqual(['tenant']);
  expect(await leftovers(s)).toEqual([]);
  expect(await onOne(`SELECT to_regclass('notes_hot') AS hot`)).toEqual([{ hot: null }]);
  await onOne(`UPDATE notes SET views = 8 WHERE tenant_id = 21`);
});

test('the table follows to a third shard, where its other half comes after it', async () => {
  await addHotNotes();
  const third = await startTestCluster();
  await withClient(third.url('postgres'), (c) => c.query('CREATE ROLE shop_owner'));
  await withClient(third.url('postgres'), (c) => c.query('CREATE DATABASE app'));
  await pool().query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('three', $1, false)`, [third.url('app')]);
  const onThree = (sql: string) => withClient(third.url('app'), async (c) => (await c.query(sql)).rows);
  moves.startMigrator({ wayBackMs: 0 });
  const ends = async (spec: HalveSpec | UniteSpec | MoveSpec) => {
    const id = await approve(spec);
    expect([await moves.atRest(id), (await moves.load(id)).error]).toEqual(['done', null]);
  };
  const views = { keyspace: 'views' as KeyspaceName };
  await ends(HALVE);
  await ends({ ...moveSpec(null, null), ...views });
  await onTwo(`UPDATE notes_hot SET views = views + 1000 WHERE tenant_id = 22`);
  // Alone, as nothing of its other half is at either end.
  await ends(moveSpec(null, null, 'one', 'three'));
  const raised = `SELECT min(views) >= 1000 AS raised FROM notes WHERE tenant_id = 22`;
  expect(await onThree(raised)).toEqual([{ raised: false }]); // nobody's to read there
  await withClient(third.url('app'), async (c) => {
    await c.query(`BEGIN; ${sayHalvesSql(HALVES_LOG)}; DELETE FROM notes WHERE (tenant_id, id) = (21, 9)`);
    const split = { hot: HOT, columns: COLUMNS, primaryKey: ['tenant_id', 'id'] };
    expect((await c.query(outboxTakeSql(NOTES, split, split.columns))).rows).toMatchObject([
      { op: 'D', old_1: '21', old_2: '9' },
    ]);
    await c.query('ROLLBACK');
  });
  await onThree('CREATE POLICY p ON notes USING (true)');
  const elsewhere = await dryRun(s.catalog, { ...moveSpec(null, null, 'two', 'one'), ...views });
  expect(elsewhere.findings.map((f) => f.text).join('\n')).toMatch(
    /on shard "three", table "public.notes" has row-level security/,
  );
  await onThree('DROP POLICY p ON notes');

  // What the table itself has is what counts behind the flip.
  await pauseOnEntering(s, 'verifying');
  const together = { ...moveSpec(null, null, 'two', 'three'), ...views };
  const wrong = await approve(together);
  await moves.inState(wrong, 'verifying');
  await onThree(`SET session_replication_role = replica; UPDATE notes SET views = 77 WHERE (tenant_id, id) = (23, 2)`);
  await expect(onThree(`UPDATE notes SET body = body || views WHERE tenant_id = 22`)).rejects.toMatchObject({
    code: 'SH001',
    message: expect.stringMatching(/in this interval/),
  });
  await pauseOnEntering(s, null);
  await setPaused(pool(), wrong, false, 'test');
  expect(await moves.atRest(wrong)).toBe('aborted');
  expect((await moves.load(wrong)).error).toMatch(
    /hot columns of 1 rows of "public.notes" on shard "three" differ .*\["2", "23"\]/,
  );
  await ends(together);
  expect(await onThree(DIFFERING)).toEqual([]);
  expect(await onThree(raised)).toEqual([{ raised: true }]);
  await onThree(`UPDATE notes SET views = 3 WHERE tenant_id = 22; INSERT INTO notes VALUES (22, 88888, 'new', 4)`);
  expect(await onThree(DIFFERING)).toEqual([]);
  await ends(UNITE);
  await onThree(`UPDATE notes SET views = 5 WHERE tenant_id = 22`);
  expect(await leftovers(s)).toEqual([]);
  expect(await onThree(`SELECT tgname FROM pg_trigger WHERE tgname LIKE '%foreshard%'`)).toEqual([]);
});

test('a row whose key changes while the filling waits for it takes no other along', async () => {
  await addHotNotes();
  await pauseOnEntering(s, 'copying');
  moves.startMigrator();
  const id = await approve(HALVE);
  await moves.inState(id, 'copying');
  await withClient(s.urlOne, async (c) => {
    await c.query(`BEGIN; UPDATE notes SET id = 99999999
      WHERE (tenant_id, id) = (SELECT tenant_id, id FROM notes WHERE tenant_id = 21 ORDER BY id LIMIT 1)`);
    await pauseOnEntering(s, null);
    await setPaused(pool(), id, false, 'test');
    await waitFor(
      async () =>
        (await onOne(`SELECT FROM pg_stat_activity WHERE query LIKE '%FOR SHARE%' AND wait_event = 'transactionid'`))
          .length === 1,
      { what: 'the filling to wait for the row' },
    );
    await c.query('COMMIT');
  });
  expect([await moves.atRest(id), (await moves.load(id)).error]).toEqual(['done', null]);
  expect(await differing()).toEqual([]);
  // Whatever is not there is on another shard.
  await onOne(`DELETE FROM notes_hot WHERE id = 99999999`);
  await expect(onOne(`UPDATE notes SET views = 5 WHERE id = 99999999`)).rejects.toMatchObject({ code: 'SH001' });
});

test('an abort takes everything away again', async () => {
  await addHotNotes();
  await pauseOnEntering(s, 'verifying');
  moves.startMigrator();
  const id = await approve(HALVE);
  await moves.inState(id, 'verifying');
  await pauseOnEntering(s, null);
  expect(await differing()).toEqual([]);
  await requestAbort(pool(), id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
  expect(await leftovers(s)).toEqual([]);
  expect(await onOne(`SELECT to_regclass('notes_hot') AS hot`)).toEqual([{ hot: null }]);
  // And nothing is in the way of the next.
  expect(await moves.atRest(await approve(HALVE))).toBe('done');
});

/** What is done to a table whose columns are split, or to the other, without a proxy. */
const SINCE: readonly (readonly [ddl: string, undo: string, finding: RegExp])[] = [
  ['CREATE POLICY p ON notes USING (true)', 'DROP POLICY p ON notes', /row-level security/],
  ['CREATE RULE r AS ON DELETE TO notes DO INSTEAD NOTHING', 'DROP RULE r ON notes', /has rules \(r\)/],
  ['CREATE UNIQUE INDEX u ON notes (tenant_id, id, views)', 'DROP INDEX u', /index public.u needs the columns/],
  [
    'ALTER TABLE notes ADD CONSTRAINT small CHECK (views < 1000000000)',
    'ALTER TABLE notes DROP CONSTRAINT small',
    /not alike: only as the first is: constraint small/,
  ],
  [
    'ALTER TABLE notes_hot ALTER views DROP NOT NULL',
    'ALTER TABLE notes_hot ALTER views SET NOT NULL',
    /not alike: only as the first is: column views/,
  ],
  [
    'GRANT SELECT ON notes TO PUBLIC',
    'REVOKE SELECT ON notes FROM PUBLIC',
    /not alike: SELECT of "PUBLIC" on one of them only/,
  ],
];

/** What keeps a table together. */
const BLOCKERS: readonly (readonly [ddl: string, finding: RegExp, change?: Partial<HalveSpec>])[] = [
  [
    `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER t BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION f()`,
    /has trigger "t"/,
  ],
  ['ALTER TABLE notes ENABLE ROW LEVEL SECURITY', /row-level security/],
  ['CREATE RULE r AS ON DELETE TO notes DO INSTEAD NOTHING', /has rules \(r\)/],
  ['GRANT SELECT (views) ON notes TO shop_owner', /privileges on single columns/],
  ['ALTER TABLE notes ADD CONSTRAINT k CHECK (views > 0 OR body IS NOT NULL)', /check "k" over columns of both halves/],
  ['CREATE UNIQUE INDEX u ON notes (tenant_id, id, (views + 1))', /index public.u needs the columns/],
  ['ALTER TABLE notes ADD twice int GENERATED ALWAYS AS (views * 2) STORED', /needs the columns/],
  [
    'ALTER TABLE notes ADD CONSTRAINT fk FOREIGN KEY (tenant_id) REFERENCES tenants ON DELETE CASCADE NOT VALID',
    /foreign key "fk", which changes rows/,
  ],
  ['ALTER TABLE notes DROP CONSTRAINT notes_pkey', /has no primary key/],
  [`CREATE SEQUENCE q; ALTER TABLE notes ALTER views SET DEFAULT nextval('q')`, /takes numbers from a sequence/],
  ['CREATE TABLE notes_hot ()', /there is a table "public.notes_hot" on shard "one"/],
  [
    `CREATE TYPE feeling AS ENUM ('a'); ALTER TABLE notes ALTER extra TYPE feeling[] USING NULL`,
    /column "extra" of type (public\.)?feeling\[\]/,
  ],
  [
    `CREATE DOMAIN classes AS regclass[]; ALTER TABLE notes ALTER extra TYPE classes USING NULL`,
    /column "extra" of type (public\.)?classes/,
  ],
  [
    `CREATE TYPE pair AS (a int, b int); ALTER TABLE notes ALTER extra TYPE pair USING NULL`,
    /column "extra" of type (public\.)?pair/,
  ],
  ['', /is of the key/, { columns: ['tenant_id'] }],
  ['', /has no column "other"/, { columns: ['other'] }],
];

test('what stands in the way is said before anything is touched', async () => {
  await addHotNotes();
  const good = await dryRun(s.catalog, HALVE);
  expect(good.findings).toEqual([]);
  expect(good.steps.map((step) => step.text)).toEqual(
    expect.arrayContaining(['keep public.notes_hot like public.notes', 'a keyspace "views" with the key of "tenant"']),
  );
  expect(await leftovers(s)).toEqual([]);
  for (const [ddl, finding, change = {}] of BLOCKERS) {
    await onOne(`DROP TABLE IF EXISTS notes, notes_hot CASCADE; DROP SEQUENCE IF EXISTS q; CREATE TABLE notes (tenant_id int, id int, body text,
      views int NOT NULL DEFAULT 0 CHECK (views >= 0), seen timestamptz, extra json, PRIMARY KEY (tenant_id, id)); ${ddl}`);
    const { findings, steps } = await dryRun(s.catalog, { ...HALVE, ...change });
    expect(steps).toEqual([]);
    expect(findings.map((f) => f.text).join('\n')).toMatch(finding);
  }
});

test('a schema that something is left in stays, and nobody who uses it is waited for', async () => {
  const schema = "SELECT to_regnamespace('foreshard_shard') IS NOT NULL AS there";
  await onOne('CREATE SCHEMA foreshard_shard; CREATE TABLE foreshard_shard.used (n int)');
  await withClient(s.urlOne, async (writer) => {
    await writer.query('BEGIN; INSERT INTO foreshard_shard.used VALUES (1)');
    await onOne(`SET lock_timeout = '5s'; ${DROP_SHARD_SCHEMA}`);
    await writer.query('COMMIT');
  });
  expect(await onOne(schema)).toEqual([{ there: true }]);
  await onOne(`DROP TABLE foreshard_shard.used; ${DROP_SHARD_SCHEMA}`);
  expect(await onOne(schema)).toEqual([{ there: false }]);
});
