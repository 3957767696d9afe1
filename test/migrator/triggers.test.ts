import { beforeEach, describe, expect, test } from 'vitest';
import { audit as auditShards } from '../../migrator/audit/audit.js';
import { dryRun } from '../../migrator/dry-run.js';
import { requestEnd, requestFlip, setPaused } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { addTriggers, behaviour, effectsOf, rows } from './behaviour.js';
import { shopMoves } from './moves.js';
import { abortOnEntering, approveMove, leftovers, moveSpec, pauseOnEntering, rollBackOnReversing } from './setting.js';
import { audit } from './writers.js';

const HOUR = 3_600_000;
const moves = shopMoves(40, 100);
const { s } = moves;

const both = async <T extends object>(sql: string): Promise<T[]> => [
  ...(await rows<T>(s.urlOne, sql)),
  ...(await rows<T>(s.urlTwo, sql)),
];

describe('triggers', () => {
  beforeEach(() => addTriggers(s));

  test('move with their tables, and do what they do exactly once, under load', async () => {
    const { writers } = await moves.startLoad(40);
    const id = await approveMove(s, [20n], null);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
    const flipped = writers.acknowledged;
    await waitFor(() => writers.acknowledged > flipped + 300, { what: 'writes at the new owner' });
    await writers.stop();

    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (t) => t >= 20)).toEqual([]);
    expect(await effectsOf(s, writers, (t) => t >= 20)).toEqual([]);
    expect(await behaviour(s.urlTwo)).toEqual(await behaviour(s.urlOne));
    expect(await behaviour(s.urlTwo)).toHaveLength(9);
    expect(await leftovers(s)).toEqual([]);
    await withClient(s.urlTwo, async (c) => {
      await c.query('BEGIN');
      await c.query("INSERT INTO orders (tenant_id, body) VALUES (20, 'to be refused')");
      await expect(c.query('COMMIT')).rejects.toThrow('refused at commit');
    });
  });

  test('do so on the way there and back', async () => {
    const { writers } = await moves.thereAndBack(40, [20n]);
    expect(await behaviour(s.urlTwo)).toEqual([]);
    expect(await effectsOf(s, writers, null)).toEqual([]);
  });

  test('are shown by a dry run', async () => {
    const { findings, steps } = await dryRun(s.catalog, moveSpec([20n], null));
    expect(findings.filter((f) => f.severity === 'blocker')).toEqual([]);
    const sql = steps.flatMap((step) => step.sql).join('\n');
    for (const part of [
      'CREATE OR REPLACE FUNCTION app_private.log()',
      'ALTER FUNCTION app_private.log() OWNER TO "shop_owner"',
      'CREATE TRIGGER "Log Rows" AFTER INSERT OR DELETE OR UPDATE ON public.orders FOR EACH ROW',
      'CREATE CONSTRAINT TRIGGER refuse',
      'DISABLE TRIGGER "resting"',
    ])
      expect(sql).toContain(part);
  });

  test.each(['preparing', 'catching_up', 'fencing'])(
    'leave nothing behind when an abort comes in state %s',
    async (state) => {
      await abortOnEntering(s, state);
      const before = await behaviour(s.urlOne);
      moves.startMigrator({ wayBackMs: HOUR });
      const end = await moves.atRest(await approveMove(s, [20n], null));
      await abortOnEntering(s, null);
      expect(end).toBe('aborted');
      expect(await leftovers(s)).toEqual([]);
      expect(await behaviour(s.urlOne)).toEqual(before);
      expect(await behaviour(s.urlTwo)).toEqual([]);
      expect(await rows(s.urlTwo, "SELECT nspname FROM pg_namespace WHERE nspname = 'app_private'")).toEqual([]);
    },
  );

  test('that are changed on one side during a move keep it from flipping', async () => {
    const id = await approveMove(s, [20n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await moves.noted(id, /^ready to flip/);
    await withClient(s.urlOne, (c) => c.query('DROP TRIGGER touch ON orders'));
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/"public.orders" was changed during the move: .*CREATE TRIGGER touch/);
  });
});

/** Triggers that fire for replicated rows, too. They note in a table of the shard's own for whom they have. */
const LOUD = `
CREATE TABLE fired (at timestamptz DEFAULT clock_timestamp(), role text, name text, op text, id bigint);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.fired (role, name, op, id) VALUES (current_setting('session_replication_role'), TG_NAME, TG_OP, coalesce(NEW.id, OLD.id));
  RETURN NULL; END $$;`;
const LOUD_TRIGGERS = `
CREATE TRIGGER loud_always AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE TRIGGER loud_replica AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION note_it();
ALTER TABLE orders ENABLE ALWAYS TRIGGER loud_always;
ALTER TABLE orders ENABLE REPLICA TRIGGER loud_replica;`;

const modes = (url: string) =>
  rows<{ tgname: string; tgenabled: string }>(
    url,
    "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'loud_%' ORDER BY 1",
  ).then((all) => all.map((t) => t.tgenabled).join(''));
const firedFor = async (role: string) => (await both(`SELECT * FROM fired WHERE role = '${role}'`)).length;

describe('triggers that are enabled ALWAYS or for REPLICA', () => {
  beforeEach(async () => {
    await withClient(s.urlOne, (c) => c.query(LOUD + LOUD_TRIGGERS));
    // What is made of the functions of triggers is told above.
    await withClient(s.urlTwo, (c) => c.query(LOUD));
  });

  test.each(['done', 'rolled_back'])(
    'do not fire for what is copied, replicated and removed, and have their modes back when it is %s',
    async (end) => {
      const { writers } = await moves.startLoad(40, { stale: false });
      const id = await approveMove(s, [20n], null);
      moves.startMigrator({ wayBackMs: HOUR });
      await moves.inState(id, 'reversing');
      expect([await modes(s.urlOne), await modes(s.urlTwo)]).toEqual(['OD', 'OD']);
      const flipped = writers.acknowledged;
      await waitFor(() => writers.acknowledged > flipped + 300, { what: 'writes at the new owner' });
      await requestEnd(s.catalog.pool, id, end === 'done' ? 'finish' : 'rollback', 'test');
      expect(await moves.atRest(id)).toBe(end);
      await writers.stop();
      expect(writers.errors).toEqual([]);
      expect(await audit(s, writers, (t) => end === 'done' && t >= 20)).toEqual([]);
      expect(await modes(s.urlOne)).toBe('AR');
      expect(await modes(s.urlTwo)).toBe(end === 'done' ? 'AR' : '');
      expect(await firedFor('replica')).toBe(0);
      const updates = [...writers.journal.values()].reduce((sum, { version }) => sum + version, 0);
      const inserts = writers.journal.size + writers.deleted.size;
      const told = await both<{ op: string; n: number }>('SELECT op, count(*)::int AS n FROM fired GROUP BY 1');
      const sum = (op: string) => told.filter((t) => t.op === op).reduce((n, t) => n + t.n, 0);
      expect([sum('INSERT'), sum('DELETE')]).toEqual([inserts, writers.deleted.size]);
      expect(sum('UPDATE')).toBeGreaterThanOrEqual(updates);
      expect(await leftovers(s)).toEqual([]);
    },
  );

  test('have them back on a table that the destination had before, also without a way back and after an abort', async () => {
    moves.startMigrator();
    expect(await moves.atRest(await approveMove(s, [30n], null))).toBe('done');
    await abortOnEntering(s, 'ready');
    expect(await moves.atRest(await approveMove(s, [20n], [30n]))).toBe('aborted');
    await abortOnEntering(s, null);
    expect([await modes(s.urlOne), await modes(s.urlTwo)]).toEqual(['AR', 'AR']);
    expect(await moves.atRest(await approveMove(s, [20n], [30n]))).toBe('done');
    expect([await modes(s.urlOne), await modes(s.urlTwo)]).toEqual(['AR', 'AR']);
    expect(await firedFor('replica')).toBe(0);
    expect(await audit(s, null, (t) => t >= 20)).toEqual([]);
  });
});

test('an audit that removes rows fires none of them', async () => {
  await withClient(s.urlOne, (c) => c.query(LOUD + LOUD_TRIGGERS));
  await withClient(s.urlTwo, (c) => c.query(LOUD));
  const copies = await rows<Record<string, unknown>>(
    s.urlOne,
    'SELECT tenant_id, id, serial_no, body, doc::text, at::text FROM orders WHERE tenant_id = 25',
  );
  moves.startMigrator();
  expect(await moves.atRest(await approveMove(s, [20n], null))).toBe('done');
  await withClient(s.urlOne, async (c) => {
    await c.query('SET session_replication_role = replica; ALTER TABLE orders DISABLE TRIGGER USER');
    for (const row of copies)
      await c.query(
        'INSERT INTO orders (tenant_id, id, serial_no, body, doc, at) VALUES ($1, $2, $3, $4, $5, $6)',
        Object.values(row),
      );
    await c.query(
      'ALTER TABLE orders ENABLE ALWAYS TRIGGER loud_always; ALTER TABLE orders ENABLE REPLICA TRIGGER loud_replica',
    );
  });
  const found = await auditShards(s.catalog, true);
  expect(found.map(({ shard, text, outcome }) => [shard, text, outcome])).toEqual([
    ['one', '100 rows of public.orders belong to other shards', 'repaired'],
  ]);
  expect(await both('SELECT * FROM fired')).toEqual([]);
  expect([await modes(s.urlOne), await modes(s.urlTwo)]).toEqual(['AR', 'AR']);
});

test('an audit finds those that are not on all shards, and policies that differ', async () => {
  await withClient(s.urlOne, (c) => c.query(LOUD + LOUD_TRIGGERS));
  await withClient(s.urlTwo, (c) => c.query(LOUD));
  moves.startMigrator();
  expect(await moves.atRest(await approveMove(s, [20n], null))).toBe('done');
  expect(await auditShards(s.catalog, false)).toEqual([]);
  await withClient(s.urlTwo, (c) =>
    c.query('DROP TRIGGER loud_replica ON orders; CREATE POLICY all_of_them ON tenants USING (true)'),
  );
  const found = await auditShards(s.catalog, false);
  expect(found.map(({ kind, shard, object }) => [kind, shard, object])).toEqual([
    ['table', 'two', 'public.orders'],
    ['table', 'two', 'public.tenants'],
  ]);
  expect(found[0]?.text).toMatch(/only on "one": CREATE TRIGGER loud_replica .*\(enabled for replicas\)/);
  expect(found[1]?.text).toMatch(/only on "two": CREATE POLICY all_of_them/);
});

describe('triggers that change rows', () => {
  /** Orders of version 99 are the seventh tenant's, and what is new in its name comes first to nobody. */
  const CHANGES = `
    CREATE FUNCTION to_seven() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.version = 99 THEN NEW.tenant_id := 7; END IF; RETURN NEW; END $$;
    CREATE TRIGGER zz_to_seven BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION to_seven();
    CREATE FUNCTION known() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      IF NOT EXISTS (SELECT FROM public.tenants WHERE id = NEW.tenant_id) THEN RAISE EXCEPTION 'no such tenant'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER a_known BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION known();
    INSERT INTO orders (tenant_id, id, body) SELECT 1, 5000000, string_agg(md5(i::text), '') FROM generate_series(1, 2000) i;
    ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;`;
  beforeEach(async () => {
    await moves.reset(12, 50);
    await withClient(s.urlOne, (c) => c.query(CHANGES));
  });

  test('so that an update brings one into the interval: it arrives whole', async () => {
    await pauseOnEntering(s, 'catching_up');
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    await moves.noted(id, /^paused$/);
    await pauseOnEntering(s, null);
    await withClient(s.urlOne, (c) => c.query('UPDATE orders SET version = 99 WHERE tenant_id = 1 AND id = 5000000'));
    await setPaused(s.catalog.pool, id, false, 'test');
    expect(await moves.atRest(id)).toBe('done');
    const sql = 'SELECT tenant_id, length(body) AS n FROM orders WHERE id = 5000000';
    expect([await rows(s.urlOne, sql), await rows(s.urlTwo, sql)]).toEqual([[], [{ tenant_id: 7, n: 64_000 }]]);
  });

  test('bring none past the guards into an interval that has gone, and none fires before these', async () => {
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.inState(id, 'reversing');
    await withClient(s.urlOne, async (c) => {
      for (const sql of [
        'INSERT INTO orders (tenant_id, id, version) VALUES (1, 6000000, 99)',
        'UPDATE orders SET version = 99 WHERE tenant_id = 1 AND id = 5000000',
        // Whoever asks there for a tenant which has gone is told that, and not that there is none.
        'INSERT INTO orders (tenant_id, id) VALUES (4711, 1)',
      ])
        await expect(c.query(sql)).rejects.toMatchObject({ code: 'SH001' });
      await c.query('INSERT INTO orders (tenant_id, id) VALUES (1, 6000000)');
    });
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (t) => t >= 6)).toEqual([]);
  });
});

describe('row-level security', () => {
  const POLICIES = `
    CREATE SCHEMA IF NOT EXISTS app_private;
    ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
    ALTER TABLE orders FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON orders FOR SELECT TO shop_app USING (tenant_id = current_setting('shop.tenant')::int);
    CREATE POLICY add ON orders AS PERMISSIVE FOR INSERT TO shop_app WITH CHECK (tenant_id = current_setting('shop.tenant')::int);
    CREATE POLICY never ON orders AS RESTRICTIVE FOR ALL TO PUBLIC USING (quantity >= 0) WITH CHECK (EXISTS (SELECT FROM tenants t WHERE t.id = tenant_id AND t.mood = 'calm'));
    COMMENT ON POLICY own ON orders IS 'each his own';
    GRANT SELECT, INSERT ON orders TO shop_app;
    GRANT USAGE ON SEQUENCE orders_serial_no_seq TO shop_app;
    GRANT SELECT ON tenants TO shop_app;`;
  const as = (url: string, tenant: number, sql: string) =>
    withClient(url, async (c) => {
      await c.query('SET ROLE shop_app');
      await c.query(`SET shop.tenant = '${tenant}'`);
      return (await c.query(sql)).rows;
    });

  beforeEach(async () => {
    for (const cluster of [s.one, s.two])
      await withClient(cluster.url('postgres'), (c) =>
        c.query('DO $$ BEGIN CREATE ROLE shop_app; EXCEPTION WHEN duplicate_object THEN NULL; END $$'),
      );
    await withClient(s.urlOne, (c) => c.query(POLICIES));
  });

  test.each(['done', 'rolled_back'])(
    'keeps nobody’s rows from moving, and holds at the new owner as before (%s)',
    async (end) => {
      await rollBackOnReversing(s, end === 'rolled_back');
      const { writers } = await moves.startLoad(40);
      const id = await approveMove(s, [20n], null);
      moves.startMigrator({ wayBackMs: end === 'done' ? 0 : HOUR });
      const found = await moves.atRest(id);
      await rollBackOnReversing(s, false);
      expect([found, (await moves.load(id)).error]).toEqual([end, null]);
      const flipped = writers.acknowledged;
      await waitFor(() => writers.acknowledged > flipped + 100, { what: 'writes' });
      await writers.stop();
      expect(writers.errors).toEqual([]);
      expect(await audit(s, writers, (t) => end === 'done' && t >= 20)).toEqual([]);
      expect(await leftovers(s)).toEqual([]);
      const { facts } = await moves.load(id);
      expect((facts.verified as Record<string, number>)['public.orders']).toBeGreaterThanOrEqual(21 * 100);
      expect(facts.exact).toBe('identical');
      if (end === 'rolled_back') return;
      expect(await behaviour(s.urlTwo)).toEqual(await behaviour(s.urlOne));
      expect(await behaviour(s.urlTwo)).toHaveLength(4);
      const [all] = await rows<{ n: number }>(s.urlTwo, 'SELECT count(*)::int AS n FROM orders WHERE tenant_id = 25');
      expect(await as(s.urlTwo, 25, 'SELECT count(*)::int AS n FROM orders')).toEqual([all]);
      await as(s.urlTwo, 25, "INSERT INTO orders (tenant_id, body) VALUES (25, 'own')");
      await expect(as(s.urlTwo, 25, 'INSERT INTO orders (tenant_id) VALUES (26)')).rejects.toMatchObject({
        code: '42501',
      });
    },
  );

  test('that is changed on one side during a move keeps it from flipping', async () => {
    const id = await approveMove(s, [20n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await moves.noted(id, /^ready to flip/);
    await withClient(s.urlTwo, (c) => c.query('ALTER POLICY own ON orders USING (true)'));
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/"public.orders" was changed during the move: .*CREATE POLICY own/);
  });
});

test('privileges come to be those of the source, whatever the destination gives by default, and to whom', async () => {
  await withClient(s.urlOne, (c) =>
    c.query(`GRANT SELECT ON tenants TO shop_owner; GRANT SELECT (body) ON orders TO PUBLIC;
      CREATE SCHEMA parts; GRANT USAGE ON SCHEMA parts TO shop_owner;
      CREATE FUNCTION parts.closed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
      CREATE FUNCTION parts.open() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
      REVOKE EXECUTE ON FUNCTION parts.closed() FROM PUBLIC;
      CREATE TRIGGER closed AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION parts.closed();
      CREATE TRIGGER open AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION parts.open();
      ALTER TYPE mood OWNER TO shop_owner; REVOKE USAGE ON TYPE quantity FROM PUBLIC`),
  );
  await withClient(s.urlTwo, (c) =>
    c.query(`ALTER DEFAULT PRIVILEGES GRANT SELECT, DELETE ON TABLES TO PUBLIC, shop_owner;
      ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
      ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC, shop_owner;
      ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO shop_owner;
      ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM PUBLIC;
      ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO shop_owner;
      ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC`),
  );
  moves.startMigrator();
  expect(await moves.atRest(await approveMove(s, [20n], null))).toBe('done');
  const privileges = (url: string) =>
    rows<{ of: string }>(
      url,
      `SELECT concat_ws(' ', o.name, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type, 'of', pg_get_userbyid(o.owner)) AS of
         FROM (SELECT relname, relowner, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
               UNION ALL SELECT proname, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc WHERE pronamespace = 'parts'::regnamespace
               UNION ALL SELECT typname, typowner, coalesce(typacl, acldefault('T', typowner)) FROM pg_type
                WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
               UNION ALL SELECT nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname = 'parts') o (name, owner, acl),
              aclexplode(o.acl) a ORDER BY 1`,
    ).then((all) => all.map(({ of }) => of));
  const there = await privileges(s.urlTwo);
  expect(there).toEqual(await privileges(s.urlOne));
  for (const one of [
    'tenants shop_owner SELECT of postgres',
    'open PUBLIC EXECUTE of postgres',
    'mood PUBLIC USAGE of shop_owner',
  ])
    expect(there).toContain(one);
});

describe('before a move', () => {
  test('what cannot be right is said, with a remedy', async () => {
    for (const cluster of [s.one, s.two])
      await withClient(cluster.url('postgres'), (c) => c.query('DROP ROLE IF EXISTS only_one'));
    await withClient(s.urlOne, (c) =>
      c.query(`
      CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
      CREATE FUNCTION lending() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN RETURN NEW; END $$;
      ALTER FUNCTION lending() OWNER TO shop_owner;
      CREATE TRIGGER lent BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION lending();
      CREATE TRIGGER copied BEFORE INSERT ON countries FOR EACH ROW EXECUTE FUNCTION f();
      CREATE TRIGGER "ünnamed" BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION f();
      CREATE SEQUENCE order_numbers;
      CREATE FUNCTION next_number() RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('order_numbers') $$;
      CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.version := next_number(); RETURN NEW; END $$;
      CREATE TRIGGER numbered BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION g();
      CREATE TRIGGER loud AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION g();
      ALTER TABLE orders ENABLE ALWAYS TRIGGER loud;
      CREATE TABLE members (name text);
      CREATE ROLE only_one;
      ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON tenants TO only_one USING (name IN (SELECT m.name FROM members m));
      CREATE POLICY lived_in ON countries USING (EXISTS (SELECT FROM tenants t WHERE t.mood = 'calm'));
      ALTER TABLE "Odd Items" DISABLE TRIGGER ALL`),
    );
    await withClient(s.urlTwo, (c) =>
      c.query(`
      CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN RETURN NEW; END $$;
      CREATE FUNCTION lending() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN RETURN NEW; END $$;
      CREATE FUNCTION next_number() RETURNS bigint LANGUAGE sql AS $$ SELECT 1::bigint $$`),
    );
    const { findings, steps } = await dryRun(s.catalog, moveSpec([20n], null));
    expect(steps).toEqual([]);
    const said = (severity: string) => findings.filter((f) => f.severity === severity).map((f) => f.text);
    for (const text of [
      'table "public.countries" is a reference table with triggers (copied)',
      'table "public.countries" is a reference table with policies that read "public.tenants", of which each shard has other rows',
      'table "public.orders" has the trigger "ünnamed", whose name comes behind those of all guards',
      'table "public.orders" has triggers whose functions name the sequence public.order_numbers, which does not move with it',
      'table "public.tenants" has policies that read "public.members", which does not move with it',
      'role "only_one" of table "public.tenants" does not exist on shard "two"',
      'function public.f() of table "public.orders" is another one on shard "two"',
      // Only its owner is another, whose rights it lends.
      'function public.lending() of table "public.orders" is another one on shard "two"',
      'table "public.Odd Items" has foreign keys that are switched off, or on for replicas',
    ])
      expect(said('blocker')).toContain(text);
    for (const text of [
      'table "public.orders" has triggers that fire for replicated rows, too (loud)',
      'functions are not the same on shards "one" and "two": public.next_number()',
    ])
      expect(said('warning')).toContain(text);
    expect(findings.filter((f) => f.severity === 'blocker').map((f) => f.remedy)).toContain(
      'ALTER TRIGGER "ünnamed" ON "public"."orders" RENAME TO a name that begins with a letter.'.replace(
        /^/,
        'What it makes of a row would not be seen: ',
      ),
    );
    await withClient(s.urlOne, (c) =>
      c.query('DROP POLICY p ON tenants; DROP POLICY lived_in ON countries; DROP ROLE only_one'),
    );
  });

  test('a role that policies keep rows from is named, on either side', async () => {
    const mover = (url: string) => url.replace(/\/\/[^@]*@/, '//mover:secret@');
    for (const [cluster, url, name] of [
      [s.one, s.urlOne, 'one'],
      [s.two, s.urlTwo, 'two'],
    ] as const) {
      await withClient(cluster.url('postgres'), (c) =>
        c.query(`DROP ROLE IF EXISTS mover; CREATE ROLE mover LOGIN PASSWORD 'secret'; GRANT shop_owner TO mover`),
      );
      await s.catalog.pool.query('UPDATE foreshard.shard SET url = $1 WHERE name = $2', [mover(url), name]);
    }
    const kept = async () => {
      const { findings } = await dryRun(s.catalog, moveSpec([20n], null));
      return findings.flatMap(({ severity, text }) =>
        severity === 'blocker' && /row-level security/.test(text) ? [text] : [],
      );
    };
    const told = (table: string) =>
      ['one', 'two'].map(
        (shard) =>
          `table "public.${table}" has row-level security, which keeps rows from role "mover" of shard "${shard}"`,
      );
    await withClient(s.urlOne, (c) =>
      c.query('ALTER TABLE orders ENABLE ROW LEVEL SECURITY; ALTER TABLE tenants ENABLE ROW LEVEL SECURITY'),
    );
    // It has the rights of the one table's owner.
    expect(await kept()).toEqual(told('tenants'));
    await withClient(s.urlOne, (c) => c.query('ALTER TABLE orders FORCE ROW LEVEL SECURITY'));
    expect((await kept()).sort()).toEqual([...told('orders'), ...told('tenants')]);
    for (const cluster of [s.one, s.two])
      await withClient(cluster.url('postgres'), (c) => c.query('ALTER ROLE mover BYPASSRLS'));
    expect(await kept()).toEqual([]);
  });
});
