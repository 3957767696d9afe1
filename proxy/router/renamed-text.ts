import type { ColumnRef, Node, RangeVar } from 'libpg-query';
import { walk } from './ast.js';
import { bare, canonical } from './expression-text.js';
import { parse } from './parse.js';
import { applyEdits, type Edit, positionAsSent } from './text-edits.js';

/** A client's text in which tables have other names. */
export interface RenamedText {
  readonly text: Buffer;
  /** A position in `text`, in characters from 1, as one in the client's own text. */
  positionAsSent(position: number): number;
}

/** The client's text, and one of its statements. */
interface Original {
  readonly text: Buffer;
  /** As PostgreSQL reads it with standard_conforming_strings on or off: as sent. */
  readonly parsed: Buffer;
  readonly index: number;
  readonly statement: Node;
}

/** What the edits are meant to do, to nodes of a copy of the tree. */
export interface Renaming {
  /** @param original the node that it is a copy of */
  readonly table: (node: RangeVar, original: RangeVar) => void;
  readonly column?: (ref: ColumnRef) => void;
}

/** Whether the text is the one that has been parsed, so that it can be parsed again with edits. */
export function isAsParsed({ text, parsed }: Pick<Original, 'text' | 'parsed'>): boolean {
  return text === parsed || text.equals(parsed);
}

/** The text with `edits`, which are of names only. Null: PostgreSQL would not read the statement in it as the same one with those names. */
export function renamedText(original: Original, edits: readonly Edit[], renaming: Renaming): RenamedText | null {
  const edited = editedText(original.text, edits);
  // A text with other strings for the parser cannot be told apart from its own, edited: then the edits are believed.
  return isAsParsed(original) && !readsAs(edited.text, original, renaming) ? null : edited;
}

/** The text with edits that are known to be right. */
export function editedText(text: Buffer, edits: readonly Edit[]): RenamedText {
  return {
    text: applyEdits(text, edits),
    positionAsSent: (position) => positionAsSent(text, edits, position),
  };
}

function readsAs(edited: Buffer, { index, statement }: Original, { table, column }: Renaming): boolean {
  const read = parse(edited)?.statements[index]?.node;
  const wanted = structuredClone(statement);
  // In the same order as in the copy.
  const originals: RangeVar[] = [];
  walk(statement, { rangeVar: (node) => originals.push(node) });
  let i = 0;
  walk(wanted, {
    rangeVar: (node) => table(node, originals[i++] as RangeVar),
    ...(column && { column }),
  });
  return canonical(bare(wanted, () => null)) === canonical(bare(read, () => null));
}
