import { EXIT } from './failure.js';

export interface SignalTrap {
  /** Aborted at the first SIGINT or SIGTERM. */
  readonly signal: AbortSignal;
  /** What the process should end with once everything is stopped, or 0 when no signal came. */
  exitCode(): number;
  /** Gives the signals back to Node. */
  release(): void;
}

/** Catches the first SIGINT or SIGTERM for an orderly stop; the second one ends the process at once. */
export function trapSignals(): SignalTrap {
  const controller = new AbortController();
  let code: number = EXIT.ok;
  const caught = (name: NodeJS.Signals) => {
    const next = name === 'SIGINT' ? EXIT.interrupted : EXIT.terminated;
    // npm and a terminal may both deliver the same Ctrl-C: only a later one means "now".
    if (controller.signal.aborted && Date.now() - firstAt > 500) process.exit(next);
    if (controller.signal.aborted) return;
    firstAt = Date.now();
    code = next;
    controller.abort();
  };
  let firstAt = 0;
  process.on('SIGINT', caught);
  process.on('SIGTERM', caught);
  return {
    signal: controller.signal,
    exitCode: () => code,
    release: () => {
      process.off('SIGINT', caught);
      process.off('SIGTERM', caught);
    },
  };
}

/** Resolves when `signal` is aborted. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
