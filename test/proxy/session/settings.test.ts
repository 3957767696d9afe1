import { describe, expect, it } from 'vitest';
import { difference, fromScratch, NO_SETTINGS, SessionSettings } from '../../../proxy/session/settings.js';

const startup = new Map([['application_name', "o'brien"]]);
const NAME = `SELECT pg_catalog.set_config('application_name', 'o''brien', false)`;

function made(...settings: readonly (readonly [string, string])[]): SessionSettings {
  const s = new SessionSettings(new Map());
  for (const [name, sql] of settings) s.set(name, sql);
  return s;
}

function sql(s: SessionSettings): string[] {
  return difference(NO_SETTINGS, s.current);
}

describe('SessionSettings', () => {
  it('reproduces start-up settings and SETs, the last of each name last', () => {
    const s = new SessionSettings(startup);
    s.set('a', 'SET a = 1');
    s.set('b', 'SET b = 1');
    s.set('A', 'SET A = 2');
    expect(fromScratch(s.current)).toEqual([
      'RESET SESSION AUTHORIZATION',
      'RESET ROLE',
      'RESET ALL',
      NAME,
      'SET b = 1',
      'SET A = 2',
    ]);
  });

  it('takes any name for a name', () => {
    const s = new SessionSettings(new Map());
    s.setValue('constructor', '1');
    s.setValue('sort_mem', '2');
    expect([s.value('constructor'), s.value('work_mem')]).toEqual(['1', '2']);
  });

  it('goes back to the start-up value on RESET, to nothing for what was not set there', () => {
    const s = new SessionSettings(startup);
    s.set('application_name', `SET application_name = 'x'`);
    s.set('a', 'SET a = 1');
    s.reset('application_name');
    s.reset('a');
    expect(sql(s)).toEqual([NAME]);
    expect(s.afterReset('Application_Name')).toEqual([NAME]);
    expect(s.afterReset('application_name', true)).toEqual([NAME.replace('false', 'true')]);
    expect(s.afterReset(null)).toEqual([NAME]);
    expect(s.afterReset('a')).toEqual([]);
  });

  it('forgets what a transaction set when it is rolled back, and keeps what it committed', () => {
    const s = new SessionSettings(new Map());
    s.begin();
    s.set('a', 'SET a = 1');
    s.end(false);
    expect(sql(s)).toEqual([]);
    s.begin();
    s.set('a', 'SET a = 1');
    s.end(true);
    expect(sql(s)).toEqual(['SET a = 1']);
  });

  it('follows savepoints: ROLLBACK TO undoes and keeps the savepoint, RELEASE keeps the settings', () => {
    const s = new SessionSettings(new Map());
    s.begin();
    s.set('a', 'SET a = 1');
    s.savepoint('p');
    s.set('a', 'SET a = 2');
    s.rollbackTo('p');
    expect(sql(s)).toEqual(['SET a = 1']);
    s.set('a', 'SET a = 3');
    s.rollbackTo('p');
    expect(sql(s)).toEqual(['SET a = 1']);
    s.set('a', 'SET a = 4');
    s.release('p');
    s.rollbackTo('p');
    expect(sql(s)).toEqual(['SET a = 4']);
    s.end(true);
    expect(sql(s)).toEqual(['SET a = 4']);
  });

  it('keeps the role through RESET ALL, as PostgreSQL does, but not through DISCARD ALL', () => {
    const s = made(['role', 'SET ROLE reader'], ['a', 'SET a = 1']);
    s.resetAll();
    expect([...s.current.keys()]).toEqual(['role']);
    s.discard();
    expect(sql(s)).toEqual([]);
  });

  it('lets a change of the session’s authorization take the role back, as PostgreSQL does', () => {
    const s = made(['role', 'SET ROLE reader'], ['session_authorization', 'SET SESSION AUTHORIZATION x']);
    expect([...s.current.keys()]).toEqual(['session_authorization']);
  });
});

describe('difference', () => {
  it('says only what differs: RESET of what is gone, SET of what is other', () => {
    const from = made(['a', 'SET a = 1'], ['b', 'SET b = 1'], ['c', 'SET c = 1'], ['my.d', 'SET my.d = 1']);
    const to = made(['b', 'SET b = 1'], ['c', 'SET c = 2'], ['e', 'SET e = 1']);
    expect(difference(from.current, to.current)).toEqual(['RESET "a"', 'RESET "my"."d"', 'SET c = 2', 'SET e = 1']);
  });

  it('says nothing when the settings are alike, in whatever order they were set', () => {
    const from = made(['a', 'SET a = 1'], ['b', 'SET b = 1']);
    const to = made(['b', 'SET b = 1'], ['a', 'SET a = 1']);
    expect(difference(from.current, to.current)).toEqual([]);
  });

  it('takes identities back before anything else, and gives them again in their order', () => {
    const from = made(['role', 'SET ROLE x'], ['a', 'SET a = 1']);
    const to = made(['b', 'SET b = 1'], ['role', 'SET ROLE x'], ['c', 'SET c = 1']);
    expect(difference(from.current, to.current)).toEqual([
      'RESET SESSION AUTHORIZATION',
      'RESET ROLE',
      'RESET "a"',
      'SET b = 1',
      'SET ROLE x',
      'SET c = 1',
    ]);
  });
});
