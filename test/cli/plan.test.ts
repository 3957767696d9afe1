import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, cli, startCli } from './run-cli.js';
import { temporaryDirectory } from './temporary-directory.js';
import { commandsOn } from './warm-cli.js';

let one: EmbeddedCluster;
let two: EmbeddedCluster;
let catalog: string;
const dir = temporaryDirectory('foreshard-plan-');

const { foreshard, json } = commandsOn(() => catalog);

interface PlanJson {
  verdict: string;
  epoch: string;
  proposal: { spec: { from: string; to: string; lo: string[] | null; hi: string[] | null }; rows: number } | null;
  plan: { id: string; status: string } | null;
  dryRun?: { findings: unknown[]; steps: { text: string; sql: string[] }[] };
}

interface PlanRow {
  id: number;
  status: string;
  migration: { id: number; state: string } | null;
}

interface TopologyJson {
  epoch: number;
  keyspaces: { ranges: { lo: string[] | null; hi: string[] | null; shard: string }[] }[];
}

/** Three weeks of hours on four segments, a daily wave, lowest now whatever the time of day, that grows until it passes 900 ms/s within a day. */
const HISTORY = `
  DELETE FROM foreshard.segment;
  INSERT INTO foreshard.segment (keyspace, lo, hi) VALUES
    ('shop', NULL, '["26"]'), ('shop', '["26"]', '["51"]'), ('shop', '["51"]', '["76"]'), ('shop', '["76"]', NULL);
  INSERT INTO foreshard.load (step_seconds, at, segment_id, reads, writes, rows, bytes, server_ms)
  SELECT 3600, at, s.id, 36000, 3600, 40000, 4000000,
         3600 * (560 + extract(epoch FROM at - (now() - interval '21 days')) / 86400 * 18)
              * (0.75 + 0.25 * sin(2 * pi() * (extract(epoch FROM at - date_trunc('hour', now())) / 86400 - 0.25))) / 4
    FROM generate_series(date_trunc('hour', now()) - interval '21 days', date_trunc('hour', now()) - interval '1 hour', '1 hour') at,
         foreshard.segment s;
  INSERT INTO foreshard.key_sample (segment_id, key, weight)
  SELECT s.id, jsonb_build_array(k::text), 1 FROM foreshard.segment s, generate_series(1, 100) k
   WHERE k >= coalesce((s.lo->>0)::int, 0) AND k < coalesce((s.hi->>0)::int, 1000)`;

async function ordersOn(cluster: EmbeddedCluster): Promise<number> {
  return withClient(cluster.url('shop'), async (client) =>
    Number((await client.query('SELECT count(*) AS n FROM orders')).rows[0].n),
  );
}

beforeAll(async () => {
  [one, two] = await Promise.all([startTestCluster(), startTestCluster(), buildCli()]);
  catalog = one.url('foreshard');
  for (const cluster of [one, two]) await withClient(cluster.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(one.url('shop'), (client) =>
    client.query(`
      CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, note text, PRIMARY KEY (tenant_id, id));
      INSERT INTO orders SELECT t, o, repeat('x', 50) FROM generate_series(1, 100) t, generate_series(1, 50) o;
      ANALYZE orders;
    `),
  );
  for (const args of [
    ['init', '--database', 'shop'],
    ['shard', 'add', 's1', one.url('shop'), '--capacity', '900'],
    ['shard', 'add', 's2', two.url('shop'), '--capacity', '900'],
    ['keyspace', 'create', 'shop', '--key', 'int8'],
    ['table', 'add', 'orders', '--keyspace', 'shop', '--key', 'tenant_id'],
  ])
    expect(await foreshard(...args)).toMatchObject({ code: 0, stderr: '' });
});

describe('plan', () => {
  it('says that it knows too little, and proposes nothing', async () => {
    const report = await json<PlanJson>('plan');
    expect(report).toMatchObject({ proposal: null, plan: null });
    expect((await foreshard('plan')).stdout).toMatch(/history/);
    expect(await json('plan', 'list')).toEqual([]);
    expect(await foreshard('plan', 'approve', '1')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/no plan 1/),
    });
    expect(await foreshard('plan', 'show', 'x')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/"x" is not the number of a plan/),
    });
  });

  it('reports on the terminal, as JSON and as a page, and changes nothing', async () => {
    await withClient(catalog, (client) => client.query(HISTORY));
    const before = await json('topology', 'show');
    const unsaved = await json<PlanJson>('plan', '--no-save');
    expect(unsaved.verdict).toMatch(/"s1" is expected to pass its capacity of 900/);
    expect(unsaved.proposal?.spec).toMatchObject({ from: 's1', to: 's2' });
    expect(unsaved.plan).toBeNull();

    const page = join(dir, 'report.html');
    const text = await foreshard('plan', '--html', page);
    expect(text).toMatchObject({ code: 0, stderr: '' });
    expect(text.stdout).toMatch(/plan 1/);
    expect(text.stdout).toContain(page);
    expect(readFileSync(page, 'utf8')).toMatch(/^<!doctype html>.*<svg/is);
    expect(await foreshard('plan', '--html', '/nowhere/x.html')).toMatchObject({ code: 2 });
    expect(await json('topology', 'show')).toEqual(before);
    expect(await ordersOn(two).catch((error: { code: string }) => error.code)).toBe('42P01');
  });

  it('shows every step of the migration without passwords', async () => {
    const shown = await json<PlanJson>('plan', 'show', '1', '--steps');
    expect(shown.dryRun?.steps.length).toBeGreaterThan(5);
    expect(shown.dryRun?.steps.some((s) => s.sql.some((sql) => /CREATE SUBSCRIPTION/.test(sql)))).toBe(true);
    expect(JSON.stringify(shown)).not.toContain(one.password);
    const text = await foreshard('plan', 'show', '1', '--steps');
    expect(text.stdout).toMatch(/Steps of the migration/);
  });

  it('can be rejected, once', async () => {
    expect(await json('plan', 'reject', '1')).toEqual({ id: 1, status: 'rejected' });
    expect(await foreshard('plan', 'reject', '1')).toMatchObject({ code: 4 });
    expect(await foreshard('plan', 'approve', '1')).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/already rejected/),
    });
  });
});

describe('migrate', () => {
  it('aborts a migration that has not begun, and watch ends with 1', async () => {
    const { plan } = await json<PlanJson>('plan');
    const id = plan?.id as string;
    expect(await json('plan', 'approve', id)).toEqual({ id: Number(id), status: 'approved', migration: 1 });
    expect(await foreshard('plan', 'approve', id)).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/already approved/),
    });
    expect(await json('migrate', 'abort', '1')).toEqual({ id: 1, abortRequested: true });
    const migrator = startCli(['serve', '--only', 'migrator', '--catalog', catalog]);
    const watched = await foreshard('migrate', 'watch', '1');
    expect(watched.code).toBe(1);
    expect(watched.stdout).toMatch(/^aborted/m);
    migrator.child.kill('SIGTERM');
    expect((await migrator.ended).code).toBe(143);
    expect(await foreshard('migrate', 'abort', '1')).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/already aborted/),
    });
  });

  it('carries an approved plan out, and watch follows it to the end', async () => {
    const { plan, proposal } = await json<PlanJson>('plan');
    const { migration } = await json<{ migration: number }>('plan', 'approve', plan?.id as string);
    const migrator = startCli(['serve', '--only', 'planner,migrator', '--catalog', catalog]);
    const watched = await foreshard('migrate', 'watch', String(migration));
    expect(watched).toMatchObject({ code: 0, stderr: '' });
    expect(watched.stdout.trim().split('\n').length).toBeGreaterThan(1);
    expect(watched.stdout.trim().split('\n').at(-1)).toMatch(/^done/);
    migrator.child.kill('SIGINT');
    expect((await migrator.ended).code).toBe(130);

    const { keyspaces } = await json<TopologyJson>('topology', 'show');
    const moved = keyspaces[0]?.ranges.find((r) => r.shard === 's2');
    expect({ lo: moved?.lo, hi: moved?.hi }).toEqual({ lo: proposal?.spec.lo, hi: proposal?.spec.hi });
    expect((await ordersOn(one)) + (await ordersOn(two))).toBe(5000);
    expect(await ordersOn(two)).toBeGreaterThan(0);

    const rows = await json<PlanRow[]>('plan', 'list');
    // Not the newest any more when the planner, which runs as well, has looked again.
    expect(rows.find((row) => row.id === Number(plan?.id))?.migration).toEqual({ id: migration, state: 'done' });
    const shown = await json<{ state: string; events: { state: string }[]; cleanup: { done: boolean }[] }>(
      'migrate',
      'show',
      String(migration),
    );
    expect(shown.state).toBe('done');
    expect(shown.events.map((e) => e.state)).toEqual(expect.arrayContaining(['copying', 'flipped', 'done']));
    expect(shown.cleanup.every((c) => c.done)).toBe(true);
    expect((await foreshard('migrate', 'show', String(migration))).stdout).toMatch(/done/);
    expect((await foreshard('migrate', 'list')).stdout).toMatch(/s1 → s2/);
    expect(await foreshard('shard', 'remove', 's2')).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/owns 1 range/),
    });
  });
});

describe('explain', () => {
  interface ExplainJson {
    template: string;
    statements: {
      kind: string;
      command: string;
      keySources: string[];
      touches: { keyspace: string; position: string[] | null }[];
      route: string;
      shards: string[];
      why: string;
      refusal: { sqlstate: string; message: string } | null;
    }[];
  }
  const one = async (...args: string[]) => {
    const { statements } = await json<ExplainJson>('explain', ...args);
    expect(statements.length).toBe(1);
    return statements[0] as ExplainJson['statements'][number];
  };

  it('names template, key, shard and reason, on both sides of the split', async () => {
    const first = await json<ExplainJson>('explain', 'SELECT note FROM orders WHERE tenant_id = 7 AND id = 1');
    expect(first.template).not.toContain('7');
    expect(first.statements).toMatchObject([
      {
        kind: 'read',
        command: 'SELECT',
        keySources: ['7'],
        touches: [{ keyspace: 'shop', position: ['7'] }],
        route: 'shard',
        refusal: null,
      },
    ]);
    const other = await one('INSERT INTO orders VALUES (99, 1000, NULL)');
    expect(other).toMatchObject({ kind: 'write', route: 'shard' });
    expect(new Set([...(first.statements[0]?.shards ?? []), ...other.shards])).toEqual(new Set(['s1', 's2']));
    expect((await foreshard('explain', 'SELECT note FROM orders WHERE tenant_id = 7')).stdout).toMatch(
      /template .*\nepoch .*\nkind +read \(SELECT\)\nkey from +7\ntouches +keyspace shop: 7\nroute +shard: s\d\nwhy /,
    );
  });

  it('takes values for parameters, and says what it needs without them', async () => {
    const sql = 'SELECT note FROM orders WHERE tenant_id = $1';
    expect(await one(sql)).toMatchObject({ keySources: ['$1'], route: 'by-parameter', shards: ['s1', 's2'] });
    expect(await one(sql, '--params', '[99]')).toMatchObject({ route: 'shard', touches: [{ position: ['99'] }] });
    expect(await foreshard('explain', sql, '--params', '99')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/not a JSON array/),
    });
  });

  it('says what would be refused, and why', async () => {
    expect(await one('DELETE FROM orders')).toMatchObject({
      route: 'refused',
      refusal: { sqlstate: '0A000' },
    });
    expect((await foreshard('explain', 'DELETE FROM orders')).stdout).toMatch(/route +refused: 0A000 .*\nhint +Add /);
  });

  it('says what needs rows of several shards in one place', async () => {
    expect(await one('SELECT count(*) FROM orders')).toMatchObject({
      route: 'gather',
      shards: ['s1', 's2'],
      touches: [{ keyspace: 'shop', position: null }],
      refusal: null,
    });
    expect((await foreshard('explain', 'SELECT count(*) FROM orders')).stdout).toMatch(
      /\nroute +gather: rows of s1, s2, on the home shard\nwhy +it is not restricted to a sharding key\n$/,
    );
  });

  it('tells statements apart, and a syntax error', async () => {
    const both = await json<ExplainJson>('explain', 'SELECT 1; SELECT note FROM orders WHERE tenant_id = 1');
    expect(both.statements.map((s) => s.route)).toEqual(['any', 'shard']);
    expect(await foreshard('explain', 'SELEKT 1')).toMatchObject({
      code: 2,
      stdout: '',
      stderr: expect.stringMatching(/^foreshard: syntax error at or near "SELEKT"/),
    });
  });
});

describe('serve', () => {
  it('refuses parts that it does not have', async () => {
    expect(await foreshard('serve', '--only', 'planner,router')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/"router" is not a part/),
    });
  });

  it('ends with 3 when the catalog is away', async () => {
    const away = await cli(['serve', '--only', 'planner', '--catalog', 'postgresql://u:p@127.0.0.1:1/foreshard']);
    expect(away.code).toBe(3);
    expect(away.stderr).toMatch(/foreshard: cannot use the catalog .*ECONNREFUSED/);
  });

  it('notes a SIGHUP and goes on', async () => {
    const running = startCli(['serve', '--only', 'planner', '--catalog', catalog]);
    await waitFor(() => /"msg":"ready"/.test(running.stderr()), { what: 'the planner' });
    running.child.kill('SIGHUP');
    await waitFor(() => /SIGHUP/.test(running.stderr()), { what: 'the note' });
    running.child.kill('SIGTERM');
    const { code, stdout, stderr } = await running.ended;
    expect({ code, stdout }).toEqual({ code: 143, stdout: '' });
    expect(stderr).not.toContain(one.password);
  });
});
