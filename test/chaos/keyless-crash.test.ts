import { setTimeout as delay } from 'node:timers/promises';
import { beforeEach, expect, test } from 'vitest';
import { approveChange, createChange } from '../../migrator/changes/change-requests.js';
import { verticalMembers } from '../../migrator/changes/members.js';
import type { CrashPoint } from '../../migrator/crash-points.js';
import { createMigration } from '../../migrator/migration-requests.js';
import { separateTables } from '../../topology/catalog/separate.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { MiniProxy } from '../migrator/mini-proxy.js';
import { shopMoves } from '../migrator/moves.js';
import { leftovers, rollBackOnReversing } from '../migrator/setting.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { startLives } from './lives.js';

// What a move of tables of no keyspace does in another way than one of a range: no filter, no condition of a guard, and all rows go.

const TABLES = [{ schema: 'public', table: 'settings' }] as const;
const OWN = 'own' as KeyspaceName;
const NAMES = 40;

const moves = shopMoves(1, 1);
const { s } = moves;
const lives = startLives(moves);

beforeEach(async () => {
  await withClient(s.urlOne, async (c) => {
    await c.query('CREATE TABLE settings (name text PRIMARY KEY, version int NOT NULL DEFAULT 0, no bigserial)');
    await c.query(`INSERT INTO settings SELECT 'setting ' || i FROM generate_series(1, ${NAMES}) i`);
  });
});

/** Versions of all settings on a shard; null: there is no such table. */
function versions(url: string): Promise<number[] | null> {
  return withClient(url, async (c) => {
    if ((await c.query("SELECT WHERE to_regclass('settings') IS NULL")).rowCount === 1) return null;
    const { rows } = await c.query<{ version: number }>('SELECT version FROM settings ORDER BY substr(name, 9)::int');
    return rows.map(({ version }) => version);
  });
}

/** A move while settings are changed; its migrators die at each of the points. @returns its end, and how often each setting was changed */
async function moveUnderLoad(
  points: readonly CrashPoint[],
  wayBack: boolean,
): Promise<{ readonly end: string; readonly changes: number[] }> {
  await separateTables(s.catalog, 'test', { keyspace: null, tables: TABLES, as: OWN });
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get(OWN) as Keyspace;
  const proxy = await MiniProxy.start(s.catalogUrl, OWN);
  const changes = Array.from({ length: NAMES }, () => 0);
  let stopped = false;
  const writing = (async () => {
    for (let n = 0; !stopped; n = (n + 1) % NAMES) {
      const sql = 'UPDATE settings SET version = version + 1 WHERE name = $1';
      await proxy.run([], [{ sql, values: [`setting ${n + 1}`] }]);
      changes[n] = (changes[n] ?? 0) + 1;
      await delay(5);
    }
  })();
  try {
    const spec = { kind: 'move', keyspace: OWN, lo: null, hi: null } as const;
    const ends = { from: 'one' as ShardName, to: 'two' as ShardName };
    const id = await createMigration(s.catalog.pool, keyspace, { ...spec, ...ends }, { actor: 'test' });
    for (const point of points) expect([point, await lives.untilCrash(point, wayBack)]).toEqual([point, 'SIGKILL']);
    const end = await lives.toTheEnd(id);
    const before = changes[0] as number;
    await waitFor(() => (changes[0] as number) > before + 1, { what: 'writes after the migration' });
    return { end, changes };
  } finally {
    stopped = true;
    await writing;
    await proxy.close();
  }
}

test('a migrator that dies again and again as it moves tables without a key', async () => {
  const points: readonly CrashPoint[] = [
    'recorded:create-tables',
    'after:create-tables',
    'after:guards-destination',
    'after:create-publication',
    'after:create-subscription',
    'after:copy-wait',
    'after:fence',
    'after:carry-sequences',
    'after:flip',
    'before:remove-rows',
    'after:remove-rows',
    'after:drop-guards',
  ];
  const { end, changes } = await moveUnderLoad(points, false);
  expect(end).toBe('done');
  expect([await versions(s.urlOne), await versions(s.urlTwo)]).toEqual([[], changes]);
  expect(await leftovers(s)).toEqual([]);
});

test('and as it takes that back', async () => {
  await rollBackOnReversing(s, true);
  const points: readonly CrashPoint[] = ['back-after:fence', 'back-after:flip', 'back-after:undo'];
  const { end, changes } = await moveUnderLoad(points, true);
  await rollBackOnReversing(s, false);
  expect(end).toBe('rolled_back');
  expect([await versions(s.urlOne), await versions(s.urlTwo)]).toEqual([changes, null]);
  expect(await leftovers(s)).toEqual([]);
});

test.each(['before:separate', 'after:separate'] as const)(
  'a migrator that dies %s gives tables of no keyspace one, once',
  async (point) => {
    const topology = await s.catalog.loadTopology();
    const members = verticalMembers(topology, null, TABLES, OWN, 'two' as ShardName);
    const change = { kind: 'vertical', request: {}, members, concurrency: 1 } as const;
    const id = await createChange(s.catalog.pool, topology, change, 'test');
    const approved = await approveChange(s.catalog.pool, id, { actor: 'test' });
    expect(await lives.untilCrash(point)).toBe('SIGKILL');
    expect(await lives.toTheEnd(approved.members[1]?.id as bigint)).toBe('done');
    const { keyspaces, epoch } = await s.catalog.loadTopology();
    expect(keyspaces.get(OWN)?.ranges.map((range) => range.shard)).toEqual(['two']);
    expect(epoch).toBe(topology.epoch + 2n);
    expect([(await versions(s.urlOne))?.length, (await versions(s.urlTwo))?.length]).toEqual([0, NAMES]);
    expect(await leftovers(s)).toEqual([]);
  },
);
