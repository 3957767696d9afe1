import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { HistoryStore, type LoadSample, sampledPosition } from '../../planner/history-store.js';
import { ensureSegments } from '../../planner/segments.js';
import { hashKey } from '../../topology/hash.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { forget, type Shop, startShop } from './support.js';

let shop: Shop;
let keyspace: Keyspace;
let store: HistoryStore;
beforeAll(async () => {
  shop = await startShop();
  keyspace = (await shop.catalog.loadTopology()).keyspaces.get('tenant' as KeyspaceName) as Keyspace;
});
afterAll(async () => {
  await shop.close();
});
beforeEach(async () => {
  await forget(shop.catalog);
  store = new HistoryStore(shop.catalog.pool);
});

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 4, 15, 10, 0, 45);
const TOP = Date.UTC(2026, 4, 15, 10);

function sample(segmentId: bigint, at: number, serverMs: number): LoadSample {
  return { segmentId, at, reads: 8, writes: 2, rows: 10, bytes: 1000, serverMs };
}

async function flush(segmentId: bigint, at: number, serverMs: number): Promise<void> {
  await shop.catalog.pool.query(
    `INSERT INTO foreshard.load (step_seconds, at, segment_id, reads, server_ms) VALUES (10, $1, $2, 1, $3)
     ON CONFLICT (step_seconds, segment_id, at) DO UPDATE SET reads = load.reads + 1, server_ms = load.server_ms + excluded.server_ms`,
    [new Date(at), segmentId.toString(), serverMs],
  );
}

async function rows(step: number): Promise<{ at: number; reads: string; server_ms: number }[]> {
  const result = await shop.catalog.pool.query(
    'SELECT at, reads, server_ms FROM foreshard.load WHERE step_seconds = $1 ORDER BY at',
    [step],
  );
  return result.rows.map((r) => ({ ...r, at: r.at.getTime() }));
}

describe('roll-up', () => {
  it('sums complete steps only, the same however often, and takes late samples in', async () => {
    const [segment] = await ensureSegments(store, keyspace, []);
    const id = segment?.id as bigint;
    for (let i = 0; i < 12; i++) await flush(id, TOP - 120_000 + i * 10_000, 5);
    await flush(id, TOP, 7);
    await store.maintain(NOW);
    await store.maintain(NOW);
    expect(await rows(60)).toEqual([
      { at: TOP - 120_000, reads: '6', server_ms: 30 },
      { at: TOP - 60_000, reads: '6', server_ms: 30 },
    ]);
    expect(await rows(3600)).toEqual([{ at: TOP - HOUR, reads: '12', server_ms: 60 }]);
    await flush(id, TOP - 50_000, 100);
    await store.maintain(NOW + 60_000);
    expect((await rows(60)).map((r) => r.server_ms)).toEqual([30, 130, 7]);
    expect((await rows(3600))[0]?.server_ms).toBe(160);
  });

  it('sums an imported history of minutes to hours and leaves imported hours alone', async () => {
    const [segment] = await ensureSegments(store, keyspace, []);
    const id = segment?.id as bigint;
    const minutes = Array.from({ length: 60 }, (_, i) => sample(id, TOP - HOUR + i * 60_000, 2));
    await store.importHistory([sample(id, TOP - 9 * HOUR, 500), sample(id, TOP - 2 * HOUR, 400)], 3600, NOW);
    await store.importHistory([sample(id, TOP - HOUR - 60_000, 6)], 60, NOW);
    expect(await store.importHistory(minutes, 60, NOW)).toBe(60);
    await store.maintain(NOW);
    expect((await rows(3600)).map((r) => r.server_ms)).toEqual([500, 400, 120]);
  });
});

describe('retention', () => {
  it('bounds each resolution, and never a part of an hour', async () => {
    const [segment] = await ensureSegments(store, keyspace, []);
    const id = segment?.id as bigint;
    const bounded = new HistoryStore(shop.catalog.pool, { tenSeconds: HOUR / 1000, minutes: 7200, hours: 86_400 });
    for (const ago of [1, 2, 3]) for (let i = 0; i < 6; i++) await flush(id, TOP - ago * HOUR + i * 10_000, 1);
    await store.importHistory([sample(id, TOP - 30 * HOUR, 9), sample(id, TOP - 20 * HOUR, 9)], 3600, NOW);
    await bounded.maintain(NOW);
    expect(new Set((await rows(10)).map((r) => r.at))).toEqual(
      new Set(Array.from({ length: 6 }, (_, i) => TOP - HOUR + i * 10_000)),
    );
    expect((await rows(60)).map((r) => r.at)).toEqual([TOP - 2 * HOUR, TOP - HOUR]);
    expect((await rows(3600)).map((r) => r.at)).toEqual([TOP - 20 * HOUR, TOP - 3 * HOUR, TOP - 2 * HOUR, TOP - HOUR]);
  });
});

describe('import', () => {
  it('is all or nothing, and names what is wrong', async () => {
    const [segment] = await ensureSegments(store, keyspace, []);
    const id = segment?.id as bigint;
    const good = sample(id, TOP - HOUR, 1);
    await expect(store.importHistory([good, sample(id, TOP - HOUR + 1000, 1)], 60, NOW)).rejects.toThrow(
      /does not start on a step of 60 s/,
    );
    await expect(store.importHistory([good, sample(id, TOP - HOUR, -1)], 60, NOW)).rejects.toThrow(
      /negative or not a number/,
    );
    await expect(store.importHistory([good, sample(id, TOP + HOUR, 1)], 3600, NOW)).rejects.toThrow(/in the future/);
    await expect(store.importHistory([sample(424242n, TOP - HOUR, 1)], 60, NOW)).rejects.toThrow(/foreign key/);
    expect(await rows(60)).toEqual([]);
  });
});

describe('series', () => {
  it('tells idle from unknown, and sums to the step', async () => {
    const [left, right] = await ensureSegments(store, keyspace, [[500n]]);
    const at = TOP - HOUR;
    await store.importHistory(
      [sample(left?.id as bigint, at, 600), sample(left?.id as bigint, at + 60_000, 0)],
      60,
      NOW,
    );
    const series = await store.series(keyspace, 60, at, at + 180_000);
    expect(Array.from(series[0]?.load ?? [])).toEqual([10, 0, Number.NaN]);
    expect(Array.from(series[1]?.load ?? [])).toEqual([0, 0, Number.NaN]);
    expect(series[1]?.id).toBe(right?.id);
    const five = await store.series(keyspace, 300, at, at + 300_000);
    expect(Array.from(five[0]?.load ?? [])).toEqual([2]);
    expect(five[0]?.writes[0]).toBeCloseTo(4 / 300);
    await expect(store.series(keyspace, 60, at + 1, at + 60_001)).rejects.toThrow(/cannot be read/);
  });
});

describe('sampledPosition', () => {
  it('is the hash of a key in a hash keyspace, the key itself otherwise', () => {
    expect(sampledPosition(keyspace, ['42'])).toEqual([42n]);
    expect(sampledPosition({ ...keyspace, method: 'hash' }, ['42'])).toEqual([hashKey(['int8'], [42n])]);
  });
});

describe('ensureSegments', () => {
  it('shares the history of a cut segment out by sampled weight and loses nothing', async () => {
    const [whole] = await ensureSegments(store, keyspace, []);
    const id = whole?.id as bigint;
    await store.importHistory([sample(id, TOP - HOUR, 100)], 3600, NOW);
    await shop.catalog.pool.query(
      `INSERT INTO foreshard.key_sample (segment_id, key, weight) SELECT $1, jsonb_build_array(k::text), w
         FROM (VALUES (10, 30), (600, 50), (700, 20)) v (k, w)`,
      [id.toString()],
    );
    const segments = await ensureSegments(store, keyspace, [[650n], [500n], [500n]]);
    expect(segments.map((s) => [s.lo?.[0] ?? null, s.hi?.[0] ?? null])).toEqual([
      [null, 500n],
      [500n, 650n],
      [650n, null],
    ]);
    expect(segments[0]?.id).toBe(id);
    const series = await store.series(keyspace, 3600, TOP - HOUR, TOP);
    expect(series.map((s) => (s.load[0] as number) * 3600)).toEqual([30, 50, 20].map((v) => expect.closeTo(v, 6)));
    const sums = await shop.catalog.pool.query('SELECT sum(reads)::int AS r, sum(bytes)::int AS b FROM foreshard.load');
    expect(sums.rows[0]).toEqual({ r: 8, b: 1000 });
    const samples = await store.keySamples(keyspace);
    expect(segments.map((s) => samples.get(s.id)?.length)).toEqual([1, 1, 1]);
    expect(await ensureSegments(store, keyspace, [[650n]])).toEqual(segments);
  });

  it('shares evenly without samples', async () => {
    const [whole] = await ensureSegments(store, keyspace, []);
    await store.importHistory([sample(whole?.id as bigint, TOP - HOUR, 100)], 3600, NOW);
    await ensureSegments(store, keyspace, [[1n], [2n], [3n]]);
    const series = await store.series(keyspace, 3600, TOP - HOUR, TOP);
    expect(series.map((s) => (s.load[0] as number) * 3600)).toEqual([25, 25, 25, 25].map((v) => expect.closeTo(v, 6)));
  });
});
