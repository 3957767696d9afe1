import type { Role } from './messages.js';

/**
 * MB; V8's own is 16, and it takes two of them. What statements leave dies young either way; the memory of clients that log in and stay is 30 MB less
 * (docs/benchmarks.md, "Idle clients").
 */
const SEMI_SPACE = 8;

/**
 * Options of Node for a process of `foreshard serve`, besides those that come to it by the environment.
 * @param own those of its parent, which it has too
 * @param environment NODE_OPTIONS; who has set the size there or in `own` has it
 */
export function nodeOptionsOf(role: Role, own: readonly string[], environment = ''): string[] {
  const isSet = /--max[-_]semi[-_]space[-_]size\b/.test([...own, environment].join(' '));
  return role.kind !== 'proxy' || isSet ? [...own] : [`--max-semi-space-size=${SEMI_SPACE}`, ...own];
}
