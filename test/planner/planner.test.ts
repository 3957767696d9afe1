import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { SavedReport } from '../../planner/plan-report.js';
import { Planner } from '../../planner/planner.js';
import { ensureSegments } from '../../planner/segments.js';
import { dealToSegments, readTrace, traceSamples } from '../../planner/trace.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { forget, type Shop, startShop, TRACE } from './support.js';

let shop: Shop;
beforeAll(async () => {
  shop = await startShop();
});
afterAll(async () => {
  await shop.close();
});
beforeEach(async () => {
  await forget(shop.catalog);
});

const NOW = Date.UTC(2026, 4, 15, 9, 20);

async function keyspace(): Promise<Keyspace> {
  const topology = await shop.catalog.loadTopology();
  return topology.keyspaces.get('tenant' as KeyspaceName) as Keyspace;
}

/** Eight weeks of the ten-key trace on ten segments of 100 tenants. */
async function importTrace(planner: Planner, serverMsPerEvent: number): Promise<void> {
  const tenant = await keyspace();
  const bounds = Array.from({ length: 9 }, (_, i) => [BigInt(100 * (i + 1))]);
  const segments = await ensureSegments(planner.history, tenant, bounds);
  const trace = readTrace(TRACE);
  const options = { now: NOW, placement: dealToSegments(trace, segments), serverMsPerEvent };
  await planner.history.importHistory(traceSamples(trace, 3600, options), 3600, NOW);
  const recent = { ...options, from: NOW - 14 * 86_400_000 };
  await planner.history.importHistory(traceSamples(trace, 60, recent), 60, NOW);
}

async function planTrace(serverMsPerEvent: number): Promise<{ planner: Planner; report: SavedReport }> {
  const planner = new Planner(shop.catalog, { now: () => NOW });
  await importTrace(planner, serverMsPerEvent);
  return { planner, report: await planner.plan() };
}

describe('Planner on eight weeks of the trace', () => {
  it('proposes to move half the load before the shard passes its capacity', async () => {
    const { report } = await planTrace(1000);
    const { proposal } = report;
    expect(proposal).not.toBeNull();
    if (proposal === null) return;
    expect(proposal.spec).toMatchObject({ kind: 'move', keyspace: 'tenant', from: 'a', to: 'b' });
    expect(proposal.movedLoadShare).toBeGreaterThan(0.35);
    expect(proposal.movedLoadShare).toBeLessThan(0.65);
    // The cut is where the load is halved, far from the middle of the keys: AAPL, the first tenth, has 42 % of it.
    expect(['100', '200']).toContain(proposal.splitAt[0]);
    expect(proposal.before[0]?.crossesAt).not.toBeNull();
    expect(proposal.startBy).toBeLessThan(proposal.deadline as number);
    expect(proposal.after).toHaveLength(2);
    for (const after of proposal.after) expect(after.score).toBeLessThan(proposal.before[0]?.score as number);

    const lo = proposal.spec.lo === null ? 0 : Number(proposal.spec.lo[0]);
    const hi = proposal.spec.hi === null ? 1001 : Number(proposal.spec.hi[0]);
    const counted = await shop.shards[0]?.query(
      'SELECT count(*)::int AS n FROM orders WHERE tenant_id >= $1 AND tenant_id < $2',
      [lo, hi],
    );
    expect(proposal.rows).toBe(counted?.rows[0].n);
    expect(proposal.bytes).toBeGreaterThan(proposal.rows * 50);
    expect(proposal.copySeconds).toBeCloseTo(proposal.bytes / proposal.copyBytesPerSecond, 6);
  });

  it('proposes nothing when nothing crosses, and says so', async () => {
    const { report } = await planTrace(20);
    expect(report.proposal).toBeNull();
    expect(report.plan).toBeNull();
    expect(report.verdict).toMatch(/^Nothing to do: shard "a" stays below its capacity/);
  });

  it('says that it cannot say anything without history', async () => {
    const report = await new Planner(shop.catalog, { now: () => NOW }).plan();
    expect(report.proposal).toBeNull();
    expect(report.verdict).toMatch(/needs 2 hours of history/);
  });

  it('keeps an open plan when asked to, and measures rates from finished migrations', async () => {
    const { planner, report } = await planTrace(1000);
    const kept = await planner.plan({ keepOpen: true });
    expect(kept.plan).toEqual(report.plan);
    await shop.catalog.pool.query(
      `INSERT INTO foreshard.migration (kind, spec, state, progress)
       VALUES ('move', '{}', 'done', '{"bytesPerSecond": 1000000, "bytesCopied": 50000000, "pauseMs": 7}')`,
    );
    const again = await planner.plan();
    expect(again.proposal?.copyBytesPerSecond).toBe(1_000_000);
    expect(again.proposal?.expectedPauseMs).toBe(7);
    expect(again.proposal?.ratesFrom).toBe('measured');
  });

  it('stops its loop when aborted', async () => {
    const planner = new Planner(shop.catalog, { now: () => NOW });
    const stop = new AbortController();
    const reports: SavedReport[] = [];
    await planner.run(stop.signal, {
      onReport: (report) => {
        reports.push(report);
        stop.abort();
      },
      onError: (error) => {
        throw error;
      },
    });
    expect(reports).toHaveLength(1);
  });
});

describe('deciding on a plan', () => {
  let proposed: SavedReport;
  beforeAll(async () => {
    await forget(shop.catalog);
    proposed = (await planTrace(1000)).report;
  });

  /** The plan of the trace, as if it had just been made. */
  async function savedPlan(): Promise<{ planner: Planner; report: SavedReport }> {
    const planner = new Planner(shop.catalog, { now: () => NOW });
    const { plan: _, ...report } = proposed;
    const saved = await planner.plans.savePlan(report);
    const { id, hash, status, expiresAt } = saved;
    return {
      planner,
      report: { ...report, plan: { id: id.toString(), hash, status, expiresAt: expiresAt.getTime() } },
    };
  }

  it('creates one migration with the approved spec, once', async () => {
    const { planner, report } = await savedPlan();
    const id = BigInt(report.plan?.id as string);
    const migration = await planner.plans.approve(id, 'dba');
    const row = (
      await shop.catalog.pool.query('SELECT * FROM foreshard.migration WHERE id = $1', [migration.toString()])
    ).rows[0];
    expect(row).toMatchObject({ state: 'approved', plan_id: id.toString(), spec: report.proposal?.spec });
    const audit = await shop.catalog.pool.query(
      `SELECT actor, action FROM foreshard.audit WHERE object = 'plan ' || $1`,
      [id.toString()],
    );
    expect(audit.rows).toEqual([{ actor: 'dba', action: 'plan.approved' }]);
    await expect(planner.plans.approve(id, 'dba')).rejects.toThrow(/already approved \(by dba\)/);
    expect((await planner.plans.showPlan(id)).migration).toEqual({ id: migration, state: 'approved' });
  });

  it('lets only one of two approvals at the same time through', async () => {
    const { planner, report } = await savedPlan();
    const id = BigInt(report.plan?.id as string);
    const results = await Promise.allSettled([planner.plans.approve(id, 'x'), planner.plans.approve(id, 'y')]);
    expect(results.filter((r) => r.status === 'fulfilled')).toHaveLength(1);
    const count = await shop.catalog.pool.query('SELECT count(*)::int AS n FROM foreshard.migration');
    expect(count.rows[0].n).toBe(1);
  });

  it('refuses after the epoch moved, after a change of the row, after expiry, and after rejection', async () => {
    const { planner, report } = await savedPlan();
    const id = BigInt(report.plan?.id as string);
    const { pool } = shop.catalog;
    await pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await expect(planner.plans.approve(id, 'dba')).rejects.toThrow(
      /was made at epoch \d+, the topology is at epoch \d+/,
    );
    expect((await planner.plans.showPlan(id)).status).toBe('expired');
    await pool.query('UPDATE foreshard.meta SET epoch = epoch - 1');

    await pool.query(`UPDATE foreshard.plan SET body = jsonb_set(body, '{proposal,spec,to}', '"elsewhere"')`);
    await expect(planner.plans.approve(id, 'dba')).rejects.toThrow(/is not what it was when its hash was made/);
    await pool.query(`UPDATE foreshard.plan SET body = jsonb_set(body, '{proposal,spec,to}', '"b"')`);

    await pool.query(`UPDATE foreshard.plan SET expires_at = now() - interval '1 s'`);
    await expect(planner.plans.approve(id, 'dba')).rejects.toThrow(/has expired/);
    await pool.query(`UPDATE foreshard.plan SET expires_at = now() + interval '1 h'`);

    await planner.plans.reject(id, 'dba');
    await expect(planner.plans.approve(id, 'dba')).rejects.toThrow(/already rejected/);
    await expect(planner.plans.approve(999n, 'dba')).rejects.toThrow(/there is no plan 999/);
    const count = await pool.query('SELECT count(*)::int AS n FROM foreshard.migration');
    expect(count.rows[0].n).toBe(0);
  });

  it('has at most one open plan, and keeps its id while the change stays the same', async () => {
    const { planner, report } = await savedPlan();
    const again = await savedPlan();
    expect(again.report.plan?.id).toBe(report.plan?.id);
    await planner.plans.savePlan({
      ...report,
      epoch: report.epoch,
      proposal: { ...report.proposal, spec: { ...report.proposal?.spec, lo: ['777'] } } as never,
    });
    const list = await planner.plans.listPlans();
    expect(list.map((p) => p.status)).toEqual(['proposed', 'expired']);
  });
});
