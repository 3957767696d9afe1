import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { audit } from '../../migrator/audit/audit.js';
import { GUARD_LOCK_CLASS } from '../../migrator/names.js';
import { Decisions } from '../../topology/catalog/decisions.js';
import { ProxyLeases } from '../../topology/catalog/leases.js';
import { type CoordinatorId, gidOf } from '../../topology/prepared-transactions.js';
import type { Epoch, ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { shopMoves } from './moves.js';

const moves = shopMoves(12, 20);
const { s } = moves;
const HOUR_MS = 3_600_000;

const texts = async (repair = false) =>
  (await audit(s.catalog, repair)).map(({ shard, kind, text, outcome }) => `${outcome} ${shard} ${kind} ${text}`);

/** A proxy's coordinator. */
async function enrolled(): Promise<{ proxyId: string; coordinator: CoordinatorId; decisions: Decisions }> {
  const proxyId = randomUUID();
  const coordinator = randomUUID() as CoordinatorId;
  const facts = { name: 'p1', listen: 'here', ttlMs: HOUR_MS, epochAcked: 99n as Epoch, schemaHeard: 0n };
  await new ProxyLeases(s.catalog.pool).register({ id: proxyId, ...facts });
  const decisions = new Decisions(s.catalog.pool);
  expect(await decisions.enroll(coordinator, proxyId)).toBe(true);
  return { proxyId, coordinator, decisions };
}

async function prepare(gid: string, name: string): Promise<void> {
  await withClient(s.urlOne, async (c) => {
    await c.query('BEGIN');
    await c.query('UPDATE tenants SET name = $1 WHERE id = (SELECT min(id) FROM tenants WHERE name NOT LIKE $2)', [
      name,
      'by %',
    ]);
    await c.query(`PREPARE TRANSACTION '${gid}'`);
  });
}

const gids = () =>
  withClient(s.urlOne, async (c) =>
    (await c.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts ORDER BY 1')).rows.map((r) => r.gid),
  );

const changed = () =>
  withClient(s.urlOne, async (c) =>
    (await c.query<{ name: string }>("SELECT name FROM tenants WHERE name LIKE 'by %'")).rows.map((r) => r.name),
  );

test('a transaction that a live proxy is about to end is nothing to report; one that it has left is repaired as it was decided', async () => {
  const { proxyId, coordinator, decisions } = await enrolled();
  const [decided, open] = [1n, 2n].map((number) => gidOf({ coordinator, number }, 0)) as [string, string];
  await prepare(decided, 'by one');
  expect(await decisions.decide(coordinator, [{ number: 1n, shards: ['one' as ShardName] }])).toBe(true);
  expect(await texts()).toEqual([]);
  expect(await texts(true)).toEqual([]);
  expect(await gids()).toEqual([decided]);

  await s.catalog.pool.query('UPDATE foreshard.proxy SET lease_until = clock_timestamp() WHERE id = $1', [proxyId]);
  const left = `one prepared transaction prepared transaction "${decided}" is left of proxy "p1", whose lease has ended`;
  expect(await texts()).toEqual([`open ${left}`]);
  expect(await texts(true)).toEqual([`repaired ${left}`]);
  expect(await gids()).toEqual([]);
  expect(await changed()).toEqual(['by one']);

  await prepare(open, 'by two');
  expect(await texts(true)).toEqual([expect.stringMatching(/^repaired one prepared transaction/)]);
  expect(await gids()).toEqual([]);
  expect(await changed()).toEqual(['by one']);
  expect(await decisions.decide(coordinator, [{ number: 2n, shards: ['one' as ShardName] }])).toBe(false);
});

test('one of a coordinator that the catalog does not know is shown, and left alone; another program’s is not even shown', async () => {
  const unknown = gidOf({ coordinator: randomUUID() as CoordinatorId, number: 7n }, 1);
  await prepare(unknown, 'by unknown');
  await withClient(s.urlTwo, async (c) => {
    await c.query('BEGIN; CREATE TABLE another ()');
    await c.query("PREPARE TRANSACTION 'another'");
  });
  try {
    expect(await texts(true)).toEqual([
      expect.stringMatching(
        `^open one prepared transaction prepared transaction "${unknown}" is of a coordinator that this`,
      ),
    ]);
    expect(await gids()).toEqual([unknown]);
  } finally {
    await withClient(s.urlOne, (c) => c.query(`ROLLBACK PREPARED '${unknown}'`));
    await withClient(s.urlTwo, (c) => c.query("ROLLBACK PREPARED 'another'"));
  }
});

test('another program’s that has written to rows of a migration nobody knows is shown, before and after its server was restarted', async () => {
  await withClient(s.urlTwo, async (c) => {
    await c.query(`BEGIN; SELECT pg_advisory_xact_lock_shared(${GUARD_LOCK_CLASS}, 4711)`);
    await c.query("SAVEPOINT a; CREATE TABLE another (); PREPARE TRANSACTION 'written'");
  });
  // Locks of its own, and no migration's.
  await withClient(s.urlTwo, async (c) => {
    await c.query('BEGIN; SELECT pg_advisory_xact_lock_shared(1, 4711)');
    await c.query("CREATE TABLE yet_another (); PREPARE TRANSACTION 'elsewhere'");
  });
  const shown = [
    'open two prepared transaction prepared transaction "written" has written to rows of migration 4711 (unknown to the catalog)',
  ];
  try {
    expect(await texts(true)).toEqual(shown);
    await s.two.restart();
    expect(await texts(true)).toEqual(shown);
  } finally {
    await withClient(s.urlTwo, async (c) => {
      await c.query("ROLLBACK PREPARED 'written'");
      await c.query("ROLLBACK PREPARED 'elsewhere'");
    });
  }
});
