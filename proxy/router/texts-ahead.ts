import type { SessionNames } from './analyzed-text.js';
import type { Reading } from './reading.js';
import type { TextReader } from './text-reader.js';

/** Longer texts are read in another thread: this many bytes of VALUES take some 20 ms. A message of more than this has memory of its own. */
export const LONG_TEXT_BYTES = 64 * 1024;

interface Ahead {
  /** Where in its memory the text is. */
  readonly start: number;
  readonly length: number;
  /** What it was read for. */
  readonly session: SessionNames;
  readonly world: object;
  readonly reading: Reading | null | 'too large';
}

/** Long texts that another thread has read for their sessions, before these look at them. */
export class TextsAhead {
  readonly #reader: TextReader | null;
  /** By the memory that the text is in. */
  readonly #ahead = new WeakMap<ArrayBufferLike, Ahead>();

  /** @param reader null: none is read ahead */
  constructor(reader: TextReader | null) {
    this.#reader = reader;
  }

  /** Whether the text is long enough. */
  isFor(text: Buffer): boolean {
    return this.#reader !== null && text.length > LONG_TEXT_BYTES;
  }

  /**
   * Has it read, for `find`. Never rejects.
   * @param source what is read of it
   * @param world what it is read for: what was found is of no use in another
   */
  async read(
    text: Buffer,
    source: Buffer,
    read: Parameters<TextReader['read']>[1],
    session: SessionNames,
    world: object,
  ): Promise<void> {
    const about = { start: text.byteOffset, length: text.length, session, world };
    const reading = await (this.#reader as TextReader).read(source, read);
    if (reading !== 'unable') this.#ahead.set(text.buffer, { ...about, reading });
  }

  /** What was read of it; undefined: nothing was. */
  find(text: Buffer, session: SessionNames, world: object): Ahead['reading'] | undefined {
    if (text.length <= LONG_TEXT_BYTES) return undefined;
    const ahead = this.#ahead.get(text.buffer);
    if (ahead === undefined || ahead.start !== text.byteOffset || ahead.length !== text.length) return undefined;
    // Names may mean something else by now.
    return ahead.world === world && ahead.session === session ? ahead.reading : undefined;
  }

  close(): void {
    this.#reader?.close();
  }
}
