import { once } from 'node:events';
import { createReadStream, createWriteStream, type WriteStream } from 'node:fs';
import { createInterface } from 'node:readline';

/** One row that a write made, changed or counted up. Values are what a client asked for, in the form `audit.ts` compares. */
export type Effect =
  | { readonly kind: 'insert'; readonly table: LiveTable; readonly id: string; readonly value: string }
  /** A new note on an order; it also raises the order's revision by one. `from`: the value of an order that was there before the load, else null. */
  | {
      readonly kind: 'update';
      readonly table: 'orders';
      readonly id: string;
      readonly note: string;
      readonly from: string | null;
    }
  /** One more order on the tenant's counter. */
  | { readonly kind: 'count'; readonly table: 'tenants'; readonly id: string };

export type LiveTable = 'orders' | 'order_items';

/**
 * What a client knows about one write (a statement in autocommit, or a transaction at its COMMIT):
 * - `acknowledged`: the server said it is done;
 * - `unknown`: the connection was lost after the write (or its COMMIT) had been sent, so it may or may not be there.
 *
 * A write that the server refused is not journalled: it must not be there.
 */
export interface JournalEntry {
  readonly outcome: 'acknowledged' | 'unknown';
  readonly tenant: number;
  readonly effects: readonly Effect[];
}

/** An append-only file of what clients were told, one JSON line per write. */
export class JournalWriter {
  private readonly out: WriteStream;

  constructor(readonly path: string) {
    this.out = createWriteStream(path, { flags: 'a' });
  }

  append(entry: JournalEntry): void {
    this.out.write(`${JSON.stringify(entry)}\n`);
  }

  /** Writes out what is buffered and closes the file. */
  async close(): Promise<void> {
    this.out.end();
    if (!this.out.closed) await once(this.out, 'close');
  }
}

/** Reads a journal back, line by line. */
export async function* readJournal(path: string): AsyncGenerator<JournalEntry> {
  const lines = createInterface({ input: createReadStream(path), crlfDelay: Number.POSITIVE_INFINITY });
  for await (const line of lines) if (line !== '') yield JSON.parse(line) as JournalEntry;
}
