import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import pg from 'pg';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createMigration, requestFlip, setPaused } from '../../migrator/migration-requests.js';
import { loadMigration } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import { Registry } from '../../topology/catalog/registry.js';
import type { MoveSpec } from '../../topology/migration.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { built } from '../chaos/built.js';
import { pauseOnEntering } from '../migrator/setting.js';
import { splitColumns } from '../support/halves.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// The hot columns of a table leave for another shard; the table stays, and what it says of them is of the past from then on.

const DOCUMENTS = { schema: 'public', table: 'documents' };
const TABLE = `CREATE TABLE documents (tenant_id bigint, id bigint, title text NOT NULL, views bigint NOT NULL DEFAULT 0, PRIMARY KEY (tenant_id, id));
  GRANT ALL ON documents TO app`;

let s: Sharded;
let program = '';
let asleep: ChildProcess | undefined;
const migrators = new AbortController();
let migrator: Promise<void> | undefined;

beforeAll(async () => {
  [program, s] = await Promise.all([built('proxy-child'), Sharded.start({ splitAt: null })]);
  for (const shard of [0, 1] as const) await s.onShard(shard, TABLE);
  await s.onShard(0, `INSERT INTO documents SELECT 1, i, 'title', 10 FROM generate_series(1, 9) i`);
  await new Registry(s.catalog, 'test').addTable({ table: DOCUMENTS, keyspace: 'main', keyColumns: ['tenant_id'] });
  await splitColumns(s.catalog, {
    table: DOCUMENTS,
    columns: ['views'],
    hot: { schema: 'public', table: 'documents_hot' },
    as: 'hot',
  });
  await s.reloaded();
  const logger = pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2));
  migrator = new Migrator({ catalog: s.catalog, logger, pollMs: 50, ackMs: 20_000, wayBackMs: 0 }).run(
    migrators.signal,
  );
}, 120_000);
afterAll(async () => {
  asleep?.kill('SIGKILL');
  migrators.abort();
  await migrator;
  await s?.stop();
});

/** A proxy in a process of its own. @returns its port */
async function startProxy(): Promise<number> {
  asleep = spawn(process.execPath, [program, s.clusters[0].url('foreshard')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [port] = await once(asleep.stdout as NodeJS.ReadableStream, 'data');
  return Number(port);
}

const documents = async () =>
  (await s.onShard<{ id: string; title: string }>(0, 'SELECT id, title FROM documents ORDER BY id')).map(
    ({ id, title }) => `${id} ${title}`,
  );
const TITLES = Array.from({ length: 9 }, (_, i) => `${i + 1} title`);

/** What the proxy that falls asleep has been asked by its clients, one each. */
const ASKED = [
  `UPDATE documents SET title = title || views WHERE tenant_id = 1 AND id = 1`,
  `INSERT INTO documents VALUES (1, 10, 'new', 10)`,
  `DELETE FROM documents WHERE tenant_id = 1 AND id = 3 AND views <= 10`,
  `SELECT title, views FROM documents WHERE tenant_id = 1 AND id = 4`,
] as const;

it('nothing is made of hot columns of the past by a proxy that slept through the flip', async () => {
  const { pool } = s.catalog;
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get('hot' as KeyspaceName) as Keyspace;
  const [from, to] = ['s1', 's2'] as [ShardName, ShardName];
  const move: MoveSpec = { kind: 'move', keyspace: keyspace.name, lo: null, hi: null, from, to };
  const id = await createMigration(pool, keyspace, move, { actor: 'test', controls: { auto: false } });
  const inState = (state: string) =>
    waitFor(async () => (await loadMigration(pool, id)).state === state, { what: `the migration to be ${state}` });
  await waitFor(async () => /^ready to flip/.test((await loadMigration(pool, id)).progress.note ?? ''), {
    what: 'the migration to be ready',
  });
  await pauseOnEntering(s, 'cleaning');

  const url = new URL(s.url);
  url.port = String(await startProxy());
  const clients = ASKED.map(() => new pg.Client({ connectionString: url.href, application_name: 'asleep' }));
  const direct = new pg.Client(s.clusters[0].url('shop'));
  await Promise.all([direct, ...clients].map((client) => client.connect()));
  for (const client of clients) client.on('error', () => undefined);
  const waiting = async () =>
    (await direct.query(`SELECT FROM pg_locks WHERE NOT granted AND relation = 'documents'::regclass`)).rowCount;
  const running = async () =>
    (await direct.query(`SELECT FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'`)).rowCount;
  try {
    // They are at the server before it sleeps, and are carried out when others have gone on.
    await direct.query('BEGIN; LOCK TABLE documents IN ACCESS EXCLUSIVE MODE');
    const answers = Promise.allSettled(clients.map((client, i) => client.query(ASKED[i] as string)));
    await waitFor(async () => (await waiting()) === ASKED.length, { what: 'them to wait' });
    asleep?.kill('SIGSTOP');
    await requestFlip(pool, id, 'test');
    await inState('cleaning');
    await s.onShard(1, 'UPDATE documents_hot SET views = views + 5');
    await direct.query('ROLLBACK');
    await waitFor(async () => (await running()) === 0, { what: 'them to be carried out, or refused' });
    expect(await documents()).toEqual(TITLES);
    asleep?.kill('SIGCONT');
    const outcomes = await answers;
    // Nobody is told of what was: it fails, or is done anew by what there is.
    expect(outcomes[3]).toMatchObject({ status: 'rejected', reason: { code: '40001' } });
    const is = outcomes.map(({ status }) => status === 'fulfilled');
    expect(await documents()).toEqual([
      is[0] ? '1 title15' : '1 title',
      ...TITLES.slice(1),
      ...(is[1] ? ['10 new'] : []),
    ]);
  } finally {
    asleep?.kill('SIGCONT');
    await Promise.all([direct, ...clients].map((client) => client.end()));
  }

  // Who goes past the proxies fares the same, and who knows does not.
  const past = () => s.onShard(0, 'UPDATE documents SET title = title || views WHERE id = 4');
  await expect(past()).rejects.toMatchObject({ code: 'SH001' });
  const client = await s.connect();
  await client.query(`UPDATE documents SET title = 'known' WHERE tenant_id = 1 AND id = 5`);
  await client.query(`UPDATE documents SET title = title || views WHERE tenant_id = 1 AND id = 6`);
  await client.query(`INSERT INTO documents VALUES (1, 20, 'known', 1)`);
  await client.query(`DELETE FROM documents WHERE tenant_id = 1 AND id = 7`);
  expect((await documents()).slice(3, 7)).toEqual(['4 title', '5 known', '6 title15', '8 title']);
  await pauseOnEntering(s, null);
  await setPaused(pool, id, false, 'test');
  await inState('done');
  // Also when the guards are gone.
  await expect(past()).rejects.toMatchObject({ code: 'SH001' });
  await client.query(`UPDATE documents SET title = 'known' WHERE tenant_id = 1 AND id = 8`);
});
