import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseSearchPath, searchPathOfSet } from '../../../proxy/session/search-path.js';
import { SessionSettings } from '../../../proxy/session/settings.js';

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

describe('searchPathOfSet', () => {
  it('reads SET, SET LOCAL and SET SCHEMA', () => {
    expect(searchPathOfSet('SET search_path = a, B, "C", \'D, e\'')).toEqual(['a', 'b', 'C', 'D, e']);
    expect(searchPathOfSet('set local search_path to a')).toEqual(['a']);
    expect(searchPathOfSet('SET SESSION search_path TO "$user" ;')).toEqual(['$user']);
    expect(searchPathOfSet(`SET SCHEMA 'x'`)).toEqual(['x']);
    expect(searchPathOfSet(`SET search_path = ''`)).toEqual(['']);
  });

  it('reads a start-up parameter as SessionSettings has it', () => {
    const settings = new SessionSettings(new Map([['Search_Path', `a,"b'c"`]]));
    expect(searchPathOfSet(settings.get('search_path') as string)).toEqual(['a', `b'c`]);
  });

  it('does not guess', () => {
    for (const sql of [
      'SET /* x */ search_path = a',
      'SET search_path = a -- b',
      `SET search_path = E'a'`,
      `SET search_path = U&"a"`,
      'SET search_path TO DEFAULT',
      'SET search_path FROM CURRENT',
    ])
      expect([sql, searchPathOfSet(sql)]).toEqual([sql, null]);
  });
});
