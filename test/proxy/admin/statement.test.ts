import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseStatements } from '../../../proxy/admin/statement.js';
import { VERSION } from '../../../proxy/admin/views.js';
import { ForeshardError } from '../../../topology/errors.js';

const one = (sql: string) => {
  const statements = parseStatements(sql);
  expect(statements).toHaveLength(1);
  return statements[0];
};

describe('statements of the admin database', () => {
  it('are read whatever their case, blanks, comments and final semicolon', () => {
    for (const sql of ['SHOW POOLS', 'show pools;', ' Show\n\tPools ; ', '/* x; */ SHOW -- y\n POOLS', 'show "pools"'])
      expect(one(sql)).toEqual({ kind: 'show', view: 'pools' });
  });

  it('name databases and shards as words, in double quotes or in quotes', () => {
    for (const sql of ['PAUSE my-shard_1', 'pause "my-shard_1"', `pause 'my-shard_1';`])
      expect(one(sql)).toEqual({ kind: 'command', command: 'pause', arguments: ['my-shard_1'] });
    expect(one('PAUSE "a""B"')).toEqual({ kind: 'command', command: 'pause', arguments: ['a"B'] });
    expect(one('KILL_CLIENT 4711')).toEqual({ kind: 'command', command: 'kill_client', arguments: ['4711'] });
    expect(one('SHUTDOWN Wait_For_Clients')).toMatchObject({ arguments: ['wait_for_clients'] });
  });

  it('may be several in one text', () => {
    expect(parseStatements('PAUSE; RESUME;').map((s) => s.kind)).toEqual(['command', 'command']);
    expect(parseStatements(` ; -- nothing\n`)).toEqual([{ kind: 'empty' }]);
    expect(parseStatements('')).toEqual([{ kind: 'empty' }]);
  });

  it('set what drivers set without effect, and tell a setting of ours from it', () => {
    for (const sql of ['SET extra_float_digits=2', `set session client_encoding to 'UTF8'`, `SET TIME ZONE 'UTC'`])
      expect(one(sql)).toEqual({ kind: 'ignored', tag: 'SET' });
    expect(one('SET proxy.pool.size = 12')).toEqual({ kind: 'set', name: 'proxy.pool.size', value: '12' });
  });

  it('are asked about by any name', () => {
    expect(one('SHOW constructor')).toEqual({ kind: 'show', view: 'constructor' });
  });

  it('are refused with 42601 when they are anything else, 0A000 with parameters', () => {
    const code = (sql: string) => {
      try {
        parseStatements(sql);
      } catch (error) {
        return (error as ForeshardError).sqlstate;
      }
      return 'none';
    };
    for (const sql of [
      'SELECT 1 + 1',
      'SHOW',
      'SHOW a b',
      'PAUSE a b',
      'SHUTDOWN now',
      'DISABLE',
      'SET',
      `'x'`,
      'PAUSE (x)',
      '__proto__',
      'constructor x',
    ])
      expect([sql, code(sql)]).toEqual([sql, '42601']);
    expect(code('KILL_CLIENT $1')).toBe('0A000');
  });

  it('never fail in another way, whatever the text', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(...'sSETho w\'";-/*$1\n=') })), (sql) => {
        try {
          parseStatements(sql);
        } catch (error) {
          expect(error).toBeInstanceOf(ForeshardError);
        }
      }),
    );
  });
});

it('says the version of the package', () => {
  expect(VERSION).toBe((JSON.parse(readFileSync('package.json', 'utf8')) as { version: string }).version);
});
