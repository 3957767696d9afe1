import { beforeAll, expect, test } from 'vitest';
import { shopMoves } from '../migrator/moves.js';
import { approveMove, leftovers } from '../migrator/setting.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, startCli } from './run-cli.js';
import { commandsOn } from './warm-cli.js';

const moves = shopMoves(12, 50);
const { s } = moves;
const { foreshard } = commandsOn(() => s.catalogUrl);

beforeAll(buildCli);

interface Verified {
  same: boolean;
  tables: { table: string; rows: number; differing: number; keys: string[] }[];
}

/** Another name for a tenant at the destination, past everything that watches over it. */
const renameThere = (name: string) =>
  withClient(s.urlTwo, async (c) => {
    await c.query('SET session_replication_role = replica');
    await c.query('UPDATE tenants SET name = $1 WHERE id = 7', [name]);
  });

test('a migration that waits for its flip is watched, compared, told to flip, and finished', async () => {
  const id = String(await approveMove(s, [6n], null, 'one', 'two', { auto: false }));
  expect(await foreshard('migrate', 'verify', id)).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/is approved: it cannot be compared now/),
  });
  moves.startMigrator({ wayBackMs: 3_600_000 });
  const ready = await foreshard('migrate', 'watch', id);
  expect(ready.code).toBe(5);
  expect(ready.stdout).toContain(`"foreshard migrate flip ${id}" has it flip`);

  const same = await foreshard('migrate', 'verify', id, '--json');
  expect(same.code).toBe(0);
  expect(same.json<Verified>().tables.map(({ table, rows, differing }) => [table, rows, differing])).toEqual([
    ['public.countries', 100, 0],
    ['public.Odd Items', 350, 0],
    ['public.orders', 350, 0],
    ['public.tenants', 7, 0],
  ]);

  await renameThere('somebody else');
  const different = await foreshard('migrate', 'verify', id);
  expect(different.code).toBe(1);
  expect(different.stdout).toContain('1 rows of public.tenants differ:\n  ["7"]');
  expect(await foreshard('migrate', 'flip', id)).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/cannot flip: 1 rows of "public.tenants" differ/),
  });
  expect((await foreshard('migrate', 'watch', id)).code).toBe(5);
  const repaired = await foreshard('migrate', 'verify', id, '--repair');
  expect(repaired).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^1 rows of public\.tenants replaced:\n {2}\["7"\]\n.*both sides are the same\.$/m),
  });
  expect((await foreshard('migrate', 'show', id)).stdout).toMatch(/"repaired":.*"replaced":\["\[\\"7\\"\]"\]/);
  expect(await foreshard('migrate', 'verify', id, '--repair')).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/no rows of migration \d+ are known to differ/),
  });
  expect((await foreshard('migrate', 'verify', id)).code).toBe(0);

  const flip = await foreshard('migrate', 'flip', id);
  expect(flip).toMatchObject({ code: 0, stdout: expect.stringMatching(/flips now/) });
  const flipped = await foreshard('migrate', 'watch', id);
  expect(flipped.code).toBe(0);
  expect(flipped.stdout).toContain(`"foreshard migrate rollback ${id}" takes it back`);
  const back = await foreshard('migrate', 'verify', id, '--json');
  expect(back.code).toBe(0);
  expect(back.json<Verified>().tables.map((t) => t.rows)).toEqual([350, 350, 7]);

  expect((await foreshard('migrate', 'finish', id)).code).toBe(0);
  const done = await foreshard('migrate', 'watch', id);
  expect(done).toMatchObject({ code: 0, stdout: expect.stringMatching(/^done/m) });
  expect(await leftovers(s)).toEqual([]);
});

test('rows that differ keep a migration from flipping, also when its window opens', async () => {
  const flipWindow = { from: '00:00', to: '00:01', timeZone: 'UTC' };
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  expect((await foreshard('migrate', 'watch', `${id}`)).code).toBe(5);
  await renameThere('somebody else');
  expect((await foreshard('migrate', 'verify', `${id}`)).code).toBe(1);
  const repaired = await foreshard('migrate', 'verify', `${id}`, '--repair', '--json');
  expect(repaired.json()).toMatchObject({
    same: true,
    repaired: [{ table: 'public.tenants', added: [], replaced: ['["7"]'], removed: [] }],
    refused: null,
  });
  await renameThere('somebody else');
  expect((await foreshard('migrate', 'verify', `${id}`)).code).toBe(1);
  await s.catalog.pool.query('UPDATE foreshard.migration SET controls = controls || $2 WHERE id = $1', [
    `${id}`,
    { flipWindow: { ...flipWindow, from: '00:01', to: '00:00' } },
  ]);
  await moves.noted(id, /finds both sides the same/);
  expect((await foreshard('migrate', 'abort', `${id}`)).code).toBe(0);
  expect(await moves.atRest(id)).toBe('aborted');
});

test('rows that differ as of a flip are shown by what is wrong with them, and what a person does is said', async () => {
  const id = `${await approveMove(s, [6n], null)}`;
  moves.startMigrator({ wayBackMs: 3_600_000, sampleMs: 0 });
  expect((await foreshard('migrate', 'watch', id)).code).toBe(0);
  await withClient(s.urlOne, (c) =>
    c.query(`SET session_replication_role = replica; UPDATE tenants SET name = 'other' WHERE id = 7;
      DELETE FROM tenants WHERE id = 9; INSERT INTO tenants (id, name) VALUES (99, 'only here')`),
  );
  expect((await foreshard('migrate', 'rollback', id)).code).toBe(0);
  const watched = await foreshard('migrate', 'watch', id);
  expect(watched.code).toBe(1);
  expect(watched.stdout).toMatch(/the shards differ as of the flip back: 3 rows of "public.tenants", among them \[/);
  expect((await foreshard('migrate', 'show', id)).stdout).toContain(`
1 rows of public.tenants, on shard two only:
  ["9"]

1 rows of public.tenants, on shard one only:
  ["99"]

1 rows of public.tenants, of other values:
  ["7"]
`);
  for (const repair of [[], ['--repair']])
    expect(await foreshard('migrate', 'verify', id, ...repair)).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(
        /found rows that differed as of its flip\nhint: .* of shard "two" is the right one write it through the proxy; then "foreshard migrate accept/,
      ),
    });
  expect((await foreshard('migrate', 'accept', id)).code).toBe(0);
  expect(await moves.atRest(BigInt(id))).toBe('rolled_back');
  expect((await foreshard('migrate', 'show', id)).stdout).not.toContain('on shard two only');
  expect(await leftovers(s)).toEqual([]);
});

test('Ctrl-C ends the watching and leaves the migration alone', async () => {
  const id = await approveMove(s, [6n], null);
  const watching = startCli(['migrate', 'watch', `${id}`, '--catalog', s.catalogUrl]);
  await waitFor(() => watching.stdout().startsWith('approved'), { what: 'the first line' });
  watching.child.kill('SIGINT');
  const { code, stderr } = await watching.ended;
  expect(code).toBe(130);
  expect(stderr).toContain(`migration ${id} goes on without being watched`);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('done');
});

test('a replica is made, read on other terms, and promoted', async () => {
  const make = (...args: string[]) => foreshard('migrate', 'replica', 'tenant', ...args);
  const refused: [string[], number, RegExp][] = [
    [['nowhere', '--max-staleness', '2s'], 2, /there is no shard "nowhere"/],
    [['two', '--max-staleness', 'never'], 2, /"never" is not a length of time/],
    [['two'], 2, /max-staleness/],
    [['two', '--max-staleness', '2s', '--read-percent', '101'], 2, /101 is not a percentage/],
    [['two', '--max-staleness', '2s', '--lower', '9', '--upper', '9'], 2, /the interval is empty/],
  ];
  for (const [args, code, stderr] of refused)
    expect(await make(...args)).toMatchObject({ code, stderr: expect.stringMatching(stderr) });
  const made = await make('two', '--lower', '6', '--max-staleness', '2s', '--json');
  const { id: number, ...terms } = made.json<{ id: number }>();
  const id = String(number);
  expect(terms).toEqual({ from: 'one', to: 'two', replica: { maxStalenessMs: 2000, readPercent: 0 } });

  expect(await foreshard('migrate', 'promote', id)).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/is approved/),
  });
  moves.startMigrator();
  const following = await foreshard('migrate', 'watch', id);
  expect(following).toMatchObject({ code: 0, stdout: expect.stringContaining(`"foreshard migrate promote ${id}"`) });

  expect(await foreshard('migrate', 'reads', id)).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/nothing to change/),
  });
  const replicas = async () => (await s.catalog.loadTopology()).replicas;
  expect(await replicas()).toHaveLength(1);
  expect((await foreshard('migrate', 'reads', id, '--read-percent', '10', '--max-staleness', '1s')).code).toBe(0);
  expect(await replicas()).toMatchObject([{ readPercent: 10, maxStalenessMs: 1000, lo: [6n], hi: null }]);
  expect((await foreshard('migrate', 'reads', id, '--read-percent', '0', '--json')).json()).toEqual({
    id: number,
    readPercent: 0,
  });

  expect((await foreshard('migrate', 'promote', id)).stdout).toContain('is promoted');
  expect(await moves.atRest(BigInt(id))).toBe('done');
  expect(await foreshard('migrate', 'promote', id)).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/is done/),
  });
  expect(await foreshard('migrate', 'reads', id, '--read-percent', '5')).toMatchObject({ code: 4 });
  expect(await leftovers(s)).toEqual([]);
});

test('what becomes of transactions at the flip is said, changed and taken back', async () => {
  const id = await approveMove(s, [6n], null);
  const afterMs = async () => (await moves.load(id)).controls.endTransactionsAfterMs;
  const say = (after: string, ...more: string[]) => foreshard('migrate', 'end-transactions', `${id}`, after, ...more);
  expect((await say('1.5s')).stdout).toContain('ends transactions that are still open on its interval after 1500 ms');
  expect(await afterMs()).toBe(1500);
  expect((await say('0', '--json')).json()).toEqual({ id: Number(id), endTransactionsAfterMs: 0 });
  expect((await say('off')).stdout).toContain('backs off from transactions');
  expect(await afterMs()).toBeNull();
  expect(await say('11min')).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/"11min" is not a time of at most 10 min/),
  });
  await s.catalog.pool.query(`UPDATE foreshard.migration SET state = 'aborted'`);
  expect(await say('1s')).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(/is aborted: there is nothing to change/),
  });
});
