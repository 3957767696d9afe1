import { describe, expect, it } from 'vitest';
import { Narrowable } from '../../../proxy/router/narrow.js';
import type { Analyzed } from '../../../proxy/router/route.js';

/** As the router has it: the statement without what surrounds it. */
function narrowable(sql: string, statement = sql, conforming = true): Narrowable {
  const text = Buffer.from(sql);
  const start = text.indexOf(statement);
  const end = start + Buffer.byteLength(statement);
  return new Narrowable({ text, statements: [{ start, end }], conforming } as unknown as Analyzed);
}

const narrowed = (sql: string, statement?: string): string => narrowable(sql, statement).to('mine').toString();

describe('the condition stands', () => {
  it.each([
    ['SELECT * FROM t', 'SELECT * FROM t WHERE (mine)'],
    ['select a from t x where b = 1 or c', 'select a from t x where (mine) AND ( b = 1 or c)'],
    ['SELECT a FROM t LIMIT ALL OFFSET 0', 'SELECT a FROM t WHERE (mine) LIMIT ALL OFFSET 0'],
    ['SELECT a FROM t WHERE b OFFSET $1', 'SELECT a FROM t WHERE (mine) AND ( b) OFFSET $1'],
    ['SELECT a FROM t WHERE b FETCH FIRST 1 ROW ONLY', 'SELECT a FROM t WHERE (mine) AND ( b) FETCH FIRST 1 ROW ONLY'],
    ['TABLE t', 'SELECT * FROM t WHERE (mine)'],
    ['((SELECT a FROM t WHERE b) LIMIT ALL)', '((SELECT a FROM t WHERE (mine) AND ( b)) LIMIT ALL)'],
    ['(TABLE t)', '(SELECT * FROM t WHERE (mine))'],
  ])('where %s needs it', (sql, expected) => {
    expect(narrowed(sql)).toBe(expected);
  });

  it('not where a keyword is a name, a string or a comment', () => {
    expect(narrowed(`SELECT a AS where, t.limit, 'where' AS "where" FROM t -- where`)).toBe(
      `SELECT a AS where, t.limit, 'where' AS "where" FROM t WHERE (mine) -- where`,
    );
    expect(narrowed('SELECT t.as FROM t WHERE t.as LIMIT ALL')).toBe(
      'SELECT t.as FROM t WHERE (mine) AND ( t.as) LIMIT ALL',
    );
    expect(narrowed('SELECT t.offset /* limit */ FROM t WHERE t.where = 1 -- limit\n LIMIT ALL')).toBe(
      'SELECT t.offset /* limit */ FROM t WHERE (mine) AND ( t.where = 1) -- limit\n LIMIT ALL',
    );
  });

  it('within the statement, whatever is around it', () => {
    expect(narrowed('/* é */ SELECT a FROM t ; ;', 'SELECT a FROM t')).toBe('/* é */ SELECT a FROM t WHERE (mine) ; ;');
  });

  it('behind a string that ends where standard_conforming_strings says', () => {
    const sql = String.raw`SELECT 'a\' FROM t`;
    expect(narrowable(sql).to('mine').toString()).toBe(`${sql} WHERE (mine)`);
    const off = String.raw`SELECT 'a\' where' FROM t`;
    expect(narrowable(off, off, false).to('mine').toString()).toBe(`${off} WHERE (mine)`);
  });
});

it('tells positions of errors as the client counts them', () => {
  const sql = `SELECT 'é', b FROM t WHERE nope = 1 LIMIT ALL`;
  const text = narrowable(sql);
  const there = text.to('mine').toString();
  for (const word of ['b FROM', 'WHERE', 'nope', '= 1', 'LIMIT', 'ALL'])
    expect(text.positionAsSent('mine', there.indexOf(word) + 1), word).toBe(sql.indexOf(word) + 1);
  const table = narrowable('TABLE nope');
  expect(table.positionAsSent('mine', table.to('mine').toString().indexOf('nope') + 1)).toBe(7);
});
