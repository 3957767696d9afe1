import { loadModule } from 'libpg-query';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { NameLookup } from '../../../proxy/session/name-lookup.js';
import { makeRouter, spreadTopology } from '../router/setting.js';

const spread = spreadTopology();
const router = makeRouter(() => spread);
const IDLE = 0x49;
let lookup: NameLookup;

/** The path as a list, or `unknown`. */
function path(): string {
  const { names, sure } = lookup.current;
  return sure ? names.searchPath.join(' ') : 'unknown';
}

function run(sql: string): string {
  lookup.done(router.analyze(Buffer.from(sql), lookup.current.names), 0);
  return path();
}

beforeAll(() => loadModule());
beforeEach(() => {
  lookup = new NameLookup('app');
});

describe('what may have changed the path, so that servers which do not report it are asked', () => {
  const mayChange = (sql: string) => lookup.mayChange(router.analyze(Buffer.from(sql), lookup.current.names), 0);

  it('is SET, set_config, DISCARD ALL, and what nobody knows', () => {
    for (const sql of [
      'SET LOCAL search_path = a, b',
      'RESET ALL',
      `SET SCHEMA 'x'`,
      `SELECT set_config('search_path', 'x', true)`,
      `SELECT set_config(name, 'x', true) FROM x`,
      'DISCARD ALL',
      'DO $$BEGIN SET search_path = x; END$$',
    ])
      expect([sql, mayChange(sql)]).toEqual([sql, true]);
    for (const sql of [`SELECT set_config('my.x', 'y', true)`, 'SET LOCAL work_mem = 64', 'SELECT 1', 'COMMIT'])
      expect([sql, mayChange(sql)]).toEqual([sql, false]);
  });

  it('is the end of a transaction, and ROLLBACK TO, after any of these', () => {
    run('SET LOCAL search_path = a');
    for (const sql of ['COMMIT', 'ROLLBACK', 'ROLLBACK TO p']) expect([sql, mayChange(sql)]).toEqual([sql, true]);
    lookup.ready(0x54);
    expect(mayChange('COMMIT')).toBe(true);
    lookup.ready(IDLE);
    expect(mayChange('COMMIT')).toBe(false);
  });
});

describe('search_path', () => {
  it('is what the server says, and the names stay the same object while nothing changes', () => {
    lookup.learn('search_path', '"$user", "A b"');
    expect(path()).toBe('$user A b');
    const { current } = lookup;
    expect(run('SET LOCAL search_path = x')).toBe('$user A b');
    lookup.learn('search_path', '"$user", "A b"');
    expect(lookup.current).toBe(current);
  });
});

describe('client_encoding', () => {
  it('is part of the names unless it is UTF8, and must be one that the lexer can read', () => {
    lookup.learn('client_encoding', 'UTF8');
    expect(lookup.current.names).not.toHaveProperty('encoding');
    lookup.learn('client_encoding', 'LATIN1');
    expect(lookup.current.names.encoding).toBe('LATIN1');
    expect(() => lookup.learn('client_encoding', 'GBK')).toThrow(/client_encoding/);
  });
});
