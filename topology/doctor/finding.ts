/** One thing that was looked at before data moves. */
export interface Finding {
  /** `error`: a move would fail or go wrong. `warning`: it works, with a drawback that is named. */
  readonly level: 'ok' | 'warning' | 'error';
  /** What it is about: `shard one`, `table public.orders on shard one` … */
  readonly object: string;
  readonly what: string;
  /** What to do about it; null when all is well. */
  readonly remedy: string | null;
}

export function ok(object: string, what: string): Finding {
  return { level: 'ok', object, what, remedy: null };
}

export function warning(object: string, what: string, remedy: string): Finding {
  return { level: 'warning', object, what, remedy };
}

export function error(object: string, what: string, remedy: string): Finding {
  return { level: 'error', object, what, remedy };
}
