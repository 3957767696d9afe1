import pino from 'pino';
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
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../../proxy/wire/frontend.js';
import type { ShardName } from '../../../topology/topology.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

const NEVER_LATE = 60_000;

/** A template that always takes as long as it is said to. */
export class FixedPace implements LanePace {
  joins = true;
  readonly expectedMs: number;
  readonly runs: { ms: number; bytes: number }[] = [];
  lates = 0;
  constructor(expectedMs: number) {
    this.expectedMs = expectedMs;
  }
  served(ms: number, bytes: number): void {
    this.runs.push({ ms, bytes });
  }
  broke(): void {
    this.joins = false;
  }
  late(): boolean {
    this.lates += 1;
    return true;
  }
}

/** A Query, and what became of it. */
export class TestRead extends LaneRead {
  sql: string;
  certain = true;
  /** An error is not for the client. */
  hidesErrors = false;
  /** What it needs has been forgotten on the connection. */
  forgotten = false;
  pieces = 0;
  /** As what it may be said with others; null: only by itself. */
  readonly #protocol: 'query' | 'batch' | null;
  #text = '';
  #end: (how: string) => void = () => undefined;
  /** `answered`, or why not. */
  ended = new Promise<string>((resolve) => {
    this.#end = resolve;
  });

  constructor(sql: string, expectedMs = 0.01, protocol: 'query' | 'batch' | null = null) {
    super(new FixedPace(expectedMs));
    this.sql = sql;
    this.#protocol = protocol;
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
    if (this.#protocol === 'batch') backend.send([this.#messages, SYNC], { kind: 'batch', internal: false });
    else backend.send(encodeQuery(this.sql), { kind: 'query', internal: false });
  }
  override fits(): boolean {
    return !this.forgotten;
  }
  override joins(): 'query' | 'batch' | null {
    return (this.pace as FixedPace).joins ? this.#protocol : null;
  }
  override get mostBytes(): number {
    return this.#said.length;
  }
  override put(_backend: Backend, into: Buffer, at: number): number {
    return this.#said.copy(into, at);
  }
  get #said(): Buffer {
    return this.#protocol === 'batch' ? this.#messages : Buffer.from(this.sql);
  }
  get #messages(): Buffer {
    const bind = encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] });
    return Buffer.concat([encodeParse('', this.sql), bind, encodeDescribe('portal', ''), encodeExecute('')]);
  }
  protected get isCertain(): boolean {
    return this.certain;
  }
  protected deliver(bytes: Buffer): void {
    this.pieces += 1;
    this.#text += bytes.toString('latin1');
  }
  protected answered(bytes: Buffer, _ms: number, ready: Buffer | null): void {
    this.deliver(ready === null ? bytes : Buffer.concat([bytes, ready]));
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

/** Lanes of pools with a server of their own, for the tests of one file. */
export class TestLanes {
  readonly #cluster: EmbeddedCluster;
  readonly #opened: { pool: Pool; watch: LaneWatch }[] = [];

  private constructor(cluster: EmbeddedCluster) {
    this.#cluster = cluster;
  }

  static async start(): Promise<TestLanes> {
    return new TestLanes(await startTestCluster());
  }

  get url(): string {
    return this.#cluster.url('postgres');
  }

  of(options: Partial<PoolOptions> = {}): { pool: Pool; lanes: Lanes } {
    const shard = 's1' as ShardName;
    const url = new URL(this.url);
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
    this.#opened.push({ pool, watch });
    const prepare = async (backend: Backend, settings: SettingMap) => {
      backend.attach(SILENT_OWNER);
      await applySettings(backend, settings);
    };
    return { pool, lanes: new Lanes(pool, watch, pino({ level: 'silent' }), prepare) };
  }

  close(): void {
    for (const { pool, watch } of this.#opened.splice(0)) {
      watch.close();
      pool.close();
    }
  }
}

/** The lane that a read would join. */
export async function laneOf(lanes: Lanes): Promise<Lane> {
  return waitFor(() => lanes.group(NO_SETTINGS)?.choose(performance.now()), { what: 'a lane' });
}

export function join(lane: Lane, ...reads: readonly TestRead[]): void {
  for (const read of reads) lane.join(read, performance.now());
}
