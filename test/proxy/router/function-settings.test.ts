import { describe, expect, it } from 'vitest';
import { SettingFunctions, saysSettings } from '../../../proxy/router/function-settings.js';

const f = (name: string, body: string, more: object = {}) => ({
  name,
  body,
  keepsSettings: true,
  stateful: /execute/i.test(body),
  native: false,
  opaque: false,
  ...more,
});

describe('whether a function may change settings for longer than its transaction', () => {
  const keeps = (body: string) => new SettingFunctions([f('it', body)]).keeps('it');

  it.each([
    `BEGIN SET my.x = 1; END`,
    `;SET my.x = 1`,
    `SELECT 1; RESET ALL`,
    `BEGIN IF true THEN SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; END IF; END`,
    `<<a>> SET x = 1`,
    `BEGIN PERFORM set_config('my.x', lower('A'), false); END`,
    `SELECT set_config('my.x', f(1, 2), $1)`,
    `SELECT "set_config"('my.x', '1', false)`,
    `BEGIN EXECUTE 'SET my.x = 1'; END`,
    `DECLARE s text := 'SET my.x = 1'; BEGIN EXECUTE s; END`,
    `BEGIN EXECUTE E'\\x53ET my.x = 1'; END`,
    `BEGIN EXECUTE format($q$SELECT set_config(%L, '1', false)$q$, a); END`,
    `BEGIN DO $d$ BEGIN SET my.x = 1; END $d$; END`,
    `BEGIN it is 'not to be read`,
  ])('yes: %s', (body) => expect(keeps(body)).toBe(true));

  it.each([
    `BEGIN UPDATE t SET a = 1; END`,
    `BEGIN SET LOCAL my.x = 1; SET CONSTRAINTS ALL DEFERRED; SET TRANSACTION READ ONLY; END`,
    `BEGIN RAISE NOTICE 'SET x'; END -- SET y`,
    `BEGIN /* ; SET x = 1 */ INSERT INTO log VALUES ('; SET x = 1', 'call set_config(x)'); END`,
    `BEGIN PERFORM set_config('my.x', lower(coalesce(a, 'b')), true); END`,
    `BEGIN EXECUTE 'UPDATE t SET a = 1'; END`,
    `BEGIN EXECUTE 'SELECT set_config(''my.x'', ''1'', true)'; END`,
  ])('no: %s', (body) => expect(keeps(body)).toBe(false));

  it('by those that it calls', () => {
    const all = new SettingFunctions([
      f('runs', 'BEGIN EXECUTE a; END', { keepsSettings: false }),
      f('calls', `SELECT runs('SET my.x = 1')`, { stateful: true }),
      f('notes', `SELECT note('SET my.x = 1')`),
      f('note', `INSERT INTO notes VALUES ($1)`, { keepsSettings: false }),
      f('sets', 'BEGIN SET my.x = 1; END'),
      f('above', 'SELECT sets()'),
      f('python', '', { opaque: true }),
      f('around', 'SELECT circle() -- SET x'),
      f('circle', 'SELECT around()'),
    ]);
    const found = ['runs', 'calls', 'notes', 'note', 'sets', 'above', 'python', 'circle'].filter((name) =>
      all.keeps(name),
    );
    expect(found).toEqual(['calls', 'sets', 'above', 'python', 'circle']);
    expect(all.executes('calls')).toBe(true);
    expect(all.executes('notes')).toBe(false);
  });

  it('as a DO block', () => {
    const all = new SettingFunctions([f('sets', 'BEGIN SET my.x = 1; END'), f('runs', 'BEGIN EXECUTE a; END')]);
    const doing = (body: string) => all.block(`DO $$ BEGIN ${body} END $$`);
    expect(doing(`SET my.x = 1;`)).toBe(true);
    expect(doing(`EXECUTE 'SET my.x = 1';`)).toBe(true);
    expect(doing(`PERFORM runs('SET my.x = 1');`)).toBe(true);
    expect(doing(`PERFORM sets();`)).toBe(true);
    expect(all.block(`DO 'BEGIN EXECUTE ''SET my.x = 1''; END'`)).toBe(true);
    expect(all.block(`DO LANGUAGE plpython3u $$ plpy.execute('SET my.x = 1') $$`)).toBe(true);
    expect(doing(`RAISE NOTICE 'SET my.x = 1';`)).toBe(false);
    expect(doing(`UPDATE t SET a = 1; EXECUTE 'UPDATE t SET a = 1';`)).toBe(false);
    expect(doing(`SET LOCAL my.x = 1; -- SET y`)).toBe(false);
  });

  it('as a text that is executed', () => {
    for (const text of ['SET x = 1', ` reset ALL`, `SELECT run('SET x = 1')`, `SELECT set_config(a, b, false)`])
      expect(saysSettings(text)).toBe(true);
    for (const text of ['UPDATE t SET x = 1', 'SET LOCAL x = 1', `SELECT set_config(a, lower(b), true)`])
      expect(saysSettings(text)).toBe(false);
  });
});
