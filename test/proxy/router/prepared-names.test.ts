import { describe, expect, it } from 'vitest';
import { deallocateName, executeName, type Place, prepareParts } from '../../../proxy/router/prepared-names.js';

const at = (sql: string, place: Place | null) => (place === null ? null : sql.slice(place.start, place.end));

describe('where the names of prepared statements stand', () => {
  it.each([
    ['PREPARE q AS SELECT 1', 'q', 'SELECT 1'],
    ['prepare/* as */"as" (numeric(10, 2), text) as\n select $1', '"as"', 'select $1'],
    ['PREPARE as_is AS VALUES (1)', 'as_is', 'VALUES (1)'],
  ])('%s', (sql, name, query) => {
    const parts = prepareParts(Buffer.from(sql));
    expect(at(sql, parts?.name ?? null)).toBe(name);
    expect(sql.slice(parts?.query)).toBe(query);
  });

  it.each([
    ['EXECUTE q', 'q'],
    ['EXECUTE execute (1)', 'execute'],
    ['EXPLAIN (ANALYZE, COSTS off) EXECUTE "Q" (1, 2)', '"Q"'],
    ['CREATE TABLE execute AS EXECUTE q(1) WITH NO DATA', 'q'],
    ['SELECT 1', null],
  ])('%s', (sql, name) => {
    expect(at(sql, executeName(Buffer.from(sql)))).toBe(name);
  });

  it.each([
    ['DEALLOCATE q', 'q'],
    ['DEALLOCATE PREPARE q', 'q'],
    ['DEALLOCATE prepare', 'prepare'],
  ])('%s', (sql, name) => {
    expect(at(sql, deallocateName(Buffer.from(sql)))).toBe(name);
  });
});
