import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { codeChange, namesOneOf } from '../../../proxy/router/code-change.js';
import { parseMetadata } from '../../../proxy/router/metadata.js';

beforeAll(() => loadModule());

const f = (name: string, body: string, more: object = {}) => ({
  ...{ schema: 'public', name, body, immutable: false, native: false, opaque: false, stateful: false },
  keepsSettings: /set/i.test(body),
  ...more,
});
const table = (name: string, parents: [string, string][] = []) => ({
  ...{ schema: 'public', table: name, kind: 'r', columns: ['a'], parents },
});

const metadata = parseMetadata(
  JSON.stringify({
    relations: [table('plain'), table('marked'), table('part', [['public', 'marked']]), table('numbered')],
    functions: [
      f('marks', `BEGIN PERFORM set_config('my.x', 'y', false); END`),
      f('calls', 'SELECT helper()'),
      f('helper', 'SELECT 1'),
      f('computes', 'SELECT 1', { immutable: true }),
      f('Odd name', 'SET x = 1'),
    ],
    operators: [],
    runs: [
      { schema: 'public', table: 'marked', kind: 'fires', name: 'marks' },
      { schema: 'public', table: 'numbered', kind: 'fires', name: 'currval' },
    ],
  }),
);

const change = (sql: string, command = 'CREATE', unread = false) =>
  codeChange(Buffer.from(sql), command, metadata, () => unread);
const names = (sql: string) => [...(change(sql)?.names ?? [])].sort();
const plpgsql = (body: string) => `CREATE OR REPLACE FUNCTION it() RETURNS int LANGUAGE plpgsql AS $$ ${body} $$`;

describe('DDL after which statements are judged by what it has made', () => {
  it.each([
    plpgsql(`BEGIN SET my.x = 1; END`),
    plpgsql(`BEGIN PERFORM set_config('my.x', '1', false); END`),
    plpgsql(`BEGIN EXECUTE 'SELECT 1'; END`),
    plpgsql(`BEGIN CREATE TEMP TABLE a (b int); END`),
    plpgsql(`BEGIN RETURN currval('numbers'); END`),
    plpgsql(`BEGIN RETURN marks(); END`),
    plpgsql(`BEGIN RETURN "Odd name"(); END`),
    plpgsql(`BEGIN UPDATE marked SET a = 1; END`),
    `CREATE FUNCTION it() RETURNS int LANGUAGE sql AS E'\\x53ET my.x = 1'`,
    `CREATE FUNCTION it() RETURNS int BEGIN ATOMIC SELECT set_config('my.x', '1', false); END`,
    `CREATE FUNCTION it() RETURNS int LANGUAGE plpython3u AS 'pass'`,
    `CREATE OR REPLACE FUNCTION computes() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
    `ALTER FUNCTION helper() STABLE`,
    `CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION marks()`,
    `CREATE VIEW v AS SELECT marks()`,
    `CREATE RULE r AS ON INSERT TO plain DO ALSO SELECT set_config('my.x', '1', false)`,
    `CREATE TABLE t (a int DEFAULT lastval())`,
    `CREATE TABLE t (LIKE numbered INCLUDING ALL)`,
    `ALTER TABLE marked RENAME TO t`,
    `CREATE EXTENSION dblink`,
    `CREATE DOMAIN d AS int CHECK (marks() > 0)`,
    `CREATE TABLE t (a int DEFAULT U&"\\006darks"())`,
  ])('%s', (sql) => expect(change(sql)).not.toBeNull());

  it.each([
    [plpgsql(`BEGIN UPDATE plain SET a = 1; RAISE NOTICE 'x'; -- SET y\n END`)],
    [`CREATE FUNCTION it() RETURNS int LANGUAGE c AS 'lib', 'execute'`],
    [`CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION helper()`],
    [`CREATE TABLE t (a int DEFAULT helper(), b text DEFAULT 'SET x')`],
    [`ALTER TABLE plain ADD COLUMN b int`],
    [`CREATE INDEX ON plain (a)`],
    [`CREATE VIEW v AS SELECT * FROM plain`],
    [`GRANT EXECUTE ON FUNCTION marks() TO app`, 'GRANT'],
    [`ALTER FUNCTION marks() OWNER TO app`, 'ALTER OWNER'],
  ])('but not %s', (sql, command = 'CREATE') => expect(change(sql, command)).toBeNull());

  it('and when it names what is not known yet', () => {
    expect(change('CREATE TABLE t (a int DEFAULT made())', 'CREATE TABLE', true)?.names).toEqual(new Set(['t']));
  });

  it('is about what it names, and what leads there', () => {
    expect(names(plpgsql(`BEGIN EXECUTE 'SELECT 1'; END`))).toEqual(['it']);
    const helper = `CREATE OR REPLACE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT lastval()'`;
    expect(names(helper)).toEqual(['calls', 'helper']);
    expect(names(`CREATE OR REPLACE FUNCTION marks() RETURNS int LANGUAGE sql AS 'SELECT lastval()'`)).toEqual(
      ['marks', 'marked'].sort(),
    );
    expect(names(`ALTER TABLE marked ALTER COLUMN a SET DEFAULT lastval()`)).toEqual(['marked', 'part']);
    expect(names(`ALTER TABLE marked RENAME TO "New name"`)).toEqual(['marked', 'new name', 'part']);
    expect(names(`ALTER FUNCTION marks() RENAME TO other`)).toEqual(['marked', 'marks', 'other']);
    expect(change('CREATE EXTENSION dblink')).toEqual({ names: null });
  });

  it('is found in statements by its names', () => {
    const named = (sql: string, ...all: string[]) => namesOneOf(Buffer.from(sql), new Set(all));
    expect(named('SELECT IT()', 'it')).toBe(true);
    expect(named('SELECT iterate()', 'it')).toBe(false);
    expect(named('SELECT * FROM "New name"', 'new name')).toBe(true);
    expect(named('SELECT * FROM newname', 'new name')).toBe(false);
    expect(named('SELECT U&"\\0069t"()', 'it')).toBe(true);
    expect(named('SELECT 1', 'größe')).toBe(true);
  });
});
