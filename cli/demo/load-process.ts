import { Load, type LoadProgress, type LoadResult } from './load.js';
import type { LoadOptions } from './load-options.js';

/** What the demo tells the process that runs the load. */
export type ToLoad = { readonly kind: 'start'; readonly options: LoadOptions } | { readonly kind: 'stop' };

/** What that process answers. */
export type FromLoad =
  | { readonly kind: 'ready' }
  | { readonly kind: 'progress'; readonly progress: LoadProgress }
  | { readonly kind: 'done'; readonly result: LoadResult };

const PROGRESS_INTERVAL_MS = 500;

// The load has a process of its own, so that neither its work nor its garbage collector delays what it measures.
const stop = new AbortController();
// Ctrl-C reaches every process of the terminal; when to stop is the parent's to say.
process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToLoad) => {
  if (message.kind === 'stop') stop.abort();
  else void run(message.options);
});
tell({ kind: 'ready' });

async function run(options: LoadOptions): Promise<void> {
  const load = new Load(options);
  const timer = setInterval(() => tell({ kind: 'progress', progress: load.progress() }), PROGRESS_INTERVAL_MS);
  const result = await load.run(stop.signal);
  clearInterval(timer);
  tell({ kind: 'done', result });
}

function tell(message: FromLoad): void {
  process.send?.(message);
}
