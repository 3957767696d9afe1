import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Lane } from '../../../proxy/backend/lane.js';
import { withClient } from '../../support/client.js';
import { waitFor } from '../../support/wait-for.js';
import { type FixedPace, join, laneOf, TestLanes, TestRead } from './test-lanes.js';

let own: TestLanes;

beforeAll(async () => {
  own = await TestLanes.start();
  await withClient(own.url, (c) => c.query('CREATE TABLE locked (a int)'));
});
afterEach(() => own.close());

/** The first keeps the lane busy, so that the others are gathered. */
function joinBehindAnother(lane: Lane, ...reads: readonly TestRead[]): void {
  join(lane, new TestRead('SELECT 0'), ...reads);
}

function ends(reads: readonly TestRead[]): Promise<string[]> {
  return Promise.all(reads.map((read) => read.ended));
}

/** Types of the messages that the client was sent, in order. */
function types(text: string): string {
  const bytes = Buffer.from(text, 'latin1');
  let found = '';
  for (let at = 0; at < bytes.length; at += 1 + bytes.readInt32BE(at + 1))
    found += String.fromCharCode(bytes[at] as number);
  return found;
}

describe.each(['query', 'batch'] as const)('reads that are said in one %s', (protocol) => {
  const read = (sql: string, expectedMs?: number) => new TestRead(sql, expectedMs, protocol);
  const begins = protocol === 'batch' ? '12' : '';

  it('have each its own answer, as if it had been said alone', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 40 }, (_, i) =>
      read(
        `SELECT 'n${i}.' FROM generate_series(1, ${i % 4})${i % 5 === 0 ? ' -- the end' : ''}${i % 7 === 0 ? ';' : ''}`,
      ),
    );
    joinBehindAnother(lane, ...reads);
    expect(await ends(reads)).toEqual(reads.map(() => 'answered'));
    for (const [i, { text, pieces }] of reads.entries()) {
      expect(types(text)).toBe(`${begins}T${'D'.repeat(i % 4)}CZ`);
      expect(text.match(/n\d+\./g) ?? []).toEqual(Array.from({ length: i % 4 }, () => `n${i}.`));
      expect(pieces).toBe(1);
    }
    expect([lane.depth, lane.isEmpty, lanes.totals.reads, lanes.totals.joined]).toEqual([0, true, 41, 40]);
    expect(lane.workMs).toBe(0);
  });

  it('are said by themselves again when one fails, which is not said with others from then on', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const bad = read('SELECT 1 / 0');
    const good = [read('SELECT 1'), read('SELECT 2')];
    joinBehindAnother(lane, good[0] as TestRead, bad, good[1] as TestRead);
    expect(await ends([...good, bad])).toEqual(['refused', 'refused', 'refused']);
    expect([...good, bad].map(({ text }) => text)).toEqual(['', '', '']);
    expect([...good, bad].map(({ pace }) => (pace as FixedPace).joins)).toEqual([true, true, false]);
    bad.nextOne('SELECT 1 / 0');
    const after = [read('SELECT 3'), read('SELECT 4')];
    joinBehindAnother(lane, bad, ...after);
    expect(await ends([bad, ...after])).toEqual(['answered', 'answered', 'answered']);
    expect(bad.text).toContain('division by zero');
    expect(lanes.totals.joined).toBe(5);
  });

  it('are answered also when the answer comes in pieces', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    // More than a server sends at once.
    const reads = Array.from({ length: 10 }, (_, i) => read(`SELECT repeat('${i}', 5000)`));
    joinBehindAnother(lane, ...reads);
    expect(await ends(reads)).toEqual(reads.map(() => 'answered'));
    for (const [i, { text, sizes }] of reads.entries()) {
      expect(text).toContain(`${i}`.repeat(5000));
      expect(sizes).toEqual([i === 9 ? text.length : text.length - 6]);
    }
  });

  it('are said by themselves again when all of the answer is too much to keep', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 4 }, (_, i) => read(`SELECT repeat('${i}', 50000)`));
    const after = read('SELECT 1');
    joinBehindAnother(lane, ...reads);
    expect(await ends(reads)).toEqual(reads.map(() => 'refused'));
    join(lane, after);
    expect(await after.ended).toBe('answered');
  });

  it('are said by themselves again when the server has something else to say', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    await withClient(own.url, (c) =>
      c.query(
        `CREATE OR REPLACE FUNCTION said() RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''heard''; RETURN 1; END'`,
      ),
    );
    const reads = [read('SELECT 1'), read('SELECT said()')];
    joinBehindAnother(lane, ...reads);
    expect(await ends(reads)).toEqual(['refused', 'refused']);
  });

  it('are all freed when one is late, and the server is told to stop', async () => {
    const { lanes } = own.of({ laneLateMs: 20 });
    const lane = await laneOf(lanes);
    await withClient(own.url, async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      const reads = [read('SELECT 1'), read('SELECT count(*) FROM locked'), read('SELECT 2')];
      joinBehindAnother(lane, ...reads);
      const behind = new TestRead('SELECT 3');
      setImmediate(() => join(lane, behind));
      // Each by itself, so that it is seen which it is.
      expect(await ends(reads)).toEqual(['refused', 'refused', 'refused']);
      expect(await behind.ended).toBe('late');
      expect([lane.retired, lanes.totals.late, lanes.totals.rescued]).toEqual(['late', 1, 4]);
      // Nothing is held by it although the lock is.
      await waitFor(() => [...lanes.all].length === 0, { what: 'the connection to be given back' });
      await holder.query('COMMIT');
    });
  });

  it('are none when they have been dropped before they were sent', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 4 }, (_, i) => read(`SELECT 'n${i}.'`));
    joinBehindAnother(lane, ...reads);
    for (const i of [0, 2, 3]) lane.drop(reads[i] as TestRead);
    expect(lane.isHead(reads[1] as TestRead)).toBe(false);
    expect(await (reads[1] as TestRead).ended).toBe('answered');
    expect([lane.depth, lane.isEmpty, lanes.totals.reads, lanes.totals.joined]).toEqual([0, true, 2, 0]);
  });

  it('are run elsewhere when what they need has been forgotten before they were sent', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 3 }, (_, i) => read(`SELECT 'n${i}.'`));
    joinBehindAnother(lane, ...reads);
    (reads[1] as TestRead).forgotten = true;
    expect(await ends(reads)).toEqual(['answered', 'refused', 'answered']);
    expect([lane.depth, lane.isEmpty, lanes.totals.reads, lanes.totals.joined]).toEqual([0, true, 3, 2]);
  });

  it('go on without a client who has left meanwhile', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = Array.from({ length: 3 }, (_, i) => read(`SELECT 'n${i}.', pg_sleep(0.01)`));
    joinBehindAnother(lane, ...reads);
    await waitFor(() => lanes.totals.joined === 3, { what: 'the reads to be sent' });
    lane.drop(reads[1] as TestRead);
    expect(await ends([reads[0], reads[2]] as TestRead[])).toEqual(['answered', 'answered']);
    expect(reads.map(({ text }) => text.match(/n\d/)?.[0])).toEqual(['n0', undefined, 'n2']);
  });

  it('are read elsewhere when the connection is lost', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const reads = [read('SELECT 1'), read('SELECT pg_sleep(60)'), read('SELECT 2')];
    joinBehindAnother(lane, ...reads);
    await waitFor(() => lanes.totals.joined === 3, { what: 'the reads to be sent' });
    await withClient(own.url, (c) => c.query('SELECT pg_terminate_backend($1)', [lane.backend.connection.processId]));
    expect(await ends(reads)).toEqual(['lost', 'lost', 'lost']);
    expect(lanes.totals.lost).toBe(1);
  });

  it('are none when each is to be a statement of its own', async () => {
    const { lanes } = own.of({ lanes: 'single' });
    const lane = await laneOf(lanes);
    const reads = [read('SELECT 1'), read('SELECT 1 / 0'), read('SELECT 2')];
    joinBehindAnother(lane, ...reads);
    expect(await ends(reads)).toEqual(['answered', 'answered', 'answered']);
    expect(lanes.totals.joined).toBe(0);
  });
});

describe('what is said in one', () => {
  it('is of one protocol, not too long, and not too much work', async () => {
    const { lanes } = own.of();
    const lane = await laneOf(lanes);
    const counts: number[] = [];
    const joined = async (...reads: readonly TestRead[]): Promise<number> => {
      const before = lanes.totals.joined;
      joinBehindAnother(lane, ...reads);
      expect(await ends(reads)).toEqual(reads.map(() => 'answered'));
      return lanes.totals.joined - before;
    };
    const query = (sql = 'SELECT 1', ms = 0.01) => new TestRead(sql, ms, 'query');
    const batch = () => new TestRead('SELECT 1', 0.01, 'batch');
    counts.push(await joined(query(), batch(), query(), batch()));
    counts.push(await joined(query(), query(), batch(), batch(), query()));
    const long = `SELECT '${'x'.repeat(5000)}'`;
    counts.push(await joined(query(long), query(long)));
    counts.push(await joined(query('SELECT 1', 2.5), query('SELECT 1', 2.5)));
    counts.push(await joined(query()));
    expect(counts).toEqual([0, 4, 0, 0, 0]);
  });
});
