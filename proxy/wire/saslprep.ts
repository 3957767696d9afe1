import { L_CAT, MAPPED_TO_NOTHING, NON_ASCII_SPACE, PROHIBITED, RAND_AL_CAT, UNASSIGNED } from './saslprep-tables.js';

/** Whether `code` is in one of the ranges `first, last, first, last, …`. */
function isIn(ranges: readonly number[], code: number): boolean {
  let lo = 0;
  let hi = ranges.length / 2 - 1;
  while (lo <= hi) {
    const mid = (lo + hi) >>> 1;
    if (code < (ranges[2 * mid] as number)) hi = mid - 1;
    else if (code > (ranges[2 * mid + 1] as number)) lo = mid + 1;
    else return true;
  }
  return false;
}

/**
 * Prepares a password as PostgreSQL does (pg_saslprep, RFC 4013): pure ASCII is taken as it is; where SASLprep prohibits
 * the result, the raw password is used instead, so that every password works.
 */
export function saslPrep(password: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the whole of ASCII is meant
  if (/^[\x00-\x7f]*$/.test(password)) return password;
  let mapped = '';
  for (const c of password) {
    const code = c.codePointAt(0) as number;
    if (isIn(NON_ASCII_SPACE, code)) mapped += ' ';
    else if (!isIn(MAPPED_TO_NOTHING, code)) mapped += c;
  }
  if (mapped === '') return password;
  const prepared = mapped.normalize('NFKC');
  const codes = Array.from(prepared, (c) => c.codePointAt(0) as number);
  if (codes.some((code) => isIn(PROHIBITED, code) || isIn(UNASSIGNED, code))) return password;
  if (codes.some((code) => isIn(RAND_AL_CAT, code))) {
    const first = codes[0] as number;
    const last = codes[codes.length - 1] as number;
    if (!isIn(RAND_AL_CAT, first) || !isIn(RAND_AL_CAT, last) || codes.some((code) => isIn(L_CAT, code)))
      return password;
  }
  return prepared;
}
