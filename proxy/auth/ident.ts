import type { FileProblem } from './hba.js';
import { type HbaRecord, type HbaToken, readRecords } from './hba-tokens.js';
import { matchesName, type NamePattern, parsePattern } from './name-pattern.js';

/** One record of pg_ident.conf: who is `system` to the outside may log in as `user`. */
export interface IdentEntry {
  readonly map: string;
  readonly system: NamePattern;
  /** A name may hold `\1`: what the first parentheses of `system` have caught. */
  readonly user: NamePattern | { readonly kind: 'all' };
}

export function parseIdent(text: string): {
  readonly entries: readonly IdentEntry[];
  readonly problems: readonly FileProblem[];
} {
  const entries: IdentEntry[] = [];
  const problems: FileProblem[] = [];
  for (const record of readRecords(text)) {
    try {
      entries.push(parseEntry(record));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      problems.push({ line: record.line, problem: error.message });
    }
  }
  return { entries, problems };
}

function parseEntry({ fields }: HbaRecord): IdentEntry {
  const [map, system, user, ...more] = fields.map((field) => {
    if (field.length > 1) throw new SyntaxError('multiple values in ident field');
    return field[0] as HbaToken;
  });
  if (map === undefined || system === undefined || user === undefined || more.length > 0)
    throw new SyntaxError('expected three fields: map, system user name, database user name');
  if (!user.quoted && user.text.startsWith('+'))
    throw new SyntaxError(`"${user.text}" is not supported by the proxy: it does not know who is a member of a role`);
  const pattern = parsePattern(system);
  if (user.text.includes('\\1') && pattern.kind === 'name')
    throw new SyntaxError(`"${user.text}" has \\1, but "${system.text}" is no regular expression`);
  if (user.text.includes('\\1') && !system.text.includes('('))
    throw new SyntaxError(`regular expression "${system.text.slice(1)}" has no parentheses for \\1`);
  return {
    map: map.text,
    system: pattern,
    user: !user.quoted && user.text === 'all' ? { kind: 'all' } : parsePattern(user),
  };
}

/** Whether `system` may log in as `user`. Without a map: when they are the same. */
export function mayBe(entries: readonly IdentEntry[], map: string | null, system: string, user: string): boolean {
  if (map === null || map === '') return system === user;
  return entries.some((entry) => {
    if (entry.map !== map) return false;
    const caught = entry.system.kind === 'regexp' ? entry.system.regexp.exec(system) : null;
    if (entry.system.kind === 'regexp' ? caught === null : entry.system.name !== system) return false;
    if (entry.user.kind === 'all') return true;
    if (entry.user.kind === 'name' && caught !== null)
      return entry.user.name.replace('\\1', () => caught[1] ?? '') === user;
    return matchesName(entry.user, user);
  });
}
