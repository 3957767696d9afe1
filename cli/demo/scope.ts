/** The demo was told to stop. */
class InterruptedError extends Error {}

interface Held {
  readonly what: string;
  readonly ready: Promise<(() => Promise<void>) | null>;
}

/**
 * Everything that must be stopped or removed in the end. What is still being started when the scope closes is waited for and
 * stopped as well, so that an interruption at any moment leaves nothing.
 */
export class Scope {
  private readonly held: Held[] = [];
  private closing: Promise<void> | null = null;

  /**
   * Starts something and remembers how to stop it.
   * @throws InterruptedError when the scope is closing; nothing is started then
   */
  async acquire<T>(what: string, start: () => Promise<T>, stop: (thing: T) => Promise<void>): Promise<T> {
    if (this.closing !== null) throw new InterruptedError(`${what} is not started: the demo is stopping`);
    const starting = start();
    // What could not be started need not be stopped; whoever asked for it hears of the failure.
    this.held.push({
      what,
      ready: starting.then(
        (thing) => () => stop(thing),
        () => null,
      ),
    });
    return await starting;
  }

  /** Stops everything, the latest first, each whether or not the others could be. Resolves with what went wrong. */
  async close(): Promise<string[]> {
    const problems: string[] = [];
    this.closing ??= (async () => {
      for (let held = this.held.pop(); held !== undefined; held = this.held.pop()) {
        try {
          await (await held.ready)?.();
        } catch (error) {
          problems.push(`${held.what}: ${error instanceof Error ? error.message : String(error)}`);
        }
      }
    })();
    await this.closing;
    return problems;
  }
}
