import pino from 'pino';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import type { Backend } from '../../../proxy/backend/backend.js';
import type { Lane } from '../../../proxy/backend/lane.js';
import { type AgainReason, type LanePace, LaneRead } from '../../../proxy/backend/lane-read.js';
import { LaneWatch } from '../../../proxy/backend/lane-watch.js';
import { Lanes } from '../../../proxy/backend/lanes.js';
import { Pool } from '../../../proxy/backend/pool.js';
import type { PoolOptions } from '../../../proxy/backend/pool-options.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import { SILENT_OWNER } from '../../../proxy/backend/silent-owner.js';
import { applySettings } from '../../../proxy/session/server-settings.js';
import { NO_SETTINGS, type SettingMap } from '../../../proxy/session/settings.js';
import type { ErrorFields } from '../../../proxy/wire/error-response.js';
import { encodeQuery } from '../../../proxy/wire/frontend.js';
import type { ShardName } from '../../../topology/topology.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;
const shard = 's1' as ShardName;
const never = new AbortController().signal;
const NEVER_LATE = 60_000;

/** A template that always takes as long as it is said to. */
class FixedPace implements LanePace {
  readonly expectedMs: number;
  readonly runs: { ms: number; bytes: number }[] = [];
  lates = 0;
  constructor(expectedMs: number) {
    this.expectedMs = expectedMs;
  }
  served(ms: number, bytes: number): void {
    this.runs.push({ ms, bytes });
  }
  late(): boolean {
    this.lates += 1;
    return true;
  }
}

/** A Query, and what became of it. */
class TestRead extends LaneRead {
  sql: string;
  certain = true;
  /** An error is not for the client. */
  hidesErrors = false;
  pieces = 0;
  #text = '';
  #end: (how: string) => void = () => undefined;
  /** `answered`, or why not. */
  ended = new Promise<string>((resolve) => {
    this.#end = resolve;
  });

  constructor(sql: string, expectedMs = 0.01) {
    super(new FixedPace(expectedMs));
    this.sql = sql;
  }

  /** The same object, as the next read of its client. */
  nextOne(sql: string): void {
    this.anew(this.pace);
    this.sql = sql;
    this.hidesErrors = false;
    this.ended = new Promise<string>((resolve) => {
      this.#end = resolve;
    });
  }

  /** What the client was sent. */
  get text(): string {
    return this.#text;
  }
  get sizes(): readonly number[] {
    return (this.pace as FixedPace).runs.map((run) => run.bytes);
  }
  send(backend: Backend): void {
    backend.send(encodeQuery(this.sql), { kind: 'query', internal: false });
  }
  protected get isCertain(): boolean {
    return this.certain;
  }
  protected deliver(bytes: Buffer): void {
    this.pieces += 1;
    this.#text += bytes.toString('latin1');
  }
  protected answered(bytes: Buffer): void {
    this.deliver(bytes);
    this.#end('answered');
  }
  again(why: AgainReason): void {
    this.#end(why);
  }
  cutShort(): void {
    this.#end('cut short');
  }
  protected worded(fields: ErrorFields, frame: Buffer, byMistake: boolean): Buffer | null {
    return this.hidesErrors || (byMistake && fields.sqlstate === '57014') ? null : frame;
  }
}

const opened: { pool: Pool; watch: LaneWatch }[] = [];

function lanesOf(options: Partial<PoolOptions> = {}): { pool: Pool; lanes: Lanes } {
  const url = new URL(cluster.url('postgres'));
  const pool = new Pool(
    shard,
    'postgres',
    { size: 4, idleTimeoutMs: 60_000, queueTimeoutMs: 5_000, lanes: 'auto', laneLateMs: NEVER_LATE, ...options },
    () =>
      ServerConnection.connect({
        shard,
        host: url.hostname,
        port: Number(url.port),
        user: 'postgres',
        database: 'postgres',
        auth: { password: decodeURIComponent(url.password) },
      }),
  );
  const watch = new LaneWatch();
  opened.push({ pool, watch });
  const prepare = async (backend: Backend, settings: SettingMap) => {
    backend.attach(SILENT_OWNER);
    await applySettings(backend, settings);
  };
  return { pool, lanes: new Lanes(pool, watch, pino({ level: 'silent' }), prepare) };
}

/** The lane that a read would join. */
async function laneOf(lanes: Lanes): Promise<Lane> {
  return waitFor(() => lanes.group(NO_SETTINGS)?.choose(performance.now()), { what: 'a lane' });
}

function join(lane: Lane, ...reads: readonly TestRead[]): void {
  for (const read of reads) lane.join(read, performance.now());
}

beforeAll(async () => {
  cluster = await startTestCluster();
  await withClient(cluster.url('postgres'), (c) => c.query('CREATE TABLE locked (a int)'));
});
afterEach(() => {
  for (const { pool, watch } of opened.splice(0)) {
    watch.close();
    pool.close();
  }
});

describe('a lane', () => {
  it('gives each read its own answer, in one piece, errors included', async () => {
    const { lanes } = lanesOf();
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
    const { lanes } = lanesOf();
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
    const { lanes } = lanesOf();
    const lane = await laneOf(lanes);
    const [sure, unsure] = [new TestRead('SELECT 1'), new TestRead('SELECT 2')];
    unsure.certain = false;
    join(lane, unsure, sure);
    expect(await Promise.all([sure.ended, unsure.ended])).toEqual(['answered', 'refused']);
    expect(unsure.text).toBe('');
  });

  it('keeps nothing of an answer that was not told for the next read of the client', async () => {
    const { lanes } = lanesOf();
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
    const { pool, lanes } = lanesOf();
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
    const { lanes } = lanesOf();
    const lane = await laneOf(lanes);
    const read = new TestRead(`SET application_name = 'other'`);
    join(lane, read);
    await read.ended;
    expect(lane.retired).toBe('parameters');
  });

  it('has what it lost read elsewhere, and what the client knows part of cut short', async () => {
    const { lanes } = lanesOf();
    const lane = await laneOf(lanes);
    // More than is held back, and more to come.
    const begun = new TestRead(
      `SELECT repeat('x', 100000), pg_sleep(CASE WHEN n < 5 THEN 0 ELSE 60 END) FROM generate_series(1, 5) n`,
    );
    const behind = new TestRead('SELECT 1');
    join(lane, begun, behind);
    await waitFor(() => begun.pieces > 0, { what: 'the beginning of the answer' });
    await withClient(cluster.url('postgres'), (c) =>
      c.query('SELECT pg_terminate_backend($1)', [lane.backend.connection.processId]),
    );
    expect(await Promise.all([begun.ended, behind.ended])).toEqual(['cut short', 'lost']);
    expect([lanes.totals.lost, [...lanes.all].length]).toEqual([1, 0]);
  });

  it('frees those behind a late statement, once that is certain', async () => {
    const { lanes } = lanesOf({ laneLateMs: 1 });
    const lane = await laneOf(lanes);
    await withClient(cluster.url('postgres'), async (holder) => {
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
    const { lanes } = lanesOf({ laneLateMs: 1 });
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
    const { pool, lanes } = lanesOf({ size: 5, lanesMax: 10, laneDepth: 3 });
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
    const { pool, lanes } = lanesOf({ size: 4, lanesMax: 1, laneLateMs: 50 });
    const group = lanes.group(NO_SETTINGS);
    const lane = await laneOf(lanes);
    const slow = new TestRead('SELECT pg_sleep(0.05)', 51);
    join(lane, slow);
    expect(group?.choose(performance.now())).toBeNull();
    // None is left: whoever took a lease would wait too.
    const taken = await Promise.all([pool.acquire(never), pool.acquire(never), pool.acquire(never)]);
    expect(group?.choose(performance.now())).toBe(lane);
    for (const backend of taken) pool.release(backend);
    await slow.ended;
  });

  it('give connections back to clients that wait for one, as soon as they are empty', async () => {
    const { pool, lanes } = lanesOf({ size: 1 });
    const lane = await laneOf(lanes);
    expect(pool.inUse).toBe(1);
    const backend = await pool.acquire(never);
    expect(backend).toBe(lane.backend);
    expect(lane.takes).toBe(false);
    pool.release(backend);
  });

  it('are told apart by settings, and are none when they are off', async () => {
    const { lanes } = lanesOf();
    const utc = new Map([['TimeZone', "SET TimeZone TO 'UTC'"]]) as unknown as SettingMap;
    expect(lanes.group(NO_SETTINGS)).toBe(lanes.group(NO_SETTINGS));
    expect(lanes.group(utc)).not.toBe(lanes.group(NO_SETTINGS));
    expect(lanesOf({ lanes: 'off' }).lanes.group(NO_SETTINGS)).toBeNull();
  });
});
