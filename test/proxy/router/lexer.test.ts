import { readFileSync } from 'node:fs';
import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { Lexer } from '../../../proxy/router/lexer.js';
import { ours, theirs } from './compare-scan.js';
import { SqlGenerator } from './sql-generator.js';

beforeAll(() => loadModule());

const corpus = [
  ...readFileSync(new URL('corpus/statements.sql', import.meta.url), 'utf8').split('\n'),
  ...readFileSync(new URL('corpus/multiline.sql', import.meta.url), 'utf8').split('\n---\n'),
].filter((s) => s.trim() !== '');

/** The two places where libpg-query departs from scan.l; PostgreSQL's own behaviour is asserted below. */
const departs = (s: string) =>
  /\$\d+[A-Za-z_\x80-\uffff]/.test(s) || /'[ \t\f\v]*(--[^\n\r]*)?[\n\r]([ \t\f\v\n\r]|--[^\n\r]*[\n\r])*'/.test(s);

function key(sql: string): string {
  const lexer = new Lexer();
  expect(lexer.scan(Buffer.from(sql))).toBe(true);
  return lexer.key();
}

describe('against PostgreSQL’s scanner', () => {
  it('finds the same tokens in every statement of the corpus', () => {
    expect(corpus.length).toBeGreaterThan(400);
    for (const sql of corpus) {
      const text = Buffer.from(sql);
      const expected = theirs(text);
      if (expected !== 'unusable' && !departs(sql)) expect(`${sql}\n${ours(text)}`).toBe(`${sql}\n${expected}`);
    }
  });

  it('finds the same tokens, or rejects too, in 60,000 random sequences and mutations', () => {
    const generator = new SqlGenerator(20261120, corpus);
    let compared = 0;
    let rejected = 0;
    for (let i = 0; i < 62_000; i++) {
      const sql = generator.next();
      if (departs(sql)) continue;
      const text = Buffer.from(sql);
      const expected = theirs(text);
      if (expected === 'unusable') continue;
      const found = ours(text);
      if (found !== expected) expect(`${JSON.stringify(sql)}\n${found}`).toBe(`${JSON.stringify(sql)}\n${expected}`);
      compared++;
      if (expected === null) rejected++;
    }
    expect(compared).toBeGreaterThan(50_000);
    expect(rejected).toBeGreaterThan(1_000);
    expect(compared - rejected).toBeGreaterThan(20_000);
  });
});

describe('where libpg-query departs from PostgreSQL', () => {
  it('lets a line comment stand inside a continued string, but no block comment', () => {
    expect(key("select 'a' -- note\n -- more\r\n 'b', 1")).toBe('select :str, :int');
    expect(key("select 'a' /* note */\n 'b'")).toBe('select :str :str');
    expect(key("select 'a' 'b'")).toBe('select :str :str');
    expect(key("select 'a' -- note")).toBe('select :str');
  });

  it('rejects an identifier glued to a parameter', () => {
    expect(new Lexer().scan(Buffer.from('select $1a'))).toBe(false);
  });
});

describe('the template key', () => {
  it('is the same for texts that differ in values, spaces, comments and the case of words', () => {
    const wanted = 'select a.id, count(*) from orders a where tenant_id = :int and note =:str';
    const same = [
      "select a.id, count(*) from orders a where tenant_id = 5 and note = 'x'",
      "SELECT a . id,count ( * )\nFROM Orders A -- hm\nWHERE tenant_ID=77 AND note=E'\\n'",
      '/* app:web */ select a.id , count(*) from orders a where tenant_id = 0x1F and note = $$y$$',
    ];
    expect(new Set(same.map(key)).size).toBe(1);
    expect(key(same[0] as string)).toBe(wanted.replace('=:str', '= :str'));
  });

  it('differs when the tokens differ', () => {
    const different = [
      'select 1',
      "select '1'",
      'select 1.0',
      'select 3000000000000',
      "select b'1'",
      "select x'1'",
      'select $1',
      'select -1',
      'select "a"',
      'select a',
      'select "A"',
      "select n'a'",
      "select n 'a'",
      'select a.b',
      'select a..b',
      'select a. .b',
      'select :int',

      'select a ? b',
      'select U&"a!0061" uescape \'!\'',
      'select U&"a!0061" uescape \'#\'',
      'select (a)',
      'select a()',
      'select a[1]',
      'select a[:1]',
      'select a[$1:$2]',
      'select a::int',
      'select a : : int',
      'select 1;',
      'select 1; select 1',
    ];
    const keys = different.map(key);
    keys.forEach((k, i) => {
      expect(keys.indexOf(k), different[i]).toBe(different[i] === 'select 3000000000000' ? 2 : i);
    });
  });

  it('has the places of the literals in bytes', () => {
    const lexer = new Lexer();
    const text = Buffer.from("select é, 'ü', 17 from t where x = $$é$$ and y = 0x1F");
    lexer.scan(text);
    const found = Array.from({ length: lexer.literalCount }, (_, i) => lexer.literal(i));
    expect(found.map((l) => [l.kind, text.toString('utf8', l.start, l.end)])).toEqual([
      ['string', "'ü'"],
      ['integer', '17'],
      ['dollar', '$$é$$'],
      ['integer', '0x1F'],
    ]);
  });

  it('has the statements of a text, without what is between them', () => {
    const lexer = new Lexer();
    const text = Buffer.from(
      " ; select ';' ; -- x;y\n insert into t values (1);; create rule r as on insert to t do (a; b) /* ; */ ;",
    );
    lexer.scan(text);
    const found = Array.from({ length: lexer.statementCount }, (_, i) =>
      text.toString('utf8', lexer.statementStarts[i], lexer.statementEnds[i]),
    );
    expect(found).toEqual(["select ';'", 'insert into t values (1)', 'create rule r as on insert to t do (a; b)']);
  });

  it('copes with very long texts and many literals', () => {
    const lexer = new Lexer();
    const rows = Array.from({ length: 20_000 }, (_, i) => `(${i}, 'name ${i}')`).join(', ');
    expect(lexer.scan(Buffer.from(`insert into t values ${rows}`))).toBe(true);
    expect(lexer.literalCount).toBe(40_000);
    expect(
      lexer.scan(Buffer.from(`select ${'a'.repeat(100_000)}, "${'b'.repeat(100_000)}", '${'c'.repeat(100_000)}'`)),
    ).toBe(true);
    expect(lexer.key().length).toBe(200_000 + 'select , "", :str'.length);
  });
});
