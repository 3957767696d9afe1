import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { dryRun } from '../../migrator/dry-run.js';
import { createMigration, requestAbort } from '../../migrator/migration-requests.js';
import { rangesAfter, withRanges } from '../../migrator/ranges.js';
import { contains, type Position } from '../../topology/key.js';
import type { RecutSpec } from '../../topology/migration.js';
import { type Keyspace, type KeyspaceName, type Range, rangeOf, type ShardName } from '../../topology/topology.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, keyspaceOf, leftovers, moveSpec } from './setting.js';
import { audit } from './writers.js';

const NAME = 'tenant' as KeyspaceName;
const recutSpec = (cut: bigint[], join: bigint[], shard = 'one'): RecutSpec => ({
  kind: 'recut',
  keyspace: NAME,
  shard: shard as ShardName,
  cut: cut.map((p) => [p]),
  join: join.map((p) => [p]),
});

/** `owners` by `bounds`: one owner more than bounds. */
function keyspace(bounds: readonly bigint[], owners: readonly string[]): Keyspace {
  const ranges = owners.map((shard, i): Range => {
    const at = (n: number): Position | null => (bounds[n] === undefined ? null : [bounds[n] as bigint]);
    return { id: BigInt(i + 1), keyspace: NAME, lo: at(i - 1), hi: at(i), shard: shard as ShardName };
  });
  return { name: NAME, method: 'range', keyTypes: ['int8'], tables: [], ranges };
}

const shape = (k: Keyspace) => k.ranges.map((r) => [r.id, r.lo?.[0] ?? null, r.hi?.[0] ?? null, r.shard]);

describe('the ranges after a migration', () => {
  const k = keyspace([10n, 20n], ['one', 'one', 'two']);

  test('are cut and joined where it says, and rows keep their ids for the part on the left', () => {
    expect(shape(withRanges(k, rangesAfter(k, recutSpec([5n, 15n], []))))).toEqual([
      [1n, null, 5n, 'one'],
      [-2n, 5n, 10n, 'one'],
      [2n, 10n, 15n, 'one'],
      [-4n, 15n, 20n, 'one'],
      [3n, 20n, null, 'two'],
    ]);
    expect(shape(withRanges(k, rangesAfter(k, recutSpec([], [10n]))))).toEqual([
      [1n, null, 20n, 'one'],
      [3n, 20n, null, 'two'],
    ]);
    expect(shape(withRanges(k, rangesAfter(k, recutSpec([12n], [10n]))))).toEqual([
      [1n, null, 12n, 'one'],
      [-2n, 12n, 20n, 'one'],
      [3n, 20n, null, 'two'],
    ]);
  });

  test('are what they were when it is so already', () => {
    expect(rangesAfter(k, recutSpec([10n], [5n]))).toEqual(k.ranges);
  });

  test('are not those of other shards', () => {
    expect(() => rangesAfter(k, recutSpec([25n], []))).toThrow('position (25) belongs to shard "two", not "one"');
    expect(() => rangesAfter(k, recutSpec([], [20n]))).toThrow('position (20) belongs to shard "two", not "one"');
    expect(() => rangesAfter(k, recutSpec([], [20n], 'two'))).toThrow(
      'position (20) belongs to shard "one", not "two"',
    );
    expect(() => rangesAfter(k, moveSpec([15n], [25n]))).toThrow('no longer lies in one range of shard "one"');
  });

  test('leave a moved part its own row, and what stays the old one', () => {
    expect(shape(withRanges(k, rangesAfter(k, moveSpec([12n], [15n]))))).toEqual([
      [1n, null, 10n, 'one'],
      [2n, 10n, 12n, 'one'],
      [-3n, 12n, 15n, 'two'],
      [-4n, 15n, 20n, 'one'],
      [3n, 20n, null, 'two'],
    ]);
    expect(shape(withRanges(k, rangesAfter(k, moveSpec([10n], [15n]))))).toEqual([
      [1n, null, 10n, 'one'],
      [-2n, 10n, 15n, 'two'],
      [2n, 15n, 20n, 'one'],
      [3n, 20n, null, 'two'],
    ]);
    expect(shape(withRanges(k, rangesAfter(k, moveSpec([10n], [20n]))))[1]).toEqual([2n, 10n, 20n, 'two']);
  });

  test('cover every key once, and change the owner of none but those that move', () => {
    const bounds = fc.uniqueArray(fc.bigInt(0n, 30n), { maxLength: 6 }).map((b) => b.sort((x, y) => Number(x - y)));
    const points = fc.array(fc.bigInt(-2n, 32n), { maxLength: 4 });
    fc.assert(
      fc.property(bounds, points, points, fc.infiniteStream(fc.constantFrom('one', 'two')), (b, cut, join, shards) => {
        const before = keyspace(
          b,
          Array.from({ length: b.length + 1 }, () => shards.next().value as string),
        );
        let after: Keyspace;
        try {
          after = withRanges(before, rangesAfter(before, recutSpec(cut, join)));
        } catch {
          return;
        }
        after.ranges.forEach((r, i) => {
          expect(r.lo).toEqual(i === 0 ? null : after.ranges[i - 1]?.hi);
        });
        expect(after.ranges.at(-1)?.hi).toBeNull();
        for (let p = -3n; p < 33n; p++) {
          expect(after.ranges.filter((r) => contains(r, [p]))).toHaveLength(1);
          expect(rangeOf(after, [p]).shard).toBe(rangeOf(before, [p]).shard);
        }
        const los = after.ranges.map((r) => r.lo?.[0]);
        for (const p of cut) if (!join.includes(p)) expect(los).toContain(p);
        for (const p of join) expect(los).not.toContain(p);
      }),
    );
  });
});

describe('a recut', () => {
  const moves = shopMoves(12, 20);
  const { s } = moves;
  const recut = async (spec: RecutSpec) =>
    createMigration(s.catalog.pool, await keyspaceOf(s), spec, { actor: 'test' });
  const ranges = async () => (await keyspaceOf(s)).ranges.map((r) => [r.lo?.[0] ?? null, r.hi?.[0] ?? null, r.shard]);

  test('changes bounds in the catalog under load, and touches no shard', async () => {
    const { writers } = await moves.startLoad(12, { stale: false });
    await waitFor(() => writers.acknowledged > 100, { what: 'writers to be at work' });
    const { epoch } = await s.catalog.loadTopology();
    moves.startMigrator();
    expect(await moves.atRest(await recut(recutSpec([6n, 9n], [])))).toBe('done');
    expect(await ranges()).toEqual([
      [null, 6n, 'one'],
      [6n, 9n, 'one'],
      [9n, null, 'one'],
    ]);
    const segments = await s.catalog.pool.query(
      'SELECT lo, hi FROM foreshard.segment ORDER BY (lo->>0)::int NULLS FIRST',
    );
    expect(segments.rows.map((r) => [r.lo?.[0] ?? null, r.hi?.[0] ?? null])).toEqual([
      [null, '6'],
      ['6', '9'],
      ['9', '30'],
      ['30', null],
    ]);
    // A part that was cut off goes as a whole, and is joined with its neighbour there.
    expect(await moves.atRest(await approveMove(s, [6n], [9n]))).toBe('done');
    expect(await moves.atRest(await approveMove(s, [9n], null))).toBe('done');
    const join = await recut(recutSpec([], [9n], 'two'));
    expect(await moves.atRest(join)).toBe('done');
    expect(await ranges()).toEqual([
      [null, 6n, 'one'],
      [6n, null, 'two'],
    ]);
    expect((await s.catalog.loadTopology()).epoch).toBe(epoch + 4n);
    expect((await moves.load(join)).facts.epoch).toBe((epoch + 4n).toString());
    const written = writers.acknowledged;
    await waitFor(() => writers.acknowledged > written + 100, { what: 'writes afterwards' });
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    const trail = await s.catalog.pool.query(
      "SELECT object, detail FROM foreshard.audit WHERE action = 'migration.recut' ORDER BY id DESC LIMIT 1",
    );
    expect(trail.rows).toEqual([
      { object: `migration ${join}`, detail: { keyspace: 'tenant', shard: 'two', cut: [], join: [['9']] } },
    ]);
  });

  test('waits for a move of its shard, and is refused when the ranges are no longer so', async () => {
    const move = await approveMove(s, [6n], null);
    const cut = await recut(recutSpec([8n], []));
    moves.startMigrator();
    expect(await moves.atRest(move)).toBe('done');
    expect(await moves.atRest(cut)).toBe('failed');
    expect((await moves.load(cut)).error).toMatch(
      /the migration cannot start: position \(8\) belongs to shard "two", not "one"\. The topology has changed: plan again/,
    );
    expect(await ranges()).toEqual([
      [null, 6n, 'one'],
      [6n, null, 'two'],
    ]);
  });

  test('can be aborted before it begins, and its dry run says what it would do', async () => {
    const { epoch } = await s.catalog.loadTopology();
    const spec = recutSpec([8n], []);
    const { findings, steps } = await dryRun(s.catalog, spec);
    expect(findings).toEqual([]);
    expect(steps.map((step) => step.text)).toEqual([
      'one migration begins at a time',
      'no other is at work on the same shards, or has waited for them longer, and in its change it is next',
      'raise the epoch, if nothing else has',
      expect.stringMatching(/^range \d+ has other bounds$/),
      'a new range on shard "one"',
      'cut a segment at the new bound',
      'audit',
    ]);
    const id = await recut(spec);
    await requestAbort(s.catalog.pool, id, 'test');
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await s.catalog.loadTopology()).epoch).toBe(epoch);
  });
});
