import { beforeAll, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { matchesVerifier, parseVerifier } from '../../proxy/wire/scram.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { buildCli, type CliOptions, cli } from './run-cli.js';

let cluster: EmbeddedCluster;
let catalog: string;

beforeAll(async () => {
  [cluster] = await Promise.all([startTestCluster(), buildCli()]);
  catalog = cluster.url('foreshard');
  await withClient(cluster.url(), (c) => c.query('CREATE DATABASE foreshard'));
  expect(await cli(['init', '--catalog', catalog, '--database', 'shop'])).toMatchObject({ code: 0 });
});

const user = (args: readonly string[], options: CliOptions = {}) =>
  cli(['user', ...args, '--catalog', catalog], options);

/** Whether the catalog has this password for the user. */
async function has(name: string, password: string): Promise<boolean> {
  const rows = await withClient(
    catalog,
    async (c) =>
      (await c.query<{ v: string }>('SELECT verifier AS v FROM foreshard.login_user WHERE name = $1', [name])).rows,
  );
  const verifier = parseVerifier(rows[0]?.v ?? '');
  return verifier !== null && (await matchesVerifier(password, verifier));
}

it('adds users with a password from standard input, the environment or a verifier, and keeps none of them', async () => {
  const added = await user(['add', 'app'], { input: 'p@ss wörd\n' });
  expect(added).toMatchObject({ code: 0, stdout: 'User "app" is added.\n', stderr: '' });
  expect(await has('app', 'p@ss wörd')).toBe(true);
  const changed = await user(['add', 'app', '--password-env', 'PW', '--json'], { env: { PW: 'other' } });
  expect(changed.json()).toEqual({ user: 'app', done: 'changed', validUntil: null });
  expect(await has('app', 'other')).toBe(true);
  const verifier =
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=';
  expect((await user(['add', 'report', '--verifier', verifier, '--valid-until', '2030-01-31T12:00:00Z'])).code).toBe(0);
  expect(await has('report', 'pencil')).toBe(true);

  const list = await user(['list', '--json']);
  expect(list.json()).toEqual([
    { user: 'app', validUntil: null },
    { user: 'report', validUntil: '2030-01-31T12:00:00.000Z' },
  ]);
  const table = await user(['list']);
  expect(table.stdout).toMatch(/report +2030-01-31/);
  expect(table.stdout).not.toContain('SCRAM');

  expect((await user(['remove', 'report'])).stdout).toBe('User "report" is removed.\n');
  const audit = await withClient(
    catalog,
    async (c) =>
      (await c.query(`SELECT action, object, detail::text FROM foreshard.audit WHERE action LIKE 'user %' ORDER BY id`))
        .rows,
  );
  expect(audit.map((a: { action: string; object: string }) => `${a.action} ${a.object}`)).toEqual([
    'user add app',
    'user change app',
    'user add report',
    'user remove report',
  ]);
  expect(JSON.stringify(audit)).not.toMatch(/SCRAM|other/);
});

it.each<[string, string[], CliOptions, RegExp]>([
  ['an empty password', ['add', 'x'], { input: '\n' }, /the password is empty/],
  ['a variable that is not set', ['add', 'x', '--password-env', 'NOT_THERE'], {}, /NOT_THERE is not set/],
  [
    'an md5 hash',
    ['add', 'x', '--verifier', 'md5d8578edf8458ce06fbc5bb76a58c5ca4'],
    {},
    /not a SCRAM-SHA-256 verifier/,
  ],
  ['a time that is none', ['add', 'x', '--valid-until', 'soon'], { input: 'p' }, /"soon" is not a time/],
  ['a name that is too long', ['add', 'x'.repeat(64)], { input: 'p' }, /cannot be the name of a user/],
  ['a user who is not there', ['remove', 'nobody'], {}, /there is no user "nobody" in the catalog/],
])('refuses %s', async (_name, args, options, message) => {
  const result = await user(args, options);
  expect(result.stderr).toMatch(message);
  expect(result.code).toBe(2);
  expect(result.stdout).toBe('');
});
