import { decodeErrorFields, ServerError } from '../wire/error-response.js';

/** An internal statement failed on the server. */
export class InternalStatementError extends Error {
  /** The server's ErrorResponse. */
  readonly frame: Buffer;
  constructor(frame: Buffer) {
    super('internal statement failed');
    this.name = 'InternalStatementError';
    this.frame = frame;
  }
}

/** The server's own error, if `error` is that of an internal statement; else `error` itself. */
export function asServerError(error: unknown): unknown {
  return error instanceof InternalStatementError ? new ServerError(decodeErrorFields(error.frame)) : error;
}
