import { describe, expect, it } from 'vitest';
import { SessionSettings } from '../../../proxy/session/settings.js';

const startup = new Map([['application_name', "o'brien"]]);
const NAME = `SELECT pg_catalog.set_config('application_name', 'o''brien', false)`;

describe('SessionSettings', () => {
  it('reproduces start-up settings and SETs, the last of each name last', () => {
    const s = new SessionSettings(startup);
    s.set('a', 'SET a = 1');
    s.set('b', 'SET b = 1');
    s.set('a', 'SET a = 2');
    expect(s.syncSql()).toBe(`RESET SESSION AUTHORIZATION; RESET ALL; ${NAME}; SET b = 1; SET a = 2`);
  });

  it('goes back to the start-up value on RESET, to nothing for what was not set there', () => {
    const s = new SessionSettings(startup);
    s.set('application_name', `SET application_name = 'x'`);
    s.set('a', 'SET a = 1');
    s.reset('application_name');
    s.reset('a');
    expect(s.signature).toBe(NAME);
  });

  it('forgets what a transaction set when it is rolled back, and keeps what it committed', () => {
    const s = new SessionSettings(new Map());
    s.begin();
    s.set('a', 'SET a = 1');
    s.end(false);
    expect(s.signature).toBe('');
    s.begin();
    s.set('a', 'SET a = 1');
    s.end(true);
    expect(s.signature).toBe('SET a = 1');
  });

  it('follows savepoints: ROLLBACK TO undoes and keeps the savepoint, RELEASE keeps the settings', () => {
    const s = new SessionSettings(new Map());
    s.begin();
    s.set('a', 'SET a = 1');
    s.savepoint('p');
    s.set('a', 'SET a = 2');
    s.rollbackTo('p');
    expect(s.signature).toBe('SET a = 1');
    s.set('a', 'SET a = 3');
    s.rollbackTo('p');
    expect(s.signature).toBe('SET a = 1');
    s.set('a', 'SET a = 4');
    s.release('p');
    s.rollbackTo('p');
    expect(s.signature).toBe('SET a = 4');
    s.end(true);
    expect(s.signature).toBe('SET a = 4');
  });

  it('keeps the role through RESET ALL, as PostgreSQL does, but not through DISCARD ALL', () => {
    const s = new SessionSettings(new Map());
    s.set('role', 'SET ROLE reader');
    s.set('a', 'SET a = 1');
    s.resetAll();
    expect(s.signature).toBe('SET ROLE reader');
    s.discard();
    expect(s.signature).toBe('');
  });
});
