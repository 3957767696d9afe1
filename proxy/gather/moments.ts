import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { allDone } from '../session/all-done.js';
import type { ClientSession } from '../session/client-session.js';
import { beginLike, boundOutside, type SpreadBlock } from '../session/spread-block.js';
import type { SpreadWait } from '../session/spread-wait.js';
import { encodeQuery } from '../wire/frontend.js';
import { type Formed, type Stage, stageText } from './brought.js';
import { rollBack } from './connections.js';
import type { HalvesReading } from './halves.js';
import { IS_AS_SEEN, RewrittenError } from './rewritten.js';

/** One moment for all tables of a shard. Their transactions wait for each other, which is not their client's idleness. */
const begin = (mode: string) =>
  `BEGIN ISOLATION LEVEL REPEATABLE READ ${mode}; SET LOCAL idle_in_transaction_session_timeout = 0`;
const BEGIN = begin('READ WRITE');
const BEGIN_READING = begin('READ ONLY');
/** The query itself changes nothing: whatever it calls. */
const READ_ONLY = encodeQuery(`${IS_AS_SEEN}; SET TRANSACTION READ ONLY`);
/** The end of what has read. */
const READ = encodeQuery(`${IS_AS_SEEN}; COMMIT`);
const COMMIT = encodeQuery('COMMIT');
/** Each of its statements sees another moment. */
const BEGIN_LOOKING =
  'BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0';
const ROLLBACK = encodeQuery('ROLLBACK');
/** In the client's own transaction, for what may fail and is then asked for in another way. */
const SAVE = encodeQuery('SAVEPOINT foreshard_rows');
const FORGET = encodeQuery('RELEASE SAVEPOINT foreshard_rows');
const GO_BACK = encodeQuery('ROLLBACK TO SAVEPOINT foreshard_rows; RELEASE SAVEPOINT foreshard_rows');

/** Who reads for a gathered query. */
export class Readers {
  /** Of its own, to shards on which the client's block has not written, and to the home shard. */
  readonly own: Backend[] = [];
  /** Those of the client's transaction block to shards on which it has written: what these have is read there. */
  readonly lent: Backend[] = [];
  readonly #home: ShardName;

  constructor(home: ShardName) {
    this.#home = home;
  }

  get all(): readonly Backend[] {
    return [...this.own, ...this.lent];
  }

  /** On the home shard: what has the copies, and answers. */
  get workspace(): Backend {
    return this.own.find((backend) => backend.shard === this.#home) as Backend;
  }

  /** Of its own, to shards on which the client's block has not written. */
  get free(): Backend[] {
    return this.own.filter((backend) => backend !== this.workspace && !this.isLent(backend));
  }

  /** Of its own, to the others: what the block's cannot be asked. */
  get witnesses(): Backend[] {
    return this.own.filter((backend) => backend !== this.workspace && this.isLent(backend));
  }

  isLent({ shard }: Backend): boolean {
    return this.lent.some((lent) => lent.shard === shard);
  }
}

/** Of a shard on which the client's own transaction reads. */
export interface StageOn extends Stage {
  readonly reader: Backend;
}

/** The transactions in which a gathered query reads: what each of its readers sees, and how the client's block, where that reads, comes to be as it was. */
export class Moments {
  readonly #session: ClientSession;
  readonly #readers: Readers;
  readonly #block: SpreadBlock | null;
  readonly #wait: SpreadWait | null;
  /** The block can go back to where it was. */
  #saved = false;
  /** Whose waits are bounded outside of transactions. */
  readonly #bounded = new Set<Backend>();

  /** @param block the client's; null: it is in none @param wait null: deadlocks are not looked for */
  constructor(session: ClientSession, readers: Readers, block: SpreadBlock | null, wait: SpreadWait | null) {
    this.#session = session;
    this.#readers = readers;
    this.#block = block;
    this.#wait = wait;
  }

  /** Runs something on the workspace with the settings of the client's block, where it has some of its own, and with its bound where it may hold locks. */
  async asInBlock<T>(work: () => Promise<T>): Promise<T> {
    const block = this.#block;
    if (block === null || (block.deferred && block.opening.length === 0)) return work();
    const { workspace } = this.#readers;
    try {
      await beginLike(block, workspace, this.#begun(BEGIN), this.#session);
      return await work();
    } finally {
      await rollBack(workspace);
    }
  }

  /** One moment for each shard, but for those of the client's own transaction. @param mayFail what is read may fail, and be asked for again */
  async begin(mayFail: boolean): Promise<void> {
    const { workspace, free } = this.#readers;
    await allDone([
      this.#beginAs(this.#block, workspace, BEGIN),
      ...free.map((reader) => this.#beginAs(this.#block, reader, BEGIN_READING)),
      ...(mayFail ? [this.#save()] : []),
    ]);
  }

  /**
   * The same for rows in two halves, which are looked at before.
   * @param of what is read there @param open has the moment of a stage be now; its rows wait
   * @returns what has its moment in the client's own transaction, and is still to be fetched
   */
  async beginHalves(
    halves: HalvesReading,
    of: (reader: Backend) => readonly Formed[],
    open: (reader: Backend, text: string) => Promise<void>,
  ): Promise<readonly StageOn[]> {
    const { workspace, free, lent, witnesses } = this.#readers;
    const atHome = this.#readers.isLent(workspace) ? [] : [workspace];
    const outside = [...free, workspace, ...witnesses];
    await this.#save();
    await this.#outside(outside, () => halves.ahead([...free, ...atHome, ...lent], outside));
    const stages = lent
      .map((reader) => ({ reader, of: of(reader), asked: halves.asked(reader.shard) }))
      .filter((stage) => stage.of.length + stage.asked.length > 0);
    await allDone(free.map((reader) => this.#beginOn(reader, BEGIN_READING)));
    const opened = stages.map((stage) => open(stage.reader, stageText(stage, stage.reader.shard)));
    await allDone([halves.inSnapshots(free), ...opened]);
    await this.#outside([workspace], () => halves.aheadAtHome(workspace));
    await this.#beginOn(workspace, BEGIN);
    await halves.inSnapshots(atHome);
    return stages;
  }

  /** The readers have done their work; the query is the next thing to run. @throws RewrittenError */
  async release(halves: HalvesReading | null = null): Promise<void> {
    const { workspace, free, lent, witnesses } = this.#readers;
    await allDone([
      ...free.map((reader) => asSeen(reader, READ)),
      asSeen(workspace, READ_ONLY),
      ...(halves === null ? [this.#forget()] : []),
    ]);
    if (halves === null) return;
    const outside = [...free, ...witnesses];
    await this.#outside(outside, () => halves.behind([...free, ...lent], outside));
    await this.#forget();
  }

  /** The answer is whole, whatever comes of this. */
  async end(): Promise<void> {
    await this.#readers.workspace.runInternal(COMMIT).catch(() => undefined);
  }

  /** All has come to nothing on connections of its own. */
  async endAll(): Promise<void> {
    await Promise.all(this.#readers.own.map(rollBack));
  }

  /** The same, and the client's block is where it was. */
  async goBack(): Promise<void> {
    await this.endAll();
    if (!this.#saved) return;
    this.#saved = false;
    await Promise.all(this.#readers.lent.map((reader) => reader.runInternal(GO_BACK)));
  }

  /** The client's block can go back to here. */
  async #save(): Promise<void> {
    const { lent } = this.#readers;
    if (lent.length === 0) return;
    this.#saved = true;
    await allDone(lent.map((reader) => reader.runInternal(SAVE)));
  }

  /** It has not to. */
  async #forget(): Promise<void> {
    if (!this.#saved) return;
    this.#saved = false;
    await allDone(this.#readers.lent.map((reader) => reader.runInternal(FORGET)));
  }

  /** What begins a transaction. */
  #begun(sql: string): Buffer {
    return this.#wait?.begun(sql) ?? encodeQuery(sql);
  }

  #beginAs(block: SpreadBlock | null, backend: Backend, sql: string): Promise<void> {
    return beginLike(block, backend, this.#begun(sql), this.#session);
  }

  /** Begins a transaction with the settings of the client's block, on a connection whose waits are bounded. */
  #beginOn(backend: Backend, sql: string): Promise<void> {
    return this.#beginAs(this.#hasSettings ? this.#block : null, backend, sql);
  }

  /** The client's block has some of its own. */
  get #hasSettings(): boolean {
    return this.#block !== null && this.#block.opening.length > 0;
  }

  /** Works on connections that have no transaction open, so that each statement sees its own moment, with the settings of the client's block. */
  async #outside(backends: readonly Backend[], work: () => Promise<void>): Promise<void> {
    if (this.#hasSettings) {
      await allDone(backends.map((backend) => this.#beginOn(backend, BEGIN_LOOKING)));
      await work();
      await allDone(backends.map((backend) => backend.runInternal(ROLLBACK)));
      return;
    }
    const others = backends.filter((backend) => !this.#bounded.has(backend));
    await allDone(others.map((backend) => boundOutside(this.#block, backend)));
    for (const backend of others) this.#bounded.add(backend);
    await work();
  }
}

/** @throws RewrittenError when it answers IS_AS_SEEN with false */
async function asSeen(backend: Backend, sql: Buffer): Promise<void> {
  if ((await backend.value(sql)) !== 't') throw new RewrittenError(backend.shard);
}
