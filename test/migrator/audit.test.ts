import { describe, expect, test } from 'vitest';
import { audit } from '../../migrator/audit/audit.js';
import { requestAbort, requestEnd } from '../../migrator/migration-requests.js';
import type { ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { leaveBehind } from './left-behind.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers } from './setting.js';

const HOUR = 3_600_000;
const moves = shopMoves(12, 20);
const { s } = moves;

const texts = async (repair = false) =>
  (await audit(s.catalog, repair)).map(({ shard, kind, outcome }) => `${outcome} ${shard} ${kind}`).sort();

async function moved(): Promise<bigint> {
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('done');
  return id;
}

describe('an audit', () => {
  test('finds nothing where nothing is, also while a migration is under way, and after it', async () => {
    expect(await texts()).toEqual([]);
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.inState(id, 'reversing');
    expect(await texts()).toEqual([]);
    expect(await texts(true)).toEqual([]);
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    expect(await texts()).toEqual([]);
  });

  test.each(['done', 'unknown'])('finds every object of a migration that is %s, and takes it away', async (which) => {
    const id = await moved();
    await leaveBehind(s, which === 'done' ? id : id + 1000n);
    await s.catalog.pool.query(
      `INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
       SELECT $1, 'tenant', false, now() + interval '1 hour' WHERE $2`,
      [id.toString(), which === 'done'],
    );
    const expected = [
      ...(which === 'done' ? [' hold'] : []),
      'one function',
      'one gate',
      'one marker',
      'one publication',
      'one slot',
      'one trigger',
      'two marker',
      'two subscription',
    ];
    expect(await texts()).toEqual(expected.map((what) => `open ${what}`));
    expect(await texts(true)).toEqual(expected.map((what) => `repaired ${what}`));
    expect(await texts()).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('finds rows where they do not belong, and removes only those that their owner has as well', async () => {
    await moved();
    await withClient(s.urlTwo, async (c) => {
      const { rows } = await c.query('SELECT * FROM tenants WHERE id = 7');
      expect(rows).toHaveLength(1);
    });
    await withClient(s.urlOne, async (c) => {
      // Tenant 7 belongs to the other shard by now: the same row, and another one.
      await c.query(
        "INSERT INTO tenants (id, name, country) VALUES (7, 'tenant 7', (SELECT code FROM countries LIMIT 1))",
      );
      await c.query("INSERT INTO tenants (id, name) VALUES (8, 'not the same')");
      await c.query("INSERT INTO orders (tenant_id, id, body) VALUES (7, 4711, 'only here')");
    });
    await withClient(s.urlTwo, async (c) => {
      const { rows } = await c.query('SELECT name, country, mood FROM tenants WHERE id = 7');
      await withClient(s.urlOne, (one) =>
        one.query('UPDATE tenants SET name = $1, country = $2, mood = $3 WHERE id = 7', Object.values(rows[0])),
      );
    });
    const found = await audit(s.catalog, false);
    expect(found.map(({ shard, object, text }) => [shard, object, text])).toEqual([
      ['one', 'public.orders', '1 rows of public.orders belong to other shards'],
      ['one', 'public.tenants', '2 rows of public.tenants belong to other shards'],
    ]);
    expect(await texts(true)).toEqual(['not repaired one rows', 'not repaired one rows']);
    await withClient(s.urlOne, async (c) => {
      expect((await c.query('SELECT id, name FROM tenants WHERE id > 6')).rows).toEqual([
        { id: 8, name: 'not the same' },
      ]);
      expect((await c.query('SELECT body FROM orders WHERE tenant_id > 6')).rows).toEqual([{ body: 'only here' }]);
    });
    await withClient(s.urlTwo, async (c) => {
      expect((await c.query('SELECT count(*)::int AS n FROM tenants WHERE id IN (7, 8)')).rows).toEqual([{ n: 2 }]);
    });
  });

  test('removes no row of a table without a key: two of its rows may be the same, and its owner’s one of them', async () => {
    const twice = "INSERT INTO notes SELECT 7, 1, 'note' FROM generate_series(1, 2)";
    for (const [url, notes] of [
      [s.urlOne, twice],
      [s.urlTwo, "INSERT INTO notes VALUES (7, 1, 'note')"],
    ] as const)
      await withClient(url, (c) => c.query(`CREATE TABLE notes (tenant_id int, id int, body text); ${notes}`));
    const { pool } = s.catalog;
    await pool.query(`INSERT INTO foreshard.sharded_table VALUES ('public', 'notes', 'tenant', '{tenant_id}');
      UPDATE foreshard.range SET hi = '["6"]';
      INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ('tenant', '["6"]', 'two');
      DELETE FROM foreshard.reference_table`);
    await withClient(s.urlOne, (c) => c.query('DELETE FROM "Odd Items"; DELETE FROM orders; DELETE FROM tenants'));
    const found = await audit(s.catalog, true);
    expect(found.map(({ object, outcome }) => [object, outcome])).toEqual([['public.notes', 'open']]);
    expect(found[0]?.remedy).toMatch(/no primary key by which rows could be told apart: "--repair" removes none/);
    await withClient(s.urlOne, async (c) => expect((await c.query('SELECT FROM notes')).rowCount).toBe(2));
  });

  test('finds copies of a reference table that differ', async () => {
    await moved();
    await withClient(s.urlTwo, (c) =>
      c.query("UPDATE countries SET name = 'elsewhere' WHERE code = (SELECT min(code) FROM countries)"),
    );
    await withClient(s.urlTwo, async (c) => {
      await c.query("INSERT INTO countries VALUES ('ZZ', 'nowhere')");
      await c.query("DELETE FROM countries WHERE code = (SELECT max(code) FROM countries WHERE code < 'ZZ')");
    });
    const codes = await withClient(
      s.urlOne,
      async (c) => (await c.query('SELECT min(code), max(code) FROM countries')).rows[0],
    );
    const found = await audit(s.catalog, true);
    expect(found.map(({ kind, outcome }) => [kind, outcome])).toEqual([['reference table', 'open']]);
    expect(found[0]?.text).toMatch(/on shards "one" and "two" differ in 3 rows: /);
    for (const key of [codes.min, codes.max, 'ZZ']) expect(found[0]?.text).toContain(`["${key}"]`);
  });

  test('makes copies the same as the one that is right, while others write; or says why not', async () => {
    await moved();
    const at = <T>(url: string, sql: string): Promise<T[]> =>
      withClient(url, async (c) => {
        await c.query('SET session_replication_role = replica');
        return (await c.query({ text: sql, rowMode: 'array' })).rows.map(([value]) => value as T);
      });
    const [used, changed, missing, busy] = await at<string>(
      s.urlOne,
      'SELECT code FROM countries ORDER BY code IN (SELECT country FROM tenants) DESC, code LIMIT 4',
    );
    await at(s.urlTwo, `UPDATE countries SET name = 'elsewhere' WHERE code = '${changed}'`);
    await at(s.urlTwo, `DELETE FROM countries WHERE code = '${missing}'`);
    await at(s.urlTwo, `INSERT INTO countries VALUES ('ZZ', 'nowhere')`);
    let on = true;
    const writing = (async () => {
      for (let n = 0; on; n++)
        for (const url of [s.urlOne, s.urlTwo])
          await at(url, `UPDATE countries SET name = 'n${n}' WHERE code = '${busy}'`);
    })();
    moves.atStop(async () => {
      on = false;
      await writing;
    });
    const from = (shard: string) => audit(s.catalog, true, undefined, { shard: shard as ShardName, actor: 'test' });
    expect((await from('one')).map(({ kind, shard, outcome }) => [kind, shard, outcome])).toEqual([
      ['reference table', 'two', 'repaired'],
    ]);
    on = false;
    await writing;
    const all = (url: string) => at<string>(url, 'SELECT c::text FROM countries c ORDER BY code');
    const right = await all(s.urlOne);
    expect(await all(s.urlTwo)).toEqual(right);
    const { rows } = await s.catalog.pool.query(
      "SELECT actor, object, detail FROM foreshard.audit WHERE action = 'reference.repair'",
    );
    expect(rows).toEqual([
      {
        actor: 'test',
        object: 'public.countries',
        detail: {
          from: 'one',
          to: 'two',
          added: [`["${missing}"]`],
          replaced: [`["${changed}"]`],
          removed: ['["ZZ"]'],
        },
      },
    ]);
    // Tenants refer to it.
    await at(s.urlTwo, `DELETE FROM countries WHERE code = '${used}'`);
    const [refused] = await from('two');
    expect(refused).toMatchObject({
      outcome: 'not repaired',
      text: expect.stringMatching(/\(not repaired: rows of "public"\."tenants" refer to rows of .* that would be gone/),
    });
    expect(await all(s.urlOne)).toEqual(right);
    expect((await from('one')).map(({ outcome }) => outcome)).toEqual(['repaired']);
    expect(await all(s.urlTwo)).toEqual(right);
  });

  test('says why copies cannot be made the same now, and makes nothing of it', async () => {
    await moved();
    const setting = 'SET session_replication_role = replica;';
    const on = (url: string, sql: string) => withClient(url, (c) => c.query(setting + sql));
    await on(s.urlTwo, `UPDATE countries SET name = 'elsewhere' WHERE code = 'AA'`);
    const noted = async () =>
      (
        await s.catalog.pool.query(
          "SELECT detail->'replaced' AS replaced FROM foreshard.audit WHERE action = 'reference.repair' ORDER BY id",
        )
      ).rows;
    const before = await noted();
    for (const url of [s.urlOne, s.urlTwo])
      await on(
        url,
        'CREATE TABLE parts (id int PRIMARY KEY); ALTER TABLE countries ADD COLUMN part int REFERENCES parts',
      );
    const repaired = async () =>
      (await audit(s.catalog, true, undefined, { shard: 'one' as ShardName, actor: 'test' }))[0];
    const refused = async (why: RegExp) => {
      expect(await repaired()).toMatchObject({
        kind: 'reference table',
        outcome: 'not repaired',
        text: expect.stringMatching(why),
      });
      const { rows } = await withClient(s.urlTwo, (c) =>
        c.query(`SELECT name FROM countries WHERE code IN ('AA', 'ZZ')`),
      );
      expect(rows).toEqual([{ name: 'elsewhere' }]);
    };

    await on(s.urlTwo, 'ALTER TABLE countries ADD COLUMN more int');
    await refused(/\(not repaired: the columns of the copies differ\)$/);
    await on(s.urlTwo, 'ALTER TABLE countries DROP COLUMN more');

    for (const mode of ['ALWAYS', 'REPLICA']) {
      await on(
        s.urlTwo,
        `CREATE TRIGGER odd BEFORE INSERT ON countries FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); ALTER TABLE countries ENABLE ${mode} TRIGGER odd`,
      );
      await refused(/\(not repaired: trigger "odd" of "public"\."countries" would be run/);
      await on(s.urlTwo, 'DROP TRIGGER odd ON countries');
    }

    await on(s.urlOne, `INSERT INTO parts VALUES (1); INSERT INTO countries VALUES ('ZZ', 'nowhere', 1)`);
    await refused(/\(not repaired: rows that would come refer to rows of "public"\."parts" that are missing/);
    await on(s.urlTwo, 'INSERT INTO parts VALUES (1)');

    const id = await approveMove(s, [3n], [6n], 'one', 'two', { auto: false });
    await moves.noted(id, /^ready to flip/);
    await refused(new RegExp(`\\(not repaired: migration ${id} is at work on shard "one" or "two"\\)$`));
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');

    const writer = await moves.session(s.urlTwo);
    await writer.query(`BEGIN; UPDATE countries SET name = name WHERE code = 'AB'`);
    await refused(/\(not repaired: .*lock timeout\)$/);
    await writer.query('ROLLBACK');

    expect(await repaired()).toMatchObject({ outcome: 'repaired' });
    expect(await noted()).toEqual([...before, { replaced: ['["AA"]'] }]);
  });

  test('takes a row that is being written for no difference, and a table without a key as a whole', async () => {
    await moved();
    const writing = new AbortController();
    const write = (url: string) =>
      withClient(url, async (c) => {
        for (let n = 0; !writing.signal.aborted; n++) await c.query(`UPDATE countries SET name = 'n' || $1`, [`${n}`]);
      });
    const writers = Promise.all([write(s.urlOne), write(s.urlTwo)]);
    moves.atStop(async () => {
      writing.abort();
      await writers;
    });
    expect((await audit(s.catalog, false)).map(({ text }) => text)).toEqual([]);
    writing.abort();
    await writers;
    for (const url of [s.urlOne, s.urlTwo])
      await withClient(url, (c) =>
        c.query('UPDATE countries SET name = code; ALTER TABLE countries DROP CONSTRAINT countries_pkey CASCADE'),
      );
    expect(await texts()).toEqual([]);
    await withClient(s.urlTwo, (c) =>
      c.query("UPDATE countries SET name = 'x' WHERE code = (SELECT min(code) FROM countries)"),
    );
    expect((await audit(s.catalog, false))[0]?.text).toMatch(
      /differ: the first has 100 rows, hash -?\d+, the other 100 rows, hash -?\d+/,
    );
  });

  test('finds slots of subscriptions that are gone, and leaves those of others alone', async () => {
    await moved();
    const system = await withClient(
      s.urlTwo,
      async (c) => (await c.query('SELECT system_identifier::text AS id FROM pg_control_system()')).rows[0].id,
    );
    await withClient(s.urlTwo, async (c) => {
      await c.query('CREATE SUBSCRIPTION theirs CONNECTION $$host=nowhere$$ PUBLICATION p WITH (connect = false)');
    });
    const theirs = await withClient(
      s.urlTwo,
      async (c) => (await c.query('SELECT oid::text FROM pg_subscription')).rows[0].oid,
    );
    const slots = [`pg_4242_sync_1_${system}`, `pg_${theirs}_sync_1_${system}`, 'pg_4242_sync_1_4711'];
    await withClient(s.urlOne, async (c) => {
      for (const slot of slots) await c.query(`SELECT pg_create_logical_replication_slot('${slot}', 'pgoutput')`);
    });
    const found = (await audit(s.catalog, true)).map(({ outcome, shard, object }) => [outcome, shard, object]);
    expect(found).toEqual([['repaired', 'one', slots[0]]]);
    await withClient(s.urlOne, async (c) => {
      const { rows } = await c.query('SELECT pg_drop_replication_slot(slot_name), slot_name FROM pg_replication_slots');
      expect(rows.map((r) => r.slot_name).sort()).toEqual(slots.slice(1).sort());
    });
    await withClient(s.urlTwo, async (c) => {
      await c.query('ALTER SUBSCRIPTION theirs SET (slot_name = NONE)');
      await c.query('DROP SUBSCRIPTION theirs');
    });
  });

  test('does not wait behind a lock for long: what cannot be taken away now is said', async () => {
    const id = await moved();
    await leaveBehind(s, id);
    const locker = await moves.session(s.urlOne);
    await locker.query('BEGIN; SELECT FROM orders LIMIT 1');
    expect(await texts(true)).toContain('not repaired one trigger');
    await locker.end();
    expect(await texts(true)).toContain('repaired one trigger');
    expect(await texts()).toEqual([]);
  });

  test('says which shard it could not look at', async () => {
    await moved();
    await s.two.crash();
    try {
      const found = await audit(s.catalog, false);
      expect(found.map(({ kind, shard }) => [kind, shard])).toEqual([['shard', 'two']]);
    } finally {
      await s.two.restart();
    }
  });
});
