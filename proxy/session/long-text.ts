import { LONG_TEXT_BYTES } from '../router/texts-ahead.js';
import { decodeParse, decodeQuery } from '../wire/frontend.js';
import { FRONTEND } from '../wire/message-types.js';
import type { Incoming } from './inbox.js';
import type { ClientStatements } from './statements.js';

/** Has a long text read in another thread, before its message is carried out. Null: there is no need. */
export function readAhead({ type, frame }: Incoming, statements: ClientStatements): Promise<void> | null {
  if (frame.length <= LONG_TEXT_BYTES) return null;
  const text = textOf(type, frame);
  return text === null ? null : statements.readAhead(text);
}

/** The SQL in a message; null: there is none, or it is not to be found. */
function textOf(type: number, frame: Buffer): Buffer | null {
  try {
    if (type === FRONTEND.Query) return decodeQuery(frame);
    return type === FRONTEND.Parse ? decodeParse(frame).sql : null;
  } catch {
    return null; // whoever carries it out says so
  }
}

/** Rejects with the signal's reason as soon as it is aborted. */
export function unlessAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    work.then(resolve, reject);
  });
}
