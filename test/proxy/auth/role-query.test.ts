import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { RoleQuery } from '../../../proxy/auth/role-query.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;

beforeAll(async () => {
  cluster = await startTestCluster();
});

const query = (home: () => string) =>
  new RoleQuery({ sql: null, login: null, timeoutMs: 30_000, home: () => ({ name: 's1', url: home() }) });
const connections = () =>
  withClient(cluster.url(), async (client) => {
    const sql = `SELECT FROM pg_stat_activity WHERE application_name = 'foreshard auth'`;
    return (await client.query(sql)).rowCount;
  });
/** More than there are connections for, and each asked for by itself. */
const NAMES = [
  'postgres',
  'pg_database_owner',
  'pg_monitor',
  'pg_read_all_data',
  'pg_read_all_settings',
  'pg_read_all_stats',
  'pg_write_all_data',
  'nobody',
];
const crowd = (roles: RoleQuery) => Promise.all(NAMES.map((name) => roles.role(name)));
const answers = NAMES.map((name) => (name === 'nobody' ? null : { canLogin: name === 'postgres' }));

describe('look-ups of users', () => {
  it('are answered when the configuration is read again meanwhile, and leave no connection', async () => {
    const roles = query(() => cluster.url());
    const begun = crowd(roles);
    const closed = roles.close();
    expect(await begun).toEqual(answers);
    await closed;
    // A login that began before it may ask later.
    expect(await crowd(roles)).toEqual(answers);
    await waitFor(async () => (await connections()) === 0, { what: 'the connections to be closed' });
  });

  it('are answered when the home shard gets another address meanwhile', async () => {
    let url = cluster.url();
    const roles = query(() => url);
    const begun = crowd(roles);
    url = cluster.url('template1');
    expect(await crowd(roles)).toEqual(answers);
    expect(await begun).toEqual(answers);
    await roles.close();
    await waitFor(async () => (await connections()) === 0, { what: 'the connections to be closed' });
  });

  it('of one role that logs in many times at once are two: the first, and one for all who came while that ran', async () => {
    let asked = 0;
    const roles = query(() => {
      asked += 1;
      return cluster.url();
    });
    const found = await Promise.all(Array.from({ length: 20 }, () => roles.role('postgres')));
    expect(found).toEqual(Array.from({ length: 20 }, () => ({ canLogin: true })));
    expect(asked).toBe(2);
    await withClient(cluster.url(), (client) => client.query('CREATE ROLE late LOGIN'));
    const before = roles.role('late');
    await withClient(cluster.url(), (client) => client.query('ALTER ROLE late NOLOGIN'));
    expect(await roles.role('late')).toEqual({ canLogin: false });
    expect(await before).not.toBeNull();
    await roles.close();
  });
});
