/**
 * What a client's statement waits for in the proxy can be ended by this: an AbortSignal that is made only when somebody really
 * waits. Most statements find a connection at once, and a signal is the dearest thing that one would make.
 */
export class Wait {
  #controller: AbortController | null = null;
  #reason: Error | null = null;
  /** Told without a signal: with more clients than connections nearly every statement waits for one, and a signal takes longer than the rest. */
  readonly #listeners: (() => void)[] = [];

  get aborted(): boolean {
    return this.#reason !== null;
  }

  get reason(): unknown {
    return this.#reason ?? undefined;
  }

  get signal(): AbortSignal {
    if (this.#controller === null) {
      this.#controller = new AbortController();
      if (this.#reason !== null) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  throwIfAborted(): void {
    if (this.#reason !== null) throw this.#reason;
  }

  abort(reason: Error): void {
    if (this.#reason !== null) return;
    this.#reason = reason;
    this.#controller?.abort(reason);
    for (const listener of this.#listeners.splice(0)) listener();
  }

  addEventListener(_type: 'abort', listener: () => void): void {
    this.#listeners.push(listener);
  }

  removeEventListener(_type: 'abort', listener: () => void): void {
    const i = this.#listeners.indexOf(listener);
    if (i >= 0) this.#listeners.splice(i, 1);
  }
}
