import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { dropPublicationSql } from '../../migrator/replication.js';
import { ShardSession } from '../../migrator/shard-session.js';
import type { Shard } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';

// Whoever writes to a table looks for its publications, and then at each: none may go in between (XX000).

let session: ShardSession;
let writer: pg.Client;

beforeAll(async () => {
  const url = (await startTestCluster()).url();
  session = await ShardSession.open({ name: 's1', url } as unknown as Shard, null);
  writer = new pg.Client(url);
  await writer.connect();
  await writer.query(`CREATE SCHEMA "My Shop"; CREATE TABLE "My Shop"."Orders" (id int PRIMARY KEY, n int);
    CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT;
    INSERT INTO "My Shop"."Orders" VALUES (1, 0); INSERT INTO parted VALUES (1, 0)`);
});
afterAll(async () => {
  await writer.end();
  await session.close();
});

const drop = (lockMs: number) =>
  session.transaction([`SET LOCAL lock_timeout = ${lockMs}`, dropPublicationSql("it's ours")]);
const left = async () => (await session.query('SELECT FROM pg_publication')).length;

test.each(['"My Shop"."Orders"', 'part'])('a publication does not go while somebody writes to %s', async (table) => {
  await writer.query(
    `CREATE PUBLICATION "it's ours" FOR TABLE "My Shop"."Orders" WHERE (id > 0), parted WITH (publish_via_partition_root = true)`,
  );
  await writer.query(`BEGIN; UPDATE ${table} SET n = n + 1`);
  await expect(drop(50)).rejects.toMatchObject({ code: '55P03' });
  expect(await left()).toBe(1);
  await writer.query('COMMIT');
  await drop(10_000);
  expect(await left()).toBe(0);
});

test('one that is not there is none to drop', async () => {
  await drop(50);
  expect(await left()).toBe(0);
});
