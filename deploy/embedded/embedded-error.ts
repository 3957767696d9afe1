import { ForeshardError } from '../../topology/errors.js';

/** An embedded server cannot be started, or its data cannot be used. */
export class EmbeddedError extends ForeshardError {
  constructor(message: string, options: { hint?: string; detail?: string; cause?: unknown } = {}) {
    super('58000', message, options);
  }
}
