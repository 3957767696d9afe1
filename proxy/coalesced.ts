/** Work that is worth doing once for all who want it: who asks while it is under way shares one more run, which begins after it. */
export class Coalesced<T> {
  readonly #work: () => Promise<T>;
  #running: Promise<T> | null = null;
  #next: Promise<T> | null = null;

  constructor(work: () => Promise<T>) {
    this.#work = work;
  }

  /** What comes of a run that begins now or later. */
  run(): Promise<T> {
    if (this.#running === null) return this.#start();
    const again = () => {
      this.#next = null;
      return this.#start();
    };
    this.#next ??= this.#running.then(again, again);
    return this.#next;
  }

  #start(): Promise<T> {
    const running = this.#work().finally(() => {
      if (this.#running === running) this.#running = null;
    });
    this.#running = running;
    return running;
  }
}
