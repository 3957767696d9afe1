import { pino } from 'pino';
import { beforeEach, expect, test } from 'vitest';
import { AuditInterrupted, Portions } from '../../migrator/audit/portions.js';
import { auditStandingly, lastAudit } from '../../migrator/audit/standing-audit.js';
import { ShardSession } from '../../migrator/shard-session.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove } from './setting.js';

const moves = shopMoves(12, 20);
const { s } = moves;
const logged: { level: number; msg: string }[] = [];

beforeEach(async () => {
  await s.catalog.pool.query('TRUNCATE foreshard.audit');
  logged.length = 0;
});

function startAudits(everyMs: number, processes = 1): void {
  const controller = new AbortController();
  const logger = pino({}, { write: (line) => void logged.push(JSON.parse(line)) });
  const running = Array.from({ length: processes }, () =>
    auditStandingly({ catalog: s.catalog, logger, everyMs }, controller.signal),
  );
  moves.atStop(async () => {
    controller.abort();
    await Promise.all(running);
  });
}

const audits = async () => (await s.catalog.pool.query("SELECT FROM foreshard.audit WHERE action = 'audit'")).rowCount;

test('what is wrong is found without anybody asking, logged, and kept for who asks later', async () => {
  expect(await lastAudit(s.catalog)).toBeNull();
  startAudits(100);
  expect(await waitFor(() => lastAudit(s.catalog), { what: 'an audit' })).toMatchObject({ findings: [] });
  await withClient(s.urlTwo, async (c) => {
    await c.query('CREATE TABLE tenants (id int PRIMARY KEY, name text)');
    await c.query("INSERT INTO tenants VALUES (3, 'stray')");
  });
  const finding = { kind: 'rows', shard: 'two', object: 'public.tenants', outcome: 'open' };
  await waitFor(async () => ((await lastAudit(s.catalog))?.findings.length ?? 0) > 0, { what: 'the finding' });
  expect((await lastAudit(s.catalog))?.findings).toMatchObject([finding]);
  expect(logged.filter(({ level }) => level === 40).map(({ msg }) => msg)).toContain(
    '1 rows of public.tenants belong to other shards',
  );
});

test('it is one process’s work, and is not done again before its time', async () => {
  startAudits(3_600_000, 4);
  await waitFor(async () => (await audits()) === 1, { what: 'an audit' });
  await waitFor(() => logged.some(({ msg }) => msg === 'the shards have been audited'), { what: 'its end' });
  startAudits(3_600_000);
  await moves.stop();
  expect(await audits()).toBe(1);
});

test('it leaves a migration alone', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  await s.catalog.pool.query("UPDATE foreshard.migration SET state = 'ready' WHERE id = $1", [id.toString()]);
  startAudits(50);
  await moves.stop();
  expect(await audits()).toBe(0);
  await s.catalog.pool.query("UPDATE foreshard.migration SET state = 'aborted' WHERE id = $1", [id.toString()]);
  startAudits(50);
  await waitFor(async () => ((await audits()) ?? 0) > 0, { what: 'an audit' });
});

test('a migration that begins interrupts it, and it goes on where it was', async () => {
  await withClient(s.urlOne, (c) => c.query("UPDATE tenants SET name = repeat('x', 1900)"));
  const looked: [string, number][] = [];
  let stop = false;
  const portions = new Portions(false, async () => stop);
  const [session] = [await ShardSession.open({ name: 'one', url: s.urlOne } as never, null)];
  moves.atStop(() => session.close());
  const look = (_heap: string, first: number) => {
    looked.push(['tenants', first]);
    stop = first === 1;
    return Promise.resolve(1);
  };
  const all = () => portions.of(session, 'public.tenants', { most: 1, resumes: true }, look);
  await expect(all()).rejects.toThrow(AuditInterrupted);
  stop = false;
  const pages = await all();
  expect(pages).toBeGreaterThan(2);
  expect(looked.map(([, first]) => first)).toEqual(Array.from({ length: pages }, (_, i) => i));
});

test('what a statement cannot look through in its time is looked through in smaller portions', async () => {
  await withClient(s.urlOne, (c) => c.query("UPDATE tenants SET name = repeat('x', 1900)"));
  const session = await ShardSession.open({ name: 'one', url: s.urlOne } as never, null);
  moves.atStop(() => session.close());
  await session.query('SET statement_timeout = 200');
  let tries = 0;
  const found = await new Portions(false).of(
    session,
    'public.tenants',
    { most: 8, resumes: false },
    async (_heap, first, end) => {
      tries += 1;
      if (end - first > 2) await session.query('SELECT pg_sleep(60)');
      const rows = await session.query(
        `SELECT FROM public.tenants WHERE ctid >= '(${first},0)' AND ctid < '(${end},0)'`,
      );
      return rows.length;
    },
  );
  expect(found).toBe(12);
  expect(tries).toBeGreaterThan(3);
});
