import { ForeshardError } from '../../topology/errors.js';

/** A peer broke the frontend/backend protocol: SQLSTATE 08P01, in PostgreSQL's own words where it has them. Ends the connection. */
export class ProtocolError extends ForeshardError {
  constructor(message: string, options: { hint?: string; detail?: string; cause?: unknown } = {}) {
    super('08P01', message, options);
  }
}

/** Whoever is at the other end does not speak this protocol: the connection is closed without an answer, as PostgreSQL does. */
export class UnansweredError extends ProtocolError {}
