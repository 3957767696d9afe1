import { afterAll, beforeAll, expect, it } from 'vitest';
import { LoadClient } from '../../bench/load/load-client.js';
import { type Draw, GENERATED } from '../../bench/load/workloads.js';
import { PROTOCOLS, WORKLOADS, type WorkloadName } from '../../bench/results/results.js';
import { createDatabase, createRole, fillDatabase, tidy, USER, withServer } from '../../bench/suite/data.js';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { startTestCluster } from '../support/cluster.js';

const TRANSACTIONS = 60;

let cluster: EmbeddedCluster;
let clients: LoadClient[] = [];

beforeAll(async () => {
  cluster = await startTestCluster();
  await createRole(cluster, cluster.password);
  await createDatabase(cluster, 'bench');
  await fillDatabase(cluster, 'bench', 1, 'true');
});
afterAll(() => {
  for (const client of clients) client.end();
  clients = [];
});

/** A sequence that is the same in each run and reaches every branch of the mix. */
function draws(): Draw {
  let at = 0;
  return (n) => {
    at += 7919;
    return (at % n) + 1;
  };
}

/** Runs so many transactions of a workload. */
function perform(workload: WorkloadName, protocol: (typeof PROTOCOLS)[number]): Promise<number> {
  const draw = draws();
  let count = 0;
  return new Promise((resolve, reject) => {
    const done = () => {
      count += 1;
      if (count < TRANSACTIONS) return true;
      resolve(count);
      return false;
    };
    const login = { port: cluster.port, user: USER, password: cluster.password, database: 'bench', protocol };
    LoadClient.connect(login, { next: () => GENERATED[workload](draw, 1), done, failed: reject }).then((client) => {
      clients.push(client);
      client.start();
    }, reject);
  });
}

const ask = (sql: string) =>
  withServer(cluster.url('bench'), async (client) => (await client.query<Record<string, string>>(sql)).rows[0]);

for (const workload of WORKLOADS)
  for (const protocol of PROTOCOLS)
    it(`${workload}, ${protocol}: the server carries out every transaction, and can be tidied up after it`, async () => {
      const before = await ask(
        'SELECT (SELECT sum(abalance) FROM pgbench_accounts) AS accounts, (SELECT count(*) FROM items) AS items',
      );
      expect(await perform(workload, protocol)).toBe(TRANSACTIONS);
      const after =
        await ask(`SELECT (SELECT sum(abalance) FROM pgbench_accounts) AS accounts, (SELECT count(*) FROM items) AS items,
        (SELECT count(*) FROM pgbench_history) AS history, (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS delta`);
      expect(Number(after?.history)).toBe(workload === 'tpcb' || workload === 'key' ? TRANSACTIONS : 0);
      expect(Number(after?.accounts) - Number(before?.accounts)).toBe(Number(after?.delta));
      if (workload === 'orm') expect(Number(after?.items)).toBeGreaterThan(Number(before?.items));
      await tidy(workload, [cluster.url('bench')]);
      expect(
        await ask('SELECT (SELECT count(*) FROM items) AS items, (SELECT count(*) FROM pgbench_history) AS history'),
      ).toEqual({
        items: before?.items,
        history: '0',
      });
    });

it('says which error the server gave', async () => {
  await withServer(cluster.url('bench'), (client) => client.query('REVOKE SELECT ON pgbench_accounts FROM bench'));
  await expect(perform('select', 'prepared')).rejects.toThrow(
    'ERROR 42501: permission denied for table pgbench_accounts',
  );
});
