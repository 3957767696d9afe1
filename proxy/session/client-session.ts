import type { Logger } from 'pino';
import type { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Lanes } from '../backend/lanes.js';
import type { Notifications } from '../backend/notifications.js';
import type { Pool } from '../backend/pool.js';
import type { LiveTopology } from '../live-topology.js';
import type { Replicas } from '../replicas.js';
import type { Router } from '../router/router.js';
import type { SchemaView } from '../schema-view.js';
import type { LoadRecord } from '../telemetry/load-counter.js';
import type { PinCounts } from '../telemetry/pin-counts.js';
import type { ErrorFields } from '../wire/error-response.js';
import type { Activity } from './activity.js';
import type { Footprint } from './footprint.js';
import type { LaneReads } from './lane-reads.js';
import type { Lease } from './lease.js';
import type { Listening } from './listening.js';
import type { MessageBudget } from './message-budget.js';
import type { NameLookup } from './name-lookup.js';
import type { PreparedContents } from './prepared.js';
import type { ReplyGate } from './reply-gate.js';
import type { SessionSettings } from './settings.js';
import type { Spanning } from './span.js';
import type { Wait } from './wait.js';

/** What a session shares with the rest of the proxy. */
export interface SessionServices {
  readonly live: LiveTopology;
  readonly router: Router;
  readonly replicas: Replicas;
  readonly contents: PreparedContents;
  /** Told of every execution that is done. */
  readonly load: { record(record: LoadRecord): void };
  readonly logger: Logger;
  readonly holdTimeoutMs: number;
  /** Shared by all clients of the process. */
  readonly largeMessages: MessageBudget;
  /** What one query may bring together of the rows of several shards, in bytes; 0: there are no such queries. */
  readonly gatherBytes: number;
  readonly schema: SchemaView;
  /** Server connections to a shard as this client's user. */
  readonly pool: (shard: ShardName) => Pool;
  /** Its connections that several clients share. */
  readonly lanes: (shard: ShardName) => Lanes;
  /** The connections that listen for all clients. */
  readonly notifications: Notifications;
  /** Carries out time-outs: of this length there is one now. ms */
  readonly noteTimeout: (ms: number) => void;
  /** For transactions on several shards; null: there are none. */
  readonly spanning: Spanning | null;
  /** How often sessions were pinned, and why. */
  readonly pins: PinCounts;
  /** Whether sessions of this user have asked for currval or lastval before. */
  readonly asksSequences: { value: boolean };
}

/** A statement that runs on several shards, as the session that waits for it sees it. */
export interface SpreadRun {
  readonly footprint: Footprint;
  readonly backends: readonly Backend[];
  /** What the transaction block is to fail with in which it has run; null: nothing, or the client has been told. */
  readonly failure: ErrorFields | null;
  /** @returns false when the topology, or what names mean, changed before anything was sent. */
  run(signal: AbortSignal): Promise<boolean>;
  /** The client reads too slowly. */
  pause(): void;
  resume(): void;
  /** The client has gone: stop the shards. */
  abandon(): void;
}

/** One client, as those see it who carry out its statements: what it has, and how to answer it. */
export interface ClientSession {
  readonly services: SessionServices;
  readonly settings: SessionSettings;
  readonly lookup: NameLookup;
  readonly lease: Lease;
  /** What it reads on connections that it shares. */
  readonly lanes: LaneReads;
  readonly activity: Activity;
  /** What the client listens to. */
  readonly listening: Listening;
  /** What the client is told only once it is certain. */
  readonly gate: ReplyGate;
  /** Aborted when the client goes away or cancels while its statement waits for something in the proxy. */
  readonly wait: Wait;
  /** Replies in bytes since the statement began, for the load count. */
  bytesForwarded: number;
  /** Sends bytes to the client. */
  write(frame: Buffer): void;
  writeError(fields: ErrorFields): void;
  /** A server's ErrorResponse as the client is to see it. */
  worded(frame: Buffer): Buffer;
  /** Answers the client's Query or Sync without a server. */
  answerReady(): void;
  /** `again` runs what is sent now from its start, if the server says that a plan of it is out of date before anything else. */
  ifStale(again: (() => Promise<void>) | null): void;
  /** What to do when the server is lost before anything of the Query or batch has been given to the kernel; null: that is an error. */
  ifUnseen(again: (() => Promise<void>) | null): void;
  /** The client has set a time-out. */
  boundsChanged(): void;
  /** Waits for the notifications that PostgreSQL would send before it is ready again, outside of a transaction. */
  settled(): Promise<void>;
  /** The client's transaction is over at the server, which was not asked for that by a statement of the client's. */
  transactionEnded(backend: Backend, committed: boolean): Promise<void>;
  /** The server owes a ReadyForQuery that is for the client. */
  expectReady(): void;
  /**
   * Runs a statement for several shards until its last reply has gone to the client.
   * @returns false when the map, or what names mean, changed before it began: place it again.
   */
  runFanOut(run: SpreadRun): Promise<boolean>;
  /** Runs a statement on several branches of its transaction, whoever's that is. @returns as `runFanOut` */
  runHalves(run: SpreadRun): Promise<boolean>;
  /** Cancels what is under way, wherever that is; the client is told `reason`. */
  failUnderWay(reason: ForeshardError): void;
  /** Ends the session: FATAL to the client if `error` is given, server connection cleaned up. */
  close(error?: unknown): void;
}
