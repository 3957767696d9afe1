import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseSearchPath } from '../../../proxy/session/search-path.js';

const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`;

describe('parseSearchPath', () => {
  it('reads what PostgreSQL prints', () => {
    expect(parseSearchPath('"$user", public')).toEqual(['$user', 'public']);
    expect(parseSearchPath('')).toEqual([]);
    expect(parseSearchPath('""')).toEqual(['']);
    expect(parseSearchPath('Tenant_1,"A ""b"", c" , pg_temp')).toEqual(['tenant_1', 'A "b", c', 'pg_temp']);
  });

  it('reads back any quoted list', () => {
    fc.assert(
      fc.property(fc.array(fc.string(), { minLength: 1 }), (names) => {
        expect(parseSearchPath(names.map(quoted).join(', '))).toEqual(names);
      }),
    );
  });

  it('does not guess', () => {
    for (const value of ['a,', ',a', '"a', 'a b', `'a'`, 'Ä'])
      expect([value, parseSearchPath(value)]).toEqual([value, null]);
  });
});
