import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, startCli } from './run-cli.js';
import { commandsOn } from './warm-cli.js';

let one: EmbeddedCluster;
let two: EmbeddedCluster;
let catalog: string;

const { foreshard, json } = commandsOn(() => catalog);

interface Planned {
  change: number | null;
  kind: string;
  epoch: number;
  members: {
    spec: Record<string, unknown>;
    findings: { severity: string; text: string; remedy: string }[];
    steps?: { text: string }[];
  }[];
  findings: { severity: string; text: string }[];
  summary: string[];
}

interface Shown {
  state: string;
  members: { id: number; state: string; position: number }[];
}

const ranges = async () => {
  const { keyspaces } = await json<{
    keyspaces: { name: string; ranges: { lo: string[] | null; hi: string[] | null; shard: string }[] }[];
  }>('topology', 'show');
  return keyspaces.find((k) => k.name === 'shop')?.ranges.map((r) => [r.lo?.[0] ?? null, r.hi?.[0] ?? null, r.shard]);
};

/** Does `work` while a migrator runs. */
async function withMigrator<T>(work: () => Promise<T>): Promise<T> {
  const migrator = startCli(['serve', '--only', 'migrator', '--catalog', catalog]);
  try {
    return await work();
  } finally {
    migrator.child.kill('SIGTERM');
    await migrator.ended;
  }
}

/** Runs a migrator until the change, or the migration, ends. @returns what `migrate watch` has said of it */
const carryOut = (id: number): Promise<{ code: number | null; stdout: string }> =>
  withMigrator(() => foreshard('migrate', 'watch', `${id}`));

beforeAll(async () => {
  [one, two] = await Promise.all([startTestCluster(), startTestCluster(), buildCli()]);
  catalog = one.url('foreshard');
  for (const cluster of [one, two]) await withClient(cluster.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(one.url('shop'), (client) =>
    client.query(`
      CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, note text, PRIMARY KEY (tenant_id, id));
      INSERT INTO orders SELECT t, o, repeat('x', 50) FROM generate_series(1, 100) t, generate_series(1, 20) o;
      CREATE TABLE words (word text, n int, PRIMARY KEY (word, n));
      CREATE TABLE settings (name text PRIMARY KEY);
      ANALYZE orders;
    `),
  );
  for (const args of [
    ['init', '--database', 'shop'],
    ['shard', 'add', 's1', one.url('shop')],
    ['shard', 'add', 's2', two.url('shop')],
    ['keyspace', 'create', 'shop', '--key', 'int8'],
    ['keyspace', 'create', 'words', '--key', 'text,int4', '--method', 'hash'],
    ['table', 'add', 'orders', '--keyspace', 'shop', '--key', 'tenant_id'],
    ['table', 'add', 'words', '--keyspace', 'words', '--key', 'word,n'],
  ])
    expect(await foreshard(...args)).toMatchObject({ code: 0, stderr: '' });
});

describe('migrate plan', () => {
  it('refuses what cannot be', async () => {
    for (const [args, why] of [
      [['move', 'shop', '--lo', '5', '--hi', '5', '--to', 's2'], /the interval is empty/],
      [['move', 'shop', '--to', 's3'], /there is no shard "s3"[\s\S]*There is: s1, s2/],
      [['move', 'nothing', '--to', 's2'], /there is no keyspace "nothing"/],
      [['move', 'shop', '--to', 's1'], /shard "s1" owns all of that already/],
      [['split', 'shop', 'x'], /"x" is not a value of type int8/],
      [['split', 'shop', '5', '--to', 's2'], /1 position\(s\) make 2 parts, and 1 shard\(s\) are named/],
      [['merge', 'shop', '5'], /\(5\) is no bound between two ranges/],
      [['isolate', 'words', 'a', '--to', 's2'], /"a" has 1 of the key's 2 columns/],
      [['drain', 's1', '--to', 's1'], /there is no other shard/],
      [['rebalance', '--concurrency', '0'], /0 cannot be the number of migrations at once/],
    ] as const)
      expect(await foreshard('migrate', 'plan', ...args)).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringMatching(why),
      });
    expect(await json('migrate', 'list')).toEqual({ changes: [], migrations: [] });
  });

  it('says what is in the way, with remedies, and enters nothing then', async () => {
    await withClient(one.url('shop'), (client) =>
      client.query(`CREATE TABLE audit_log (at timestamptz);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit_log VALUES (now()); RETURN NULL; END $$;
        CREATE TRIGGER note AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note();
        CREATE RULE quiet AS ON DELETE TO orders DO ALSO SELECT 1`),
    );
    const blocked = await foreshard('migrate', 'plan', 'move', 'shop', '--lo', '90', '--to', 's2', '--json');
    expect(blocked.code).toBe(1);
    const { change, members } = blocked.json<Planned>();
    expect(change).toBeNull();
    expect(members[0]?.findings.filter((f) => f.severity === 'blocker')).toEqual([
      {
        severity: 'blocker',
        text: 'table "public.orders" has rules (quiet)',
        remedy: expect.stringMatching(/Make triggers of them/),
      },
      {
        severity: 'blocker',
        text: 'triggers, policies, defaults, checks or other parts of "public.orders" may use tables that only shard "s1" has: statements that run them on "public"."orders" would be refused on shard "s2"',
        remedy: expect.stringMatching(/foreshard table add/),
      },
    ]);
    const text = await foreshard('migrate', 'plan', 'move', 'shop', '--lo', '90', '--to', 's2');
    expect(text.stdout).toMatch(/blocker: table "public.orders" has rules \(quiet\)\n +remedy: /);
    expect(text.stdout).toMatch(/Nothing was planned/);
    await withClient(one.url('shop'), (client) =>
      client.query('DROP RULE quiet ON orders; DROP TABLE audit_log; DROP FUNCTION note() CASCADE'),
    );
    expect(await json('migrate', 'list')).toEqual({ changes: [], migrations: [] });
  });

  it('shows the dry run, and only with --save enters it', async () => {
    const { change, members, epoch } = await json<Planned>(
      ...['migrate', 'plan', 'split', 'shop', '50;75', '--to', '.,s2,.', '--no-save', '--steps'],
    );
    expect(change).toBeNull();
    expect(members.map((m) => m.spec)).toEqual([
      { kind: 'recut', keyspace: 'shop', shard: 's1', cut: [['50'], ['75']], join: [] },
      { kind: 'move', keyspace: 'shop', lo: ['50'], hi: ['75'], from: 's1', to: 's2' },
    ]);
    expect(members[1]?.steps?.length).toBeGreaterThan(10);
    const text = await foreshard('migrate', 'plan', 'split', 'shop', '50', '--to', '.,s2');
    expect(text.stdout).toMatch(/^1 {2}shop on s1: cut at 50\n[\s\S]*^2 {2}shop \[50, infinity\) s1 → s2\n/m);
    const [, id] = /Change (\d+) is planned at epoch (\d+): approve it with/.exec(text.stdout) ?? [];
    expect(text.stdout).toContain(`at epoch ${epoch}`);
    expect(await json('migrate', 'abort', id as string)).toEqual({
      change: Number(id),
      abortRequested: true,
      kept: [],
    });
    expect(await foreshard('migrate', 'approve', id as string)).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/is already aborted/),
    });
  });

  it('approves, starts, follows and lists a change', async () => {
    const planned = await json<Planned>('migrate', 'plan', 'split', 'shop', '50', '--to', '.,s2');
    const id = `${planned.change}`;
    expect(await foreshard('migrate', 'watch', id)).toMatchObject({ code: 5 });
    expect(await json('migrate', 'approve', id, '--later')).toMatchObject({ state: 'approved' });
    expect(await foreshard('migrate', 'approve', id)).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/already approved[\s\S]*foreshard migrate start/),
    });
    const { migrations } = await json<{ migrations: number[] }>('migrate', 'start', id);
    expect(migrations).toHaveLength(2);
    expect(await foreshard('migrate', 'approve', `${migrations[0]}`)).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(new RegExp(`${migrations[0]} is a migration of change ${id}, not a change`)),
    });
    const watched = await carryOut(Number(id));
    expect(watched.code).toBe(0);
    expect(watched.stdout).toMatch(new RegExp(`change ${id} \\(split\\): done, 2 of 2 done\n$`));
    expect(watched.stdout).toMatch(new RegExp(`^migration ${migrations[1]} \\(2 of 2\\): `, 'm'));
    expect(await ranges()).toEqual([
      [null, '50', 's1'],
      ['50', null, 's2'],
    ]);
    const shown = await json<Shown>('migrate', 'show', id);
    expect(shown.state).toBe('done');
    expect(shown.members.map((m) => [m.id, m.position, m.state])).toEqual([
      [migrations[0], 1, 'done'],
      [migrations[1], 2, 'done'],
    ]);
    expect((await foreshard('migrate', 'show', id)).stdout).toMatch(/^Change \d+ \(split\): done, 2 of 2 done\n/);
    expect((await foreshard('migrate', 'show', `${migrations[1]}`)).stdout).toMatch(
      new RegExp(`number 2 of change ${id}`),
    );
    const list = (await foreshard('migrate', 'list')).stdout;
    expect(list).toMatch(new RegExp(`${id} +done +split`));
    expect(list).toMatch(new RegExp(`${id} \\(2\\) +shop \\[50, infinity\\) s1 → s2`));
  });

  it('does not carry out what was planned for other ranges', async () => {
    const stale = await json<Planned>('migrate', 'plan', 'isolate', 'shop', '7', '--to', 's2');
    expect(stale.members.map((m) => [m.spec.lo, m.spec.hi])).toEqual([[['7'], ['8']]]);
    const merge = await json<Planned>('migrate', 'plan', 'split', 'shop', '20');
    await json('migrate', 'approve', `${merge.change}`);
    expect((await carryOut(merge.change as number)).code).toBe(0);
    expect(await foreshard('migrate', 'approve', `${stale.change}`)).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/was planned at epoch \d+, the topology is at epoch \d+[\s\S]*plan it again/),
    });
  });

  it('drains a shard, and says what stays at home', async () => {
    const home = await json<Planned>('migrate', 'plan', 'drain', 's1', '--no-save');
    expect(home.findings).toEqual([
      expect.objectContaining({
        severity: 'warning',
        text: 'shard "s1" is home: its 1 table(s) without a keyspace stay: public.settings',
      }),
    ]);
    expect(home.members).toHaveLength(3);
    const planned = await json<Planned>('migrate', 'plan', 'drain', 's2');
    expect(planned.findings).toEqual([]);
    await json('migrate', 'approve', `${planned.change}`);
    expect((await carryOut(planned.change as number)).code).toBe(0);
    expect(await ranges()).toEqual([
      [null, '20', 's1'],
      ['20', '50', 's1'],
      ['50', null, 's1'],
    ]);
    const again = await foreshard('migrate', 'plan', 'drain', 's2');
    expect(again).toMatchObject({ code: 0, stdout: 'There is nothing to do.\n' });
  });

  it('rebalances by bytes where there is no history, and by load where there is', async () => {
    const bytes = await json<Planned>('migrate', 'plan', 'rebalance');
    expect(bytes.summary).toEqual([expect.stringMatching(/B in 1 move\(s\)$/)]);
    // Half of the rows, as one range has them.
    expect(bytes.members.map((m) => m.spec)).toEqual([
      { kind: 'move', keyspace: 'shop', lo: ['50'], hi: null, from: 's1', to: 's2' },
    ]);
    await withClient(catalog, (client) =>
      client.query(`INSERT INTO foreshard.load (step_seconds, at, segment_id, reads, server_ms)
        SELECT 3600, date_trunc('hour', now()) - interval '2 hours', id, 1000, CASE WHEN lo = '["20"]' THEN 3600000 ELSE 900000 END
          FROM foreshard.segment WHERE keyspace = 'shop'`),
    );
    const load = await json<Planned>('migrate', 'plan', 'rebalance');
    expect(load.summary).toEqual([expect.stringMatching(/^1000\.0 ms\/s of load \(mean of the last week\) in 1 move/)]);
    expect(load.members.map((m) => [m.spec.lo, m.spec.hi])).toEqual([[['20'], ['50']]]);
    await json('migrate', 'approve', `${load.change}`);
    expect((await carryOut(load.change as number)).code).toBe(0);
    expect(await ranges()).toEqual([
      [null, '20', 's1'],
      ['20', '50', 's2'],
      ['50', null, 's1'],
    ]);
    expect((await foreshard('migrate', 'audit')).code).toBe(0);
  });

  it('gives tables a keyspace of their own, and moves that', async () => {
    await withClient(one.url('shop'), (client) =>
      client.query(`
        CREATE TABLE documents (tenant_id bigint NOT NULL, id bigint NOT NULL, PRIMARY KEY (tenant_id, id));
        INSERT INTO documents SELECT t, 1 FROM generate_series(1, 100) t;
        CREATE TABLE "Odd" (tenant_id bigint PRIMARY KEY);
        CREATE VIEW both_of_them AS SELECT FROM documents JOIN orders USING (tenant_id);`),
    );
    // Their rows are not where those of the keyspace are.
    const move = await json<Planned>('migrate', 'plan', 'move', 'shop', '--to', 's1');
    await json('migrate', 'approve', `${move.change}`);
    expect((await carryOut(move.change as number)).code).toBe(0);
    for (const table of ['documents', '"Odd"'])
      await json('table', 'add', table, '--keyspace', 'shop', '--key', 'tenant_id');
    for (const [args, why] of [
      [['documents', '--to', 's3'], /there is no shard "s3"/],
      [['documents', '--to', 's1'], /shard "s1" owns all of that already/],
      [
        ['settings', 'words', '--to', 's2', '--as', 'a'],
        /"public.settings" is in no keyspace, "public.words" in keyspace "words"/,
      ],
      [['settings', '--to', 's1'], /shard "s1" owns all of that already/],
      [
        ['words', 'documents', '--to', 's2', '--as', 'docs'],
        /"public.words" is in keyspace "words", "public.documents" in keyspace "shop"/,
      ],
      [['documents', '--to', 's2', '--as', 'words'], /keyspace "words" exists already/],
      [['"Odd"', '--to', 's2'], /"Odd" cannot be the name of a keyspace\nhint: /],
      [['documents', 'orders', '"Odd"', '--to', 's2'], /these are all tables of keyspace "shop"/],
    ] as const)
      expect(await foreshard('migrate', 'plan', 'vertical', ...args)).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringMatching(why),
      });
    const text = await foreshard('migrate', 'plan', 'vertical', 'documents', '--to', 's2', '--no-save', '--steps');
    expect(text).toMatchObject({ code: 0, stderr: '' });
    expect(text.stdout).toMatch(/another shard:\n {2}view "public.both_of_them"\n/);
    expect(text.stdout).toMatch(/^1 {2}shop: public.documents to a keyspace of their own, documents$/m);
    expect(text.stdout).toMatch(/^ {3}\[approved\] catalog: table "public.documents" is in it$/m);
    expect(text.stdout).toMatch(/^2 {2}documents \[-infinity, 20\) s1 → s2\n/m);
    const planned = await json<Planned & { effects: { objects: string[] } }>(
      ...['migrate', 'plan', 'vertical', 'documents', '--to', 's2', '--as', 'docs'],
    );
    expect(planned.effects.objects).toEqual(['view "public.both_of_them"']);
    expect(planned.members.map((m) => m.spec.kind)).toEqual(['separate', 'move', 'move', 'move']);
    await json('migrate', 'approve', `${planned.change}`);
    const watched = await carryOut(planned.change as number);
    expect(watched.stdout).toMatch(/\(vertical\): done, 4 of 4 done\n$/);
    const found = (shard: EmbeddedCluster, table: string) =>
      withClient(shard.url('shop'), async (c) => (await c.query(`SELECT count(*)::int FROM ${table}`)).rows[0].count);
    expect([await found(one, 'documents'), await found(two, 'documents')]).toEqual([0, 100]);
    expect([await found(one, 'orders'), await found(two, 'orders')]).toEqual([2000, 0]);
  });

  it('moves tables of no keyspace, whole, and takes them back', async () => {
    const planned = await json<Planned>('migrate', 'plan', 'vertical', 'settings', '--to', 's2');
    expect(planned.members.map((m) => m.spec)).toEqual([
      { kind: 'separate', keyspace: null, tables: [{ schema: 'public', table: 'settings' }], as: 'settings' },
      { kind: 'move', keyspace: 'settings', lo: null, hi: null, from: 's1', to: 's2' },
    ]);
    await json('migrate', 'approve', `${planned.change}`);
    const watched = await carryOut(planned.change as number);
    expect(watched.stdout).toMatch(/\(vertical\): done, 2 of 2 done\n$/);
    for (const [args, code, why] of [
      [['migrate', 'plan', 'split', 'settings', '5'], 2, /"5" is not a key here: the keyspace has no key\nhint: /],
      [['migrate', 'plan', 'isolate', 'settings', '5', '--to', 's1'], 2, /the keyspace has no key/],
      [['table', 'add', 'words', '--keyspace', 'settings', '--key', 'word'], 2, /is in keyspace "words" already/],
      [['keyspace', 'join', 'shop'], 2, /the tables of keyspace "shop" have a key\nhint: Name the keyspace/],
      [['migrate', 'audit', '--from', 's1'], 2, /--from says from which shard to repair\nhint: Give --repair, too/],
      [['migrate', 'audit', '--repair', '--from', 's3'], 2, /there is no shard "s3"\nhint: /],
      [['migrate', 'audit', '--repair', '--last'], 2, /what was found earlier cannot be repaired\nhint: /],
      [
        ['keyspace', 'join', 'settings'],
        4,
        /are on shard "s2"\nhint: .*"foreshard migrate plan move settings --to s1"/,
      ],
    ] as const)
      expect(await foreshard(...args)).toMatchObject({ code, stdout: '', stderr: expect.stringMatching(why) });
    const replica = await json<{ id: number }>('migrate', 'replica', 'settings', 's1', '--max-staleness', '1s');
    expect(await carryOut(replica.id)).toMatchObject({
      code: 1,
      stdout: expect.stringMatching(
        /error: the migration cannot start: keyspace "settings" has no key, and replicas of such a keyspace are not supported yet\. Move it instead/,
      ),
    });

    // It is in the way until somebody has seen it.
    await json('migrate', 'abort', `${replica.id}`);
    const isAborted = async () => (await json<Shown>('migrate', 'show', `${replica.id}`)).state === 'aborted';
    await withMigrator(() => waitFor(isAborted, { what: 'the abort' }));

    // Rows of a keyspace without a key are all one shard's.
    expect((await foreshard('migrate', 'audit')).code).toBe(0);
    const on = (shard: EmbeddedCluster, sql: string) => withClient(shard.url('shop'), (c) => c.query(sql));
    await on(two, `INSERT INTO settings VALUES ('of both')`);
    await on(one, `INSERT INTO settings VALUES ('of both'), ('stray')`);
    const found = await foreshard('migrate', 'audit');
    expect(found).toMatchObject({
      code: 1,
      stdout: expect.stringMatching(
        /^FOUND {4}shard s1: 2 rows of public\.settings belong to other shards\n.*\n1 finding\(s\)\.\n$/,
      ),
    });
    expect((await foreshard('migrate', 'audit', '--repair')).stdout).toMatch(/^NOT DONE shard s1: 2 rows/);
    expect((await on(one, 'SELECT name FROM settings')).rows).toEqual([{ name: 'stray' }]);
    expect((await on(two, 'SELECT name FROM settings')).rows).toEqual([{ name: 'of both' }]);
    await on(one, 'DELETE FROM settings');
    expect((await foreshard('migrate', 'audit')).code).toBe(0);
    const back = await json<Planned>('migrate', 'plan', 'move', 'settings', '--to', 's1');
    await json('migrate', 'approve', `${back.change}`);
    expect((await carryOut(back.change as number)).code).toBe(0);
    expect(await foreshard('keyspace', 'join', 'settings')).toMatchObject({
      code: 0,
      stdout: 'The tables of keyspace "settings" are in no keyspace any more.\n',
    });
  });
});
