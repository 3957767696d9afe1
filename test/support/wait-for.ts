import { setTimeout as delay } from 'node:timers/promises';

/** At first, and as part of what it has taken so far: what takes seconds is not asked for fifty times in each. */
const POLL_MS = 20;
const POLL_SHARE = 0.1;
const MAX_POLL_MS = 100;

/**
 * Polls until `condition` gives something truthy, and gives that.
 * @throws {Error} naming `what` after `timeoutMs` (default 90,000); the last error of the condition is its cause
 */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  options: { readonly what: string; readonly timeoutMs?: number },
): Promise<Exclude<T, false | null | undefined | 0 | ''>> {
  const timeoutMs = options.timeoutMs ?? 90_000;
  const began = performance.now();
  const deadline = began + timeoutMs;
  for (;;) {
    let cause: unknown;
    try {
      const value = await condition();
      if (value) return value as Exclude<T, false | null | undefined | 0 | ''>;
    } catch (error) {
      cause = error;
    }
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${options.what}`, { cause });
    await delay(Math.min(Math.max(POLL_MS, (performance.now() - began) * POLL_SHARE), MAX_POLL_MS));
  }
}
