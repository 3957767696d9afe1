import type { Backend } from '../backend/backend.js';
import { decodeRowDescription, type FieldDescription } from '../wire/backend.js';
import { COPY_DONE, encodeCopyFail, encodeQuery } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { readAlike } from './column-types.js';
import { COPY_HEADER, COPY_TRAILER, RowRelay } from './row-relay.js';

/** For whom rows are copied. */
export interface Copying {
  /** Where they go. */
  workspace(): Backend;
  /** What may be brought in all, bytes. */
  readonly mostBytes: number;
  /** @throws when it is not to go on */
  check(): void;
  /** What still runs on the shards is of no use any more. */
  cancel(): void;
}

/** Rows of one table that a shard has been asked for. */
export interface Fetch {
  readonly reader: Backend;
  readonly relay: RowRelay;
  /** Rows that had been read before their turn came. */
  readonly early: readonly Buffer[];
  readonly done: Promise<string>;
}

/** Copies rows of shards into tables of the workspace. All shards work at the same time; their rows go there one shard after the other, held back by the sockets. */
export class RowCopy {
  readonly #for: Copying;
  /** Bytes so far. */
  brought = 0;
  /** A shard has columns of other types than the workspace. */
  differs = false;
  /** What still comes is of no use. */
  stopped = false;
  /** The shard whose rows go to the workspace now. */
  #source: Backend | null = null;
  #relay: RowRelay | null = null;
  /** The workspace has been sent a row up to its middle. */
  #torn = false;

  constructor(copying: Copying) {
    this.#for = copying;
  }

  /** More has come than may be brought. */
  get isOver(): boolean {
    return this.brought > this.#for.mostBytes;
  }

  /** Asks a shard for rows, which wait there until they are let through. @param messages a batch that gives them in binary form @param types of their columns in the workspace */
  fetch(reader: Backend, messages: readonly Buffer[], types: readonly FieldDescription[]): Fetch {
    const relay = new RowRelay();
    const early: Buffer[] = [];
    reader.connection.pause();
    const done = reader.runBatchInternal(messages, {
      rows: (slice) => {
        if (this.stopped) return;
        const bytes = relay.convert(slice);
        if (this.#source === reader) this.#pass(bytes);
        else early.push(bytes);
      },
      replied: (type, frame) => {
        if (type !== BACKEND.RowDescription || readAlike(decodeRowDescription(frame), types)) return;
        this.differs = true;
        this.stop();
      },
    });
    // It may fail before its turn comes.
    done.catch(() => undefined);
    return { reader, relay, early, done };
  }

  /** @param table as SQL has its name @returns the number of rows */
  async into(table: string, fetched: readonly Fetch[]): Promise<number> {
    const workspace = this.#for.workspace();
    const { opened, done: copied } = workspace.copyInternal(encodeQuery(`COPY ${table} FROM STDIN (FORMAT binary)`));
    await opened;
    try {
      await Promise.race([this.#feed(fetched), copied]);
    } catch (error) {
      this.stop();
      // In the middle of a row, whatever followed would be taken for the rest of it.
      if (this.#torn) workspace.destroy();
      else workspace.sendRaw(encodeCopyFail('the rows of a shard did not come'));
      await copied.catch(() => undefined);
      throw error;
    } finally {
      this.#source = null;
    }
    await copied;
    return fetched.reduce((sum, { relay }) => sum + relay.rows, 0);
  }

  async #feed(fetched: readonly Fetch[]): Promise<void> {
    const workspace = this.#for.workspace();
    workspace.sendRaw(COPY_HEADER);
    for (const { reader, relay, early, done } of fetched) {
      this.#source = reader;
      this.#relay = relay;
      reader.connection.resume();
      for (const bytes of early) this.#pass(bytes);
      await done;
      this.#for.check();
    }
    workspace.sendRaw(COPY_TRAILER);
    workspace.sendRaw(COPY_DONE);
  }

  /** Rows of the current source. */
  #pass(bytes: Buffer): void {
    this.brought += bytes.length;
    if (this.isOver) this.stop();
    if (this.stopped) return;
    // Of bytes that were kept, the last may be part of a row though others of them are not: then it is a connection the less.
    this.#torn = this.#relay?.whole === false;
    if (!this.#for.workspace().sendRaw(bytes)) this.#source?.connection.pause();
  }

  /** The workspace can take more. */
  resume(): void {
    this.#source?.connection.resume();
  }

  /** What still comes is of no use. */
  stop(): void {
    if (this.stopped) return;
    this.stopped = true;
    this.#for.cancel();
  }

  /** From the beginning: nothing of what was brought is left. */
  again(): void {
    this.stopped = false;
    this.brought = 0;
  }
}
