import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { RoleQuery } from '../../../proxy/auth/role-query.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;

beforeAll(async () => {
  cluster = await startTestCluster();
}, 120_000);

const query = (home: () => string) =>
  new RoleQuery({ sql: null, login: null, timeoutMs: 30_000, home: () => ({ name: 's1', url: home() }) });
const connections = () =>
  withClient(cluster.url(), async (client) => {
    const sql = `SELECT FROM pg_stat_activity WHERE application_name = 'foreshard auth'`;
    return (await client.query(sql)).rowCount;
  });
/** More than there are connections for. */
const crowd = (roles: RoleQuery) => Promise.all(Array.from({ length: 10 }, () => roles.role('postgres')));
const answers = Array.from({ length: 10 }, () => ({ canLogin: true }));

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
});
