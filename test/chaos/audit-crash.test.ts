import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { beforeAll, expect, test } from 'vitest';
import { audit } from '../../migrator/audit/audit.js';
import { Decisions } from '../../topology/catalog/decisions.js';
import { type CoordinatorId, gidOf } from '../../topology/prepared-transactions.js';
import type { ShardName } from '../../topology/topology.js';
import { leaveBehind } from '../migrator/left-behind.js';
import { shopMoves } from '../migrator/moves.js';
import { approveMove, leftovers, registerProxy } from '../migrator/setting.js';
import { audit as auditRows } from '../migrator/writers.js';
import { withClient } from '../support/client.js';
import { built } from './built.js';
import { POINTS, someOf } from './crashes.js';
import type { Place } from './lives.js';

// An audit that repairs dies at one place after the other; the next one finds what is left to do.

const moves = shopMoves(12, 20);
const { s } = moves;
let child = '';
beforeAll(async () => {
  child = await built('audit-child');
});

/** @returns the signal that ended it, and what it said */
function repairUntil(place: Place): Promise<{ signal: string | null; said: string }> {
  return new Promise((resolve, reject) => {
    const running = spawn(process.execPath, [child, s.catalogUrl], {
      env: { ...process.env, FORESHARD_CRASH_POINT: place },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    running.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    running.once('error', reject);
    running.once('close', (_code, signal) => resolve({ signal, said }));
  });
}

const read = (url: string, sql: string): Promise<unknown[]> =>
  withClient(url, async (c) => (await c.query({ text: sql, rowMode: 'array' })).rows.flat());

const found = async () => (await audit(s.catalog, false)).map(({ kind, shard, object }) => [kind, shard, object]);

/** Something of everything that an audit repairs. */
async function spoil(): Promise<void> {
  const id = await approveMove(s, [6n], null);
  const stop = moves.startMigrator();
  expect(await moves.atRest(id)).toBe('done');
  // It audits, too.
  await stop();
  const { pool } = s.catalog;
  const owned = await withClient(
    s.urlTwo,
    async (c) => (await c.query('SELECT id, name, country, mood FROM tenants')).rows,
  );
  await withClient(s.urlOne, async (c) => {
    await c.query('SET session_replication_role = replica');
    for (const row of owned)
      await c.query('INSERT INTO tenants (id, name, country, mood) VALUES ($1, $2, $3, $4)', Object.values(row));
  });
  await withClient(s.urlTwo, async (c) => {
    await c.query('SET session_replication_role = replica');
    await c.query(`UPDATE countries SET name = 'elsewhere' WHERE code = 'AA'; DELETE FROM countries WHERE code = 'CA';
      INSERT INTO countries VALUES ('ZZ', 'nowhere')`);
  });
  const system = await read(s.urlTwo, 'SELECT system_identifier::text FROM pg_control_system()');
  await read(s.urlOne, `SELECT pg_create_logical_replication_slot('pg_4242_sync_1_${system[0]}', 'pgoutput')`);
  await leaveBehind(s, id);
  await pool.query(
    `INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline) VALUES ($1, 'tenant', false, now() + interval '1 hour')`,
    [id.toString()],
  );
  // The last: a slot waits for it to be ended.
  const proxy = await registerProxy(s, 'gone');
  const coordinator = randomUUID() as CoordinatorId;
  const decisions = new Decisions(pool);
  expect(await decisions.enroll(coordinator, proxy)).toBe(true);
  expect(await decisions.decide(coordinator, [{ number: 1n, shards: ['one' as ShardName] }])).toBe(true);
  for (const number of [1n, 2n])
    await withClient(s.urlOne, (c) =>
      c.query(`BEGIN; UPDATE tenants SET name = 'by ${number}' WHERE id = ${number};
        PREPARE TRANSACTION '${gidOf({ coordinator, number }, 0)}'`),
    );
  await pool.query('UPDATE foreshard.proxy SET lease_until = clock_timestamp() WHERE id = $1', [proxy]);
}

const KINDS = [
  'function',
  'gate',
  'hold',
  'marker',
  'prepared transaction',
  'publication',
  'reference table',
  'rows',
  'slot',
  'subscription',
  'trigger',
];

test.each(someOf(POINTS.auditing, 3))(
  'an audit that dies %s leaves to the next one what it has not repaired',
  async (point) => {
    await spoil();
    const kinds = [...new Set((await found()).map(([kind]) => kind))].sort();
    expect(kinds).toEqual(KINDS);
    const tenants = 'SELECT t::text FROM tenants t ORDER BY id';
    const countries = 'SELECT c::text FROM countries c ORDER BY code';
    const owned = await read(s.urlTwo, tenants);
    const right = await read(s.urlOne, countries);
    // Before the first repair, nothing has happened.
    const first = point === 'before:audit-repair' ? 2 : 1;
    let deaths = 0;
    for (let [nth, left] = [first, await found()]; ; deaths++) {
      const { signal, said } = await repairUntil(`${point}#${nth}`);
      if (signal !== 'SIGKILL') {
        expect(JSON.parse(said).filter(([, outcome]: string[]) => outcome !== 'repaired')).toEqual([]);
        break;
      }
      // What was begun is begun anew: where that has changed nothing, the next one gets further.
      const before = left;
      left = await found();
      nth = isDeepStrictEqual(left, before) ? nth + 1 : first;
    }
    expect(deaths).toBeGreaterThan(3);
    expect(await audit(s.catalog, false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    expect(await read(s.urlTwo, tenants)).toEqual(owned);
    for (const url of [s.urlOne, s.urlTwo]) expect(await read(url, countries)).toEqual(right);
    expect(await read(s.urlOne, 'SELECT name FROM tenants WHERE id < 3 ORDER BY id')).toEqual(['by 1', 'tenant 2']);
    expect(await auditRows(s, null, (tenant) => tenant >= 6)).toEqual([]);
  },
);
