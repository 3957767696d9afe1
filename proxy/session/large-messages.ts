import { ForeshardError } from '../../topology/errors.js';
import { LARGE_MESSAGE_BYTES, type MessageBudget } from './message-budget.js';

/** What one client has of the process's budget for large messages. */
export class LargeMessages {
  readonly #budget: MessageBudget;
  readonly #owner: { admitted(): void };
  /** Granted in all; of that, for messages that have been looked at, and are let go of when they are done with. */
  #bytes = 0;
  #processed = 0;
  /** Granted for the message that waited; it asks once more. */
  #granted = 0;
  #withdraw: (() => void) | null = null;
  #closed = false;

  /** @param owner told when the message that had to wait may be read */
  constructor(budget: MessageBudget, owner: { admitted(): void }) {
    this.#budget = budget;
    this.#owner = owner;
  }

  /** A message of this size has begun to come. */
  admit(size: number): 'take' | 'wait' | 'refuse' {
    if (this.#granted === size) {
      this.#granted = 0;
      return 'take';
    }
    if (size > this.#budget.limit) return 'refuse';
    this.#withdraw = this.#budget.request(size, () => {
      this.#withdraw = null;
      this.#granted = size;
      this.#bytes += size;
      this.#owner.admitted();
    });
    if (this.#withdraw !== null) return 'wait';
    this.#bytes += size;
    return 'take';
  }

  /** A message is looked at now. */
  process(size: number): void {
    if (size > LARGE_MESSAGE_BYTES) this.#processed += size;
  }

  /** Nobody needs the messages that have been looked at any more. */
  done(): void {
    // A message of a streamed type was never asked about.
    const bytes = Math.min(this.#processed, this.#bytes);
    this.#processed = 0;
    if (bytes === 0) return;
    this.#bytes -= bytes;
    this.#budget.release(bytes);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#withdraw?.();
    this.#withdraw = null;
    if (this.#bytes > 0) this.#budget.release(this.#bytes);
    this.#bytes = 0;
  }

  refusal(size: number): ForeshardError {
    return new ForeshardError('54000', `a message of ${size} bytes is larger than the proxy holds in memory`, {
      hint: `Raise proxy.limits.largeMessageBytes, which is ${this.#budget.limit}, or use COPY.`,
    });
  }
}
