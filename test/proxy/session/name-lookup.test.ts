import { loadModule } from 'libpg-query';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { NameLookup } from '../../../proxy/session/name-lookup.js';
import { SessionSettings } from '../../../proxy/session/settings.js';
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
  lookup = new NameLookup('app', new SessionSettings(new Map([['search_path', 'login']])));
});

describe('a server that does not report search_path', () => {
  it('has the path of the login, and SET LOCAL’s until the end of the transaction', () => {
    expect(path()).toBe('login');
    expect(run('SET LOCAL search_path = a, b')).toBe('a b');
    lookup.ready(0x54);
    expect(path()).toBe('a b');
    lookup.ready(IDLE);
    expect(path()).toBe('login');
  });

  it('says so when it does not know: after ROLLBACK TO, set_config, and what it does not read', () => {
    run('SET LOCAL search_path = a');
    expect(run('ROLLBACK TO p')).toBe('unknown');
    lookup.ready(IDLE);
    expect(run(`SELECT set_config('search_path', 'x', true)`)).toBe('unknown');
    lookup.ready(IDLE);
    expect(run(`SET LOCAL search_path = E'x'`)).toBe('unknown');
    lookup.ready(IDLE);
    expect(path()).toBe('login');
    run(`SELECT set_config('search_path', 'x', false)`);
    lookup.ready(IDLE);
    expect(path()).toBe('unknown');
    run('RESET search_path');
    expect(path()).toBe('login');
  });

  it('knows what does not change the path', () => {
    for (const sql of [`SELECT set_config('my.x', 'y', true)`, 'ROLLBACK TO p', 'SET LOCAL work_mem = 64'])
      expect(run(sql)).toBe('login');
  });
});

describe('a server that reports search_path', () => {
  it('is believed, and the names stay the same object while nothing changes', () => {
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
