import type { HbaToken } from './hba-tokens.js';

/** How a name in a rule compares: as it stands, or as a regular expression (`/^app_\d+$`). */
export type NamePattern =
  | { readonly kind: 'name'; readonly name: string }
  | { readonly kind: 'regexp'; readonly regexp: RegExp };

/** What JavaScript reads otherwise than PostgreSQL: bracket classes, and `\b`, which is a backspace there. */
const READ_OTHERWISE = /\[[:.=]|\\[bB]|^\*\*\*/;

/** @throws SyntaxError that says why it is no regular expression, or none that means the same here as in PostgreSQL */
export function parsePattern(token: HbaToken): NamePattern {
  // As in PostgreSQL, quotes do not keep a slash from starting a regular expression.
  if (!token.text.startsWith('/')) return { kind: 'name', name: token.text };
  const source = token.text.slice(1);
  if (READ_OTHERWISE.test(source))
    throw new SyntaxError(`regular expression "${source}": [:class:], \\b and *** are not supported`);
  try {
    return { kind: 'regexp', regexp: new RegExp(source, 'u') };
  } catch (error) {
    throw new SyntaxError(`invalid regular expression "${source}": ${(error as Error).message.replace(/^.*: /, '')}`);
  }
}

export function matchesName(pattern: NamePattern, name: string): boolean {
  return pattern.kind === 'name' ? pattern.name === name : pattern.regexp.test(name);
}
