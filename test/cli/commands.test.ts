import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { buildCli, CLI, type CliResult, cli } from './run-cli.js';
import { temporaryDirectory } from './temporary-directory.js';
import { commandsOn, warm } from './warm-cli.js';

let one: EmbeddedCluster;
let two: EmbeddedCluster;
let catalog: string;
/** A second catalog on the same server, for what must not disturb the first. */
let empty: string;

beforeAll(async () => {
  [one, two] = await Promise.all([startTestCluster(), startTestCluster(), buildCli()]);
  catalog = one.url('foreshard');
  empty = one.url('foreshard_empty');
  for (const cluster of [one, two]) await withClient(cluster.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(one.url('shop'), (client) =>
    client.query(`
      CREATE ROLE app LOGIN PASSWORD 'secret';
      CREATE TABLE tenants (id bigint PRIMARY KEY, name text);
      CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, total numeric, PRIMARY KEY (tenant_id, id));
      CREATE TABLE "Odd Names" ("Tenant" bigint NOT NULL, "order" int, PRIMARY KEY ("Tenant", "order"));
      CREATE TABLE by_text (tenant_id text PRIMARY KEY);
      CREATE TABLE countries (code text PRIMARY KEY);
      INSERT INTO orders SELECT t, o, 1 FROM generate_series(1, 100) t, generate_series(1, 10) o;
    `),
  );
});

/** Each in a process of its own, as a user would. */
const on = (url: string, ...args: string[]) => cli([...args, '--catalog', url]);
const { foreshard, json } = commandsOn(() => catalog);

/** Every failure looks alike: nothing on stdout, one message, perhaps a hint, no stack, no password. */
function expectFailure(result: CliResult, code: number, message: RegExp): void {
  expect(result.stderr).toMatch(message);
  expect(result.code).toBe(code);
  expect(result.stdout).toBe('');
  expect(result.stderr).toMatch(/^foreshard: [^\n]+\n(hint: [^\n]+\n)?$/);
  expect(result.stderr).not.toContain(one.password);
}

interface TopologyJson {
  epoch: number;
  database: string;
  shards: { name: string; url: string; home: boolean; capacityMsPerSecond: number | null }[];
  keyspaces: {
    name: string;
    tables: { table: string; keyColumns: string[] }[];
    ranges: { lo: string[] | null; hi: string[] | null; shard: string }[];
  }[];
  referenceTables: { table: string; shards: string[] }[];
}

describe('the command line itself', () => {
  it.each([
    [[]],
    [['nonsense']],
    [['topology']],
    [['topology', 'show', '--nonsense']],
    [['migrate', 'show']],
    [['migrate', 'show', 'x', '--catalog', 'postgresql://u@127.0.0.1/d', '--config', '/nowhere.yaml']],
    [['shard', 'add', 's1']],
    [['keyspace', 'create', 'k', '--key']],
    [['keyspace', 'create', 'k', '--key', 'int8', '--method', 'list']],
  ])('ends with 2, a message and a hint for %j', async (args) => {
    expectFailure(await cli(args), 2, /^foreshard: .+\nhint: /);
  });

  it.each([
    'init',
    'demo',
    'shard add',
    'shard list',
    'shard remove',
    'keyspace create',
    'keyspace list',
    'table add',
    'table list',
    'topology show',
    'check',
    'explain',
    'plan',
    'plan approve',
    'up',
    'serve',
    'migrate list',
    'migrate show',
    'migrate watch',
    'migrate flip',
    'migrate verify',
    'migrate throttle',
    'migrate abort',
    'migrate rollback',
    'migrate finish',
    'migrate audit',
    'migrate pause',
    'migrate resume',
  ])('%s --help shows an example and the exit codes', async (command) => {
    const { code, stdout, stderr } = await warm([...command.split(' '), '--help']);
    expect(code).toBe(0);
    expect(stderr).toBe('');
    expect(stdout).toMatch(new RegExp(`Examples:\\s+foreshard ${command}`));
    expect(stdout).toMatch(/Exit codes: 0 ok/);
  });

  it('suggests the command that was meant', async () => {
    expectFailure(await cli(['topolgy']), 2, /did you mean topology\?/);
  });

  describe('loads what it needs only', () => {
    const away = ['--catalog', 'postgresql://u@127.0.0.1:1/foreshard'];
    /** Packages that a Node program has loaded. */
    function packagesOf(program: readonly string[]): Set<string> {
      const file = join(loaded, 'modules');
      rmSync(file, { force: true });
      const asUrl = (code: string) => `data:text/javascript,${encodeURIComponent(code)}`;
      const hook = asUrl(`import { appendFileSync } from 'node:fs';
        export const load = (url, context, next) => { appendFileSync(${JSON.stringify(file)}, url + '\\n'); return next(url, context); };`);
      const register = asUrl(`import { register } from 'node:module'; register(${JSON.stringify(hook)});`);
      spawnSync(process.execPath, ['--import', register, ...program]);
      const modules = readFileSync(file, 'utf8').split('\n');
      return new Set(modules.map((url) => /.*\/node_modules\/(@[^/]+\/[^/]+|[^/]+)/.exec(url)?.[1] ?? ''));
    }
    const loaded = temporaryDirectory('foreshard-loaded-');
    const HEAVY = ['libpg-query', 'zod', 'yaml', 'pino', '@bsull/augurs', 'pg-copy-streams'];

    it.each([
      [['--help'], ['pg', ...HEAVY]],
      [['migrate', 'plan', 'vertical', '--help'], HEAVY],
      [['migrate', 'list', ...away], HEAVY],
      [['migrate', 'plan', 'move', 'shop', '--to', 's2', ...away], HEAVY],
      [['plan', 'list', ...away], HEAVY],
      [['shard', 'list', ...away], HEAVY],
    ])('%j', (args, heavy) => {
      const packages = packagesOf([CLI, ...args]);
      expect(packages).toContain('yargs');
      for (const name of heavy) expect(packages).not.toContain(name);
    });

    it('the parent of serve, which lives as long as the service', () => {
      const parts = ['commands/serve', 'processes/parent'].map((part) => join(dirname(CLI), `${part}.js`));
      const packages = packagesOf(['--input-type=module', '-e', parts.map((p) => `import '${p}';`).join('')]);
      expect(packages).toContain('pino');
      for (const name of ['pg', 'libpg-query', 'zod', 'yaml']) expect(packages).not.toContain(name);
    });
  });

  it('does in one process, again and again, what it does in processes of its own', async () => {
    const catalogs = [one.url('postgres'), 'postgresql://u:p@127.0.0.1:1/foreshard'];
    const lines = [
      ...catalogs.map((url) => ['topology', 'show', '--verbose', '--catalog', url]),
      ['migrate', 'list', '--help'],
      ['migrate', 'lst'],
      ['--version'],
    ];
    for (const args of lines) {
      const { code, stdout, stderr } = await cli(args);
      for (let again = 0; again < 2; again++) {
        const repeated = await warm(args);
        expect({ code: repeated.code, stdout: repeated.stdout }).toEqual({ code, stdout });
        // Stacks begin elsewhere.
        const said = (text: string) => text.replace(/^ +at .*\n/gm, '');
        expect(said(repeated.stderr)).toBe(said(stderr));
      }
    }
  });

  it('prints a completion script, and completes', async () => {
    expect((await cli(['completion'])).stdout).toMatch(/###-begin-foreshard-completions-###/);
    const { stdout } = await cli(['--get-yargs-completions', 'foreshard', 'shard', '']);
    expect(stdout).toMatch(/^add\b/m);
    expect(stdout).toMatch(/^remove\b/m);
  });

  it('says where a catalog can be given when none is', async () => {
    expectFailure(
      await cli(['topology', 'show']),
      2,
      /no catalog given\nhint: .*--config.*--catalog.*FORESHARD_CATALOG/,
    );
  });

  it('ends with 3 when the catalog is away, is none, or refuses the password', async () => {
    expectFailure(
      await on('postgresql://u:p@127.0.0.1:1/foreshard', 'topology', 'show'),
      3,
      /127\.0\.0\.1:1.*ECONNREFUSED/,
    );
    expectFailure(
      await on(one.url('postgres'), 'topology', 'show'),
      3,
      /there is no catalog in .*\nhint: Run "foreshard init"/,
    );
    const wrong = one.url('foreshard').replace(one.password, 'wrong-password');
    expectFailure(await on(wrong, 'topology', 'show'), 3, /password authentication failed/);
    expectFailure(await on(wrong, 'init'), 3, /password authentication failed/);
  });

  it('shows a stack only with --verbose', async () => {
    const { stderr } = await on(one.url('postgres'), 'topology', 'show', '--verbose');
    expect(stderr).toMatch(/\n\s+at /);
    expect(stderr).not.toContain(one.password);
  });
});

describe('from an existing database to a topology', () => {
  it('init makes the database and the catalog, and may be run again', async () => {
    expect(await json('init', '--database', 'shop')).toMatchObject({
      database: 'shop',
      epoch: 1,
      createdDatabase: true,
    });
    expect(await json('init', '--database', 'shop')).toMatchObject({ epoch: 1, createdDatabase: false });
    expectFailure(await foreshard('init', '--database', 'other'), 2, /this catalog belongs to the database "shop"/);
    expect((await on(empty, 'init')).code).toBe(0);
  });

  it('an empty catalog can be looked at', async () => {
    expect((await on(empty, 'topology', 'show')).stdout).toMatch(/No shards yet/);
    for (const list of ['shard', 'keyspace', 'table'])
      expect((await on(empty, list, 'list', '--json')).json()).toEqual([]);
    expect((await on(empty, 'migrate', 'list', '--json')).json()).toEqual({ changes: [], migrations: [] });
    expectFailure(await on(empty, 'keyspace', 'create', 'k', '--key', 'int8'), 2, /there is no shard yet/);
    expect((await on(empty, 'migrate', 'audit', '--json')).json()).toEqual({ ok: true, findings: [] });
    expectFailure(await on(empty, 'migrate', 'audit', '--last'), 2, /no migrator has audited the shards yet/);
    expectFailure(await on(empty, 'migrate', 'audit', '--last', '--repair'), 2, /cannot be repaired/);
  });

  it('shard add takes the existing database as home, then others with its roles', async () => {
    expect(await json('shard', 'add', 's1', one.url('shop'), '--capacity', '900')).toEqual({
      name: 's1',
      added: true,
      home: true,
      roles: [],
      warnings: [],
    });
    expect(await json('shard', 'add', 's1', one.url('shop'))).toMatchObject({ added: false });
    expect(await json('shard', 'add', 's2', two.url('shop'))).toMatchObject({
      name: 's2',
      added: true,
      home: false,
      roles: ['app'],
    });
    await withClient(`postgresql://app:secret@127.0.0.1:${two.port}/shop`, (client) => client.query('SELECT 1'));
    const shards = await json<{ name: string; url: string }[]>('shard', 'list');
    expect(shards.map((s) => s.name)).toEqual(['s1', 's2']);
    expect(JSON.stringify(shards)).not.toContain(one.password);
  });

  it('shard add refuses what cannot be a shard, and changes nothing', async () => {
    const before = await json<TopologyJson>('topology', 'show');
    expectFailure(await foreshard('shard', 'add', 'S 3', two.url('shop')), 2, /cannot be the name of a shard/);
    expectFailure(await foreshard('shard', 'add', 's3', 'mysql://x/y'), 2, /shard "s3" is not a PostgreSQL URL/);
    expectFailure(
      await foreshard('shard', 'add', 's3', 'postgresql://u@127.0.0.1:1/shop'),
      3,
      /shard "s3".*ECONNREFUSED/,
    );
    expectFailure(await foreshard('shard', 'add', 's3', two.url('nowhere')), 3, /shard "s3".*"nowhere" does not exist/);
    expectFailure(await foreshard('shard', 'add', 's3', two.url('shop')), 2, /same database as shard "s2"/);
    expectFailure(await foreshard('shard', 'add', 's2', two.url('postgres')), 2, /"s2" exists already/);
    expectFailure(await foreshard('shard', 'add', 's3', two.url(), '--home'), 2, /"s1" is home already/);
    expectFailure(await foreshard('shard', 'add', 's3', two.url(), '--capacity=-3'), 2, /-3 cannot be a capacity/);
    expectFailure(await foreshard('shard', 'remove', 's9'), 2, /no shard "s9"\nhint: There is: s1, s2/);
    expectFailure(await foreshard('shard', 'remove', 's1'), 4, /is the home shard/);
    expect(await json('topology', 'show')).toEqual(before);
  });

  it('keyspace create, with SQL names of types too', async () => {
    expect(await json('keyspace', 'create', 'shop', '--key', 'bigint')).toEqual({
      name: 'shop',
      method: 'range',
      keyTypes: ['int8'],
    });
    expectFailure(await foreshard('keyspace', 'create', 'shop', '--key', 'int8'), 2, /"shop" exists already/);
    expectFailure(await foreshard('keyspace', 'create', 'odd', '--key', 'json'), 2, /"json" cannot be a key type/);
  });

  it('table add', async () => {
    expect(await json('table', 'add', 'orders', '--keyspace', 'shop', '--key', 'tenant_id')).toMatchObject({
      table: 'public.orders',
      keyspace: 'shop',
      keyColumns: ['tenant_id'],
      warnings: [],
    });
    expect(await json('table', 'add', '"Odd Names"', '--keyspace', 'shop', '--key', '"Tenant"')).toMatchObject({
      table: 'public.Odd Names',
    });
    expect(await json('table', 'add', 'PUBLIC.Countries', '--reference')).toMatchObject({
      table: 'public.countries',
      reference: true,
    });
  });

  it('table add refuses what cannot be sharded, and changes nothing', async () => {
    const before = await json<TopologyJson>('topology', 'show');
    const add = (table: string, ...rest: string[]) => foreshard('table', 'add', table, ...rest);
    expectFailure(
      await add('nothing', '--keyspace', 'shop', '--key', 'id'),
      2,
      /table "public.nothing" does not exist on shard "s1"/,
    );
    expectFailure(
      await add('by_text', '--keyspace', 'shop', '--key', 'tenant_id'),
      2,
      /is text, the keyspace's key is int8/,
    );
    expectFailure(await add('tenants', '--keyspace', 'shop', '--key', 'nope'), 2, /has no column "nope"/);
    expectFailure(
      await add('tenants', '--keyspace', 'shap', '--key', 'id'),
      2,
      /no keyspace "shap"\nhint: There is: shop/,
    );
    expectFailure(await add('orders', '--keyspace', 'shop', '--key', 'tenant_id'), 2, /is in keyspace "shop" already/);
    expectFailure(await add('tenants'), 2, /needs --keyspace and --key/);
    expectFailure(await add('tenants', '--reference', '--key', 'id'), 2, /has no keyspace/);
    expectFailure(await add('a.b.c', '--reference'), 2, /not a table's name/);
    expect(await json('topology', 'show')).toEqual(before);
  });

  it('topology show', async () => {
    const topology = await json<TopologyJson>('topology', 'show');
    expect(topology).toMatchObject({
      database: 'shop',
      shards: [
        { name: 's1', home: true, capacityMsPerSecond: 900 },
        { name: 's2', home: false, capacityMsPerSecond: null },
      ],
      keyspaces: [{ name: 'shop', ranges: [{ lo: null, hi: null, shard: 's1' }] }],
      referenceTables: [{ table: 'public.countries', shards: ['s1'] }],
    });
    const text = await foreshard('topology', 'show');
    expect(text.stdout).toMatch(/Keyspace shop: range \(int8\)/);
    expect(text.stdout).toMatch(/-infinity\s+infinity\s+s1/);
    expect(text.stdout).not.toContain(one.password);
  });

  it('shard remove forgets an empty shard, which may come back', async () => {
    expect(await json('shard', 'remove', 's2')).toEqual({ name: 's2', removed: true });
    expect((await json<unknown[]>('shard', 'list')).length).toBe(1);
    expect(await json('shard', 'add', 's2', two.url('shop'), '--no-roles')).toMatchObject({ added: true, roles: [] });
  });
});

describe('check', () => {
  interface CheckJson {
    ok: boolean;
    errors: number;
    findings: { level: string; object: string; what: string; remedy: string | null }[];
  }

  it('finds servers fit for a move, and says so with 0', async () => {
    const result = await json<CheckJson>('check');
    expect(result).toMatchObject({ ok: true, errors: 0 });
    expect(result.findings.map((f) => f.object)).toEqual(
      expect.arrayContaining(['shard s1', 'shard s2', 'table public.orders on shard s1']),
    );
    expect((await foreshard('check')).stdout).toMatch(/0 error\(s\)/);
  });

  it('ends with 1 when something blocks, and names object and remedy', async () => {
    await withClient(one.url('shop'), (client) => client.query('ALTER TABLE orders REPLICA IDENTITY NOTHING'));
    try {
      const result = await foreshard('check', '--json');
      expect(result.code).toBe(1);
      const { ok, findings } = result.json<CheckJson>();
      expect(ok).toBe(false);
      const bad = findings.find((f) => f.level === 'error');
      expect(bad).toMatchObject({
        object: 'table public.orders on shard s1',
        remedy: expect.stringMatching(/REPLICA IDENTITY/),
      });
      expect((await foreshard('check')).stdout).toMatch(/ERROR {3}table public\.orders on shard s1: .*\n\s+remedy: /);
    } finally {
      await withClient(one.url('shop'), (client) => client.query('ALTER TABLE orders REPLICA IDENTITY DEFAULT'));
    }
  });

  it('has nothing to say of an empty catalog', async () => {
    expect((await on(empty, 'check')).stdout).toMatch(/no shards yet/);
  });
});

describe('passwords from the configuration', () => {
  const dir = temporaryDirectory('foreshard-cli-');

  it('are used, and stay out of the catalog', async () => {
    const file = join(dir, 'foreshard.yaml');
    const bare = (url: string) => url.replace(/:[^:@/]+@/, '@');
    writeFileSync(
      file,
      `catalog: {url: "${bare(one.url('foreshard_secret'))}", passwordEnv: PW}\ndatabase: shop\nshards: {s1: {passwordEnv: PW}}\n`,
    );
    const env = { PW: one.password };
    const run = (...args: string[]) => cli([...args, '--config', file], { env });
    expect((await run('init')).code).toBe(0);
    expect((await run('shard', 'add', 's1', bare(one.url('shop')))).code).toBe(0);
    expect((await run('keyspace', 'create', 'shop', '--key', 'int8')).code).toBe(0);
    expect((await run('table', 'add', 'orders', '--keyspace', 'shop', '--key', 'tenant_id')).code).toBe(0);
    const stored = await withClient(
      one.url('foreshard_secret'),
      async (c) => (await c.query('SELECT url FROM foreshard.shard')).rows,
    );
    expect(JSON.stringify(stored)).not.toContain(one.password);
    // The file is also found in the current directory.
    expect((await cli(['shard', 'list', '--json'], { env, cwd: dir })).json()).toMatchObject([{ name: 's1' }]);
    const unset = await cli(['shard', 'list'], { cwd: dir });
    expect(unset.code).toBe(2);
    expect(unset.stderr).toMatch(
      /foreshard\.yaml" is not valid:\n {2}catalog\.passwordEnv: the environment variable PW is not set/,
    );
  });
});

describe('migrate', () => {
  it('says which migration does not exist', async () => {
    for (const command of ['show', 'watch', 'abort', 'pause', 'resume', 'rollback', 'finish'])
      expectFailure(await foreshard('migrate', command, '77'), 2, /no migration 77/);
    expectFailure(await foreshard('migrate', 'show', 'x'), 2, /"x" is not the number of a migration/);
    expect((await foreshard('migrate', 'list')).stdout).toMatch(/No migrations yet/);
  });
});

describe('a shard that is down', () => {
  it('is named, with exit code 3, and the topology can still be seen', async () => {
    await two.crash();
    try {
      expect((await foreshard('topology', 'show')).code).toBe(0);
      expectFailure(await foreshard('table', 'add', 'tenants', '--keyspace', 'shop', '--key', 'id'), 3, /shard "s2"/);
    } finally {
      await two.restart();
    }
    expect(await json('table', 'add', 'tenants', '--keyspace', 'shop', '--key', 'id')).toMatchObject({
      table: 'public.tenants',
    });
  });
});
