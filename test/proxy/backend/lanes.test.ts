import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Lane } from '../../../proxy/backend/lane.js';
import { NO_SETTINGS, type SettingMap } from '../../../proxy/session/settings.js';
import { withClient } from '../../support/client.js';
import { waitFor } from '../../support/wait-for.js';
import { type FixedPace, join, laneOf, TestLanes, TestRead } from './test-lanes.js';

let own: TestLanes;
const never = new AbortController().signal;

beforeAll(async () => {
  own = await TestLanes.start();
  await withClient(own.url, (c) => c.query('CREATE TABLE locked (a int)'));
});
afterEach(() => own.close());

describe('a lane', () => {
  it('gives each read its own answer, in one piece, errors included', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 20 }, (_, i) => new TestRead(i % 3 === 2 ? `SELECT ${i}/0` : `SELECT 'n${i}.'`));
    join(lane, ...reads);
    expect(lane.depth).toBe(20);
    expect(lane.workMs).toBeCloseTo(0.2);
    expect(await Promise.all(reads.map((r) => r.ended))).toEqual(reads.map(() => 'answered'));
    for (const [i, { text, pieces }] of reads.entries()) {
      expect(text).toContain(i % 3 === 2 ? 'division by zero' : `n${i}.`);
      expect(pieces).toBe(1);
    }
    expect([lane.depth, lane.workMs, lane.isEmpty, lanes.totals.reads]).toEqual([0, 0, true, 20]);
    expect(lanes.waits.count).toBe(20);
  });

  it('passes a large answer on as it comes, and small ones behind it in one piece', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const large = new TestRead(`SELECT repeat('x', 100000), n FROM generate_series(1, 20) n`);
    const small = new TestRead(`SELECT 'small'`);
    join(lane, large, small);
    expect(await Promise.all([large.ended, small.ended])).toEqual(['answered', 'answered']);
    expect(large.text.match(/x{100000}/g)).toHaveLength(20);
    expect(large.pieces).toBeGreaterThan(1);
    expect(large.sizes[0]).toBeGreaterThan(2_000_000);
    expect(small.text).toContain('small');
    expect(small.pieces).toBe(1);
  });

  it('has a read said again whose answer is not certain when it has come', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const [sure, unsure] = [new TestRead('SELECT 1'), new TestRead('SELECT 2')];
    unsure.certain = false;
    join(lane, unsure, sure);
    expect(await Promise.all([sure.ended, unsure.ended])).toEqual(['answered', 'refused']);
    expect(unsure.text).toBe('');
  });

  it('keeps nothing of an answer that was not told for the next read of the client', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const read = new TestRead(`SELECT 'row ' || 1 / (3 - n) FROM generate_series(1, 3) n`);
    read.hidesErrors = true;
    join(lane, read);
    expect(await read.ended).toBe('refused');
    read.nextOne(`SELECT 'own'`);
    const another = new TestRead(`SELECT 'own'`);
    join(lane, read, another);
    expect(await Promise.all([read.ended, another.ended])).toEqual(['answered', 'answered']);
    // Nothing before it, be it what has been read into the same memory since.
    expect(read.text).toBe(another.text);
  });

  it('gives its connection back when its last read is answered, and takes no more before', async () => {
    const { pool, lanes } = own.of();
    const lane = await laneOf(lanes);
    const read = new TestRead('SELECT 1');
    join(lane, read);
    lane.retire('given back');
    expect([lane.takes, pool.inUse]).toEqual([false, 1]);
    await read.ended;
    await waitFor(() => pool.inUse === 0, { what: 'the connection to be given back' });
    expect([...lanes.all]).toEqual([]);
    // Another client may have it.
    const backend = await pool.acquire(never);
    expect(backend).toBe(lane.backend);
    pool.release(backend);
  });

  it('is given up when the server reports another setting', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const read = new TestRead(`SET application_name = 'other'`);
    join(lane, read);
    await read.ended;
    expect(lane.retired).toBe('parameters');
  });

  it('has what it lost read elsewhere, and what the client knows part of cut short', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    // More than is held back, and more to come.
    const begun = new TestRead(
      `SELECT repeat('x', 100000), pg_sleep(CASE WHEN n < 5 THEN 0 ELSE 60 END) FROM generate_series(1, 5) n`,
    );
    const behind = new TestRead('SELECT 1');
    join(lane, begun, behind);
    await waitFor(() => begun.pieces > 0, { what: 'the beginning of the answer' });
    await withClient(own.url, (c) => c.query('SELECT pg_terminate_backend($1)', [lane.backend.connection.processId]));
    expect(await Promise.all([begun.ended, behind.ended])).toEqual(['cut short', 'lost']);
    expect([lanes.totals.lost, [...lanes.all].length]).toEqual([1, 0]);
  });

  it('frees those behind a late statement, once that is certain', async () => {
    const { lanes } = own.of({ laneLateMs: 1 });
    const lane = await laneOf(lanes);
    await withClient(own.url, async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      const late = new TestRead('SELECT count(*) FROM locked');
      const behind = new TestRead('SELECT 1');
      join(lane, late, behind);
      expect(await behind.ended).toBe('late');
      expect([lane.retired, lanes.totals.late, lanes.totals.rescued]).toEqual(['late', 1, 1]);
      // However often it is looked at.
      for (let looks = 0; looks < 3; looks++) {
        expect(lane.look(performance.now())).toBe(true);
        lane.late(performance.now());
      }
      expect((late.pace as FixedPace).lates).toBe(1);
      await holder.query('COMMIT');
      expect(await late.ended).toBe('answered');
      expect(behind.text).toBe('');
    });
  });

  it('does not call late what had been answered before this process looked', async () => {
    // Both are with the server when this process is busy.
    const { lanes } = own.of({ lanes: 'single', laneLateMs: 1 });
    const lane = await laneOf(lanes);
    const reads = [new TestRead('SELECT 1'), new TestRead('SELECT 2')];
    join(lane, ...reads);
    lane.backend.connection.flush();
    // Busy with something else for longer than a statement may take.
    const until = performance.now() + 100;
    while (performance.now() < until);
    // As the timer's look, before anything is read.
    lane.look(performance.now());
    expect(await Promise.all(reads.map((r) => r.ended))).toEqual(['answered', 'answered']);
    lane.late(performance.now());
    expect(lane.retired).toBeNull();
  });
});

describe('the lanes of a pool', () => {
  it('become more as reads would wait, but no more than half of the pool, and never deeper than they may', async () => {
    const { pool, lanes } = own.of({ size: 5, lanesMax: 10, laneDepth: 3 });
    const group = lanes.group(NO_SETTINGS);
    const first = await laneOf(lanes);
    expect(group?.choose(performance.now())).toBe(first);
    join(first, new TestRead('SELECT pg_sleep(0.2)', 100));
    const second = await waitFor(
      () => {
        const lane = group?.choose(performance.now()) ?? null;
        return lane === first ? null : lane;
      },
      { what: 'a second lane' },
    );
    join(second, new TestRead('SELECT pg_sleep(0.2)', 100));
    const reads = Array.from({ length: 4 }, () => new TestRead('SELECT 1'));
    for (const read of reads) join(group?.choose(performance.now()) as Lane, read);
    expect([first.depth, second.depth]).toEqual([3, 3]);
    expect(group?.choose(performance.now())).toBeNull();
    expect([pool.status.lanes, lanes.depth]).toEqual([2, 6]);
    await Promise.all(reads.map((r) => r.ended));
  });

  it('let reads that take long have connections of their own, as long as there are any', async () => {
    const { pool, lanes } = own.of({ size: 4, lanesMax: 1, laneLateMs: 50 });
    const group = lanes.group(NO_SETTINGS);
    const lane = await laneOf(lanes);
    const slow = new TestRead('SELECT a FROM locked', 51);
    await withClient(own.url, async (c) => {
      await c.query('BEGIN');
      await c.query('LOCK locked');
      join(lane, slow);
      expect(group?.choose(performance.now())).toBeNull();
      // None is left: whoever took a lease would wait too.
      const taken = await Promise.all([pool.acquire(never), pool.acquire(never), pool.acquire(never)]);
      expect(group?.choose(performance.now())).toBe(lane);
      for (const backend of taken) pool.release(backend);
    });
    await slow.ended;
  });

  it('give connections back to clients that wait for one, as soon as they are empty', async () => {
    const { pool, lanes } = own.of({ size: 1 });
    const lane = await laneOf(lanes);
    expect(pool.inUse).toBe(1);
    const backend = await pool.acquire(never);
    expect(backend).toBe(lane.backend);
    expect(lane.takes).toBe(false);
    pool.release(backend);
  });

  it('keep a connection that somebody has just read on, as long as that goes on, though clients wait', async () => {
    const { pool, lanes } = own.of({ size: 2 });
    const lane = await laneOf(lanes);
    const held = await pool.acquire(never);
    // However long it takes to get here, that was a moment ago.
    lane.idleSince = Number.POSITIVE_INFINITY;
    const wanted = pool.acquire(never);
    expect(lane.takes).toBe(true);
    const read = new TestRead('SELECT 1');
    join(lane, read);
    expect(await read.ended).toBe('answered');
    // Nobody has read since.
    expect(await wanted).toBe(lane.backend);
    expect(lane.takes).toBe(false);
    pool.release(lane.backend);
    pool.release(held);
  });

  it('are told apart by settings, and are none when they are off', async () => {
    const { lanes } = own.of();
    const utc = new Map([['TimeZone', "SET TimeZone TO 'UTC'"]]) as unknown as SettingMap;
    expect(lanes.group(NO_SETTINGS)).toBe(lanes.group(NO_SETTINGS));
    expect(lanes.group(utc)).not.toBe(lanes.group(NO_SETTINGS));
    expect(own.of({ lanes: 'off' }).lanes.group(NO_SETTINGS)).toBeNull();
  });
});
