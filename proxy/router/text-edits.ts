/** Bytes of a text that others take the place of; as many as none where they are put in. */
export interface Edit {
  readonly start: number;
  readonly end: number;
  readonly put: string;
}

/** @param edits in order */
export function applyEdits(text: Buffer, edits: readonly Edit[]): Buffer {
  const pieces: Buffer[] = [];
  let at = 0;
  for (const { start, end, put } of edits) {
    pieces.push(text.subarray(at, start), Buffer.from(put));
    at = end;
  }
  return Buffer.concat([...pieces, text.subarray(at)]);
}

/** A position in the edited text, in characters from 1, as one in the text before. */
export function positionAsSent(text: Buffer, edits: readonly Edit[], position: number): number {
  let before = 0;
  for (const { start, end, put } of edits) {
    const added = characters(put);
    const at = characters(text.toString('utf8', 0, start)) + before;
    if (position <= at) break;
    // What is ours has no place in the text: the place where it was put, then.
    if (position <= at + added) return at - before + 1;
    before += added - characters(text.toString('utf8', start, end));
  }
  return position - before;
}

function characters(text: string): number {
  return [...text].length;
}
