import { ForeshardError } from '../../topology/errors.js';
import type { ProtocolError } from '../wire/protocol-error.js';

/**
 * A login that is refused. The client is told what PostgreSQL would tell it, which does not give away who exists and what is set up;
 * the log also gets the reason.
 */
export class LoginRefusedError extends ForeshardError {
  /** For the log alone. */
  readonly reason: string;
  /** A guess that went wrong: counts against its address and user. */
  readonly wrongSecret: boolean;

  constructor(
    sqlstate: string,
    message: string,
    options: {
      readonly reason: string;
      readonly wrongSecret?: boolean;
      readonly detail?: string;
      readonly hint?: string;
      readonly cause?: unknown;
    },
  ) {
    super(sqlstate, message, options);
    this.reason = options.reason;
    this.wrongSecret = options.wrongSecret ?? false;
  }
}

/** 28P01. `reason` says what was wrong with it, in the words of PostgreSQL's log. */
export function passwordRefused(user: string, reason: string): LoginRefusedError {
  return new LoginRefusedError('28P01', `password authentication failed for user "${user}"`, {
    reason,
    wrongSecret: true,
  });
}

/** A malformed message inside the exchange: unlike a malformed frame, it is answered, as PostgreSQL does. */
export function exchangeRefused(error: ProtocolError): LoginRefusedError {
  return new LoginRefusedError(error.sqlstate, error.message, {
    reason: error.detail ?? error.message,
    cause: error,
    ...(error.detail === undefined ? {} : { detail: error.detail }),
  });
}
