import type { Config } from '../config.js';

/** What a reload applies of the file; all else needs a restart. */
const SECTIONS = ['log', 'shardPasswords', 'planner', 'migrator'] as const;
const PROXY_SECTIONS = ['auth', 'serverPasswords', 'pool', 'limits', 'admin'] as const;
const RELOADED: readonly string[] = [...SECTIONS, ...PROXY_SECTIONS.map((section) => `proxy.${section}`)];

/** `before`, with what a reload applies of `after`. */
export function applied(before: Config, after: Config): Config {
  const pick = <T extends object, K extends keyof T>(from: T, keys: readonly K[]) =>
    Object.fromEntries(keys.map((key) => [key, from[key]])) as Pick<T, K>;
  return {
    ...before,
    ...pick(after, SECTIONS),
    proxy: { ...before.proxy, ...pick(after.proxy, PROXY_SECTIONS) },
  };
}

/** Whether a reload applies the key, in dotted form. */
export function isReloaded(key: string): boolean {
  return RELOADED.some((known) => key === known || key.startsWith(`${known}.`));
}

export interface Changes {
  /** Every key that differs, dotted. */
  readonly all: readonly string[];
  /** Those of them that need a restart. */
  readonly restart: readonly string[];
}

/** Which keys differ between two configurations. Only their names: values may be secret. */
export function changesBetween(before: object, after: object): Changes {
  const all = [...differing(before, after, '')];
  return { all, restart: all.filter((key) => !isReloaded(key)).map((key) => (key === 'catalogUrl' ? 'catalog' : key)) };
}

function* differing(before: unknown, after: unknown, path: string): Generator<string> {
  const a = fields(before);
  const b = fields(after);
  if (a === null || b === null) {
    if (JSON.stringify(before) !== JSON.stringify(after)) yield path;
    return;
  }
  for (const key of new Set([...a.keys(), ...b.keys()]))
    yield* differing(a.get(key), b.get(key), path === '' ? key : `${path}.${key}`);
}

function fields(value: unknown): Map<string, unknown> | null {
  if (value instanceof Map) return value;
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return null;
  return new Map(Object.entries(value));
}
