/**
 * Look-ups by name that those who ask together share. An answer is of a look-up that began after it was asked for, so that what was changed before a
 * login is known to it: while one runs, all who come wait for the same next one.
 */
export class SharedLookup<T> {
  readonly #ask: (name: string) => Promise<T>;
  /** Not begun yet. */
  readonly #waiting = new Map<string, Promise<T>>();
  readonly #running = new Map<string, Promise<unknown>>();

  constructor(ask: (name: string) => Promise<T>) {
    this.#ask = ask;
  }

  find(name: string): Promise<T> {
    const waiting = this.#waiting.get(name);
    if (waiting !== undefined) return waiting;
    const before = this.#running.get(name);
    const start = async (): Promise<T> => {
      if (before !== undefined) await before.catch(() => undefined);
      this.#waiting.delete(name);
      const asking = this.#ask(name);
      this.#running.set(name, asking);
      try {
        return await asking;
      } finally {
        if (this.#running.get(name) === asking) this.#running.delete(name);
      }
    };
    const promise = start();
    // With nothing running it has begun already.
    if (before !== undefined) this.#waiting.set(name, promise);
    return promise;
  }
}
