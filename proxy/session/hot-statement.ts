import type { RenamedText } from '../router/renamed-text.js';
import type { Analyzed, Halves } from '../router/route.js';
import type { Router } from '../router/router.js';
import { decodeErrorFields, encodeErrorResponse } from '../wire/error-response.js';
import { BACKEND } from '../wire/message-types.js';
import type { PreparedContent } from './prepared.js';
import { RefusedError } from './refusals.js';

/** A client's statement as it is said where the hot half of its rows is. */
export interface HotStatement {
  /** What it was made from. */
  readonly analyzed: Analyzed;
  readonly halves: Halves;
  readonly text: RenamedText;
  /** Under which servers have it prepared. */
  readonly content: PreparedContent;
}

/** @throws RefusedError when the text cannot be said with the hot table's name */
export function hotTextOf(router: Router, analyzed: Analyzed, halves: Halves): RenamedText {
  const text = router.hotText(analyzed, 0, halves);
  if (text !== null) return text;
  throw new RefusedError(
    '0A000',
    'the statement is about columns that are on another shard than their rows, and the name of their table is written in a way that is not understood there',
    { hint: 'Write the name of the table without quotes of another kind, and without UESCAPE.' },
  );
}

/** An ErrorResponse to what was said to the hot table, as of the table. */
function errorOfTable(frame: Buffer, { table, split: { hot } }: Halves, text: RenamedText): Buffer {
  const { position, ...fields } = decodeErrorFields(frame);
  const ofHot = fields.table === hot.table && fields.schema === hot.schema;
  return encodeErrorResponse({
    ...fields,
    message: fields.message.replaceAll(`"${hot.table}"`, `"${table.table}"`),
    ...(ofHot && { schema: table.schema, table: table.table }),
    ...(position !== undefined && { position: text.positionAsSent(position) }),
  });
}

/** For an expectation: replies as the client is to see them. */
export function tellOfTable(halves: Halves, text: RenamedText): (type: number, frame: Buffer) => Buffer {
  return (type, frame) => (type === BACKEND.ErrorResponse ? errorOfTable(frame, halves, text) : frame);
}
