import { isUtf8 } from 'node:buffer';

/** What is to be changed in one statement of a Query's text. */
export interface Rewrite {
  /** Which of the text's statements. */
  readonly index: number;
  /** Replaced in it: byte offsets in the client's text. */
  readonly replace?: { readonly start: number; readonly end: number; readonly by: string };
  readonly before?: readonly Own[];
  readonly after?: readonly Own[];
}

/** A statement of ours that runs just before or just after one of the client's. */
export interface Own {
  /** A byte string. */
  readonly sql: string;
  /** Called when a server has done it. */
  readonly done?: () => void;
  /** What to add to a position in it, in characters, for where the client once had it written. Absent: the client has not. */
  readonly shift?: number;
}

interface Piece {
  /** In characters from the start of the text that is sent, and of the client's. */
  readonly sent: number;
  readonly own: number;
  readonly copied: boolean;
  readonly shift?: number;
}

/** A client's query string as the server gets it: with other names in it, and with statements of ours between the client's. */
export class SentText {
  readonly sql: Buffer;
  /** For each statement that is sent: which of the client's it is, or the one of ours. */
  readonly origins: readonly (number | Own)[];
  readonly #pieces: readonly Piece[];

  /** `statements`: byte offsets of the client's statements. `rewrites`: in their order, at most one for each. */
  constructor(
    text: Buffer,
    statements: readonly { readonly start: number; readonly end: number }[],
    rewrites: readonly Rewrite[],
  ) {
    const utf8 = isUtf8(text);
    const length = (b: Buffer) => (utf8 ? characters(b) : b.length);
    const parts: Buffer[] = [];
    const pieces: Piece[] = [];
    let from = 0;
    let sent = 0;
    let own = 0;
    const copyTo = (to: number) => {
      const part = text.subarray(from, to);
      pieces.push({ sent, own, copied: true });
      parts.push(part);
      sent += length(part);
      own += length(part);
      from = to;
    };
    const insert = (sql: string, instead = 0, shift?: number) => {
      const part = Buffer.from(sql, 'latin1');
      pieces.push({ sent, own, copied: false, ...(shift === undefined ? {} : { shift }) });
      parts.push(part);
      sent += length(part);
      own += length(text.subarray(from, from + instead));
      from += instead;
    };
    for (const { index, replace, before, after } of rewrites) {
      const { start, end } = statements[index] as { start: number; end: number };
      copyTo(start);
      for (const { sql, shift } of before ?? []) insert(`${sql}; `, 0, shift);
      if (replace !== undefined) {
        copyTo(replace.start);
        insert(replace.by, replace.end - replace.start);
      }
      copyTo(end);
      for (const { sql } of after ?? []) insert(`; ${sql}`);
    }
    copyTo(text.length);
    this.sql = Buffer.concat(parts);
    this.#pieces = pieces;
    this.origins = statements.flatMap((_, index) => {
      const rewrite = rewrites.find((r) => r.index === index);
      return [...(rewrite?.before ?? []), index, ...(rewrite?.after ?? [])];
    });
  }

  /** Where a position (in characters, from 1) in what was sent is in the client's own text. */
  position(position: number): number {
    let i = this.#pieces.length - 1;
    while (i > 0 && (this.#pieces[i] as Piece).sent >= position) i--;
    const { sent, own, copied, shift } = this.#pieces[i] as Piece;
    if (shift !== undefined) return position - sent + shift;
    return copied ? own + position - sent : own + 1;
  }
}

/** In UTF-8. */
export function characters(text: Buffer): number {
  let n = 0;
  for (const byte of text) if ((byte & 0xc0) !== 0x80) n++;
  return n;
}
