import { UsageError } from './errors.js';
import { positionOf } from './hash.js';
import type { Position } from './key.js';
import { decodeText, type KeyScheme, positionTypes } from './key-codec.js';

/**
 * A key as people write it: its columns by commas, each in PostgreSQL's text form, in double quotes (doubled inside) where it has
 * a comma, a quote or blanks at an end. Fewer columns than the key has: all keys that begin with these.
 * @returns its position; with method `hash`, the hash of the key, which needs all columns
 * @throws UsageError
 */
export function parseKey(scheme: KeyScheme, text: string): Position {
  const key = decode(scheme.keyTypes, text, 'a key');
  if (scheme.method === 'hash' && key.length < scheme.keyTypes.length)
    throw new UsageError(
      `"${text}" has ${key.length} of the key's ${scheme.keyTypes.length} columns`,
      'The hash needs all of them, by commas.',
    );
  return scheme.method === 'hash' ? positionOf(scheme, key) : key;
}

/**
 * A bound of a range: a key or its first columns, or with method `hash` a hash as a decimal number; `-inf` and `+inf` (without quotes) for
 * the ends.
 * @returns null: that end
 * @throws UsageError
 */
export function parseBound(scheme: KeyScheme, text: string): Position | null {
  if (text === '-inf' || text === '+inf') return null;
  return decode(positionTypes(scheme), text, scheme.method === 'hash' ? 'a hash' : 'a key');
}

/**
 * Positions by semicolons, each as `parseBound` takes them, but no ends.
 * @throws UsageError
 */
export function parsePositions(scheme: KeyScheme, text: string): Position[] {
  const parts = text.match(/(?<=^|;)(?:"(?:[^"]|"")*"|[^";])*(?=$|;)/g);
  // What the quotes have not let through is no longer there.
  if (parts === null || parts.join(';') !== text)
    throw new UsageError(`the quotes in "${text}" do not match`, 'Each value in double quotes ends with one.');
  return parts.map((part) => {
    const position = parseBound(scheme, part);
    if (position === null) throw new UsageError(`${part} is no position`, 'Give a key.');
    return position;
  });
}

function decode(types: KeyScheme['keyTypes'], text: string, what: string): Position {
  if (types.length === 0)
    throw new UsageError(
      `"${text}" is not ${what} here: the keyspace has no key`,
      'Its tables are whole on one shard, and move as a whole: "foreshard migrate plan move".',
    );
  const columns = fields(text);
  const hint =
    `Give ${types.length === 1 ? '' : `up to ${types.length} columns by commas: `}${types.join(', ')}, each as PostgreSQL prints it; ` +
    'in double quotes where it has a comma, a quote or blanks at an end.';
  if (columns === null || columns.length > types.length) throw new UsageError(`"${text}" is not ${what} here`, hint);
  return columns.map((column, i) => {
    const scalar = decodeText(types[i] as KeyScheme['keyTypes'][number], column);
    if (scalar === null) throw new UsageError(`"${column}" is not a value of type ${types[i]}`, hint);
    return scalar;
  });
}

/** Fields by commas, as CSV has them; null when quotes do not match. */
function fields(text: string): string[] | null {
  const found: string[] = [];
  for (let rest = text; ; ) {
    const field = /^\s*(?:"((?:[^"]|"")*)"|([^",]*?))\s*(?:,|$)/.exec(rest);
    if (field === null) return null;
    found.push(field[1] === undefined ? (field[2] as string) : field[1].replaceAll('""', '"'));
    if (!field[0].endsWith(',') || field[0].length === 0) return field[0].length === rest.length ? found : null;
    rest = rest.slice(field[0].length);
  }
}
