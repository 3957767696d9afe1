import { describe, expect, it } from 'vitest';
import type { ClientStatement } from '../../../proxy/session/prepared.js';
import type { ClientStatements } from '../../../proxy/session/statements.js';
import { StraightBatch } from '../../../proxy/session/straight-batch.js';
import {
  encodeBind,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  SYNC,
} from '../../../proxy/wire/frontend.js';

const SQL = 'SELECT $1::int';
const named = (sql: string, oids: readonly number[] = []) =>
  ({ content: { sql: Buffer.from(sql), oids } }) as unknown as ClientStatement;
const unnamed = named(SQL, [23]);
const byName = new Map([
  ['', unnamed],
  ['s1', named('SELECT 1')],
]);
const statements = { peek: (name: string) => byName.get(name) ?? null } as ClientStatements;

const bind = (statement = '', portal = '', values: readonly (Buffer | null)[] = [Buffer.from('7')]) =>
  encodeBind({ portal, statement, formats: [], values, resultFormats: [] });
const PARSE = encodeParse('', SQL, [23]);
const DESCRIBE = encodeDescribe('portal', '');
const EXECUTE = encodeExecute('');
const CLOSE = encodeClose('portal', '');

function read(...messages: Buffer[]): (Partial<StraightBatch> & { statement: ClientStatement }) | null {
  const batch = new StraightBatch();
  const bytes = Buffer.concat(messages);
  const statement = batch.read(bytes) ? batch.find(bytes, statements) : null;
  const { parses, described, name, bindAt } = batch;
  return statement === null ? null : { parses, described, name, bindAt, statement };
}

describe('a batch in one piece', () => {
  it('is one execution of a statement that the client has', () => {
    expect(read(bind(), EXECUTE, SYNC)).toMatchObject({
      statement: unnamed,
      parses: false,
      described: false,
      name: '',
    });
    expect(read(PARSE, bind(), DESCRIBE, EXECUTE, SYNC)).toMatchObject({
      parses: true,
      described: true,
      bindAt: PARSE.length,
    });
    expect(read(bind('s1', '', []), DESCRIBE, EXECUTE, CLOSE, SYNC)).toMatchObject({
      statement: byName.get('s1'),
      name: 's1',
    });
  });

  it('gives the values that are bound', () => {
    const messages = Buffer.concat([PARSE, bind('', '', [Buffer.from('7'), null]), EXECUTE, SYNC]);
    const batch = new StraightBatch();
    expect(batch.read(messages)).toBe(true);
    expect(batch.params(messages, unnamed)).toEqual({ oids: [23], formats: [0, 0], values: [Buffer.from('7'), null] });
  });

  it('has values that cannot be read when the Bind is not valid', () => {
    const invalid = bind();
    // More parameter formats than there are parameters.
    invalid.writeUInt16BE(9, 7);
    const messages = Buffer.concat([invalid, EXECUTE, SYNC]);
    const batch = new StraightBatch();
    expect(batch.read(messages)).toBe(true);
    expect(batch.params(messages, unnamed)).toBeNull();
  });

  it.each<[string, Buffer[]]>([
    ['a Query', [encodeQuery('SELECT 1')]],
    ['no Sync', [bind(), EXECUTE]],
    ['a Flush', [bind(), EXECUTE, FLUSH]],
    ['something behind the Sync', [bind(), EXECUTE, SYNC, SYNC]],
    ['a part of the next message behind it', [bind(), EXECUTE, SYNC, Buffer.from('Q')]],
    ['a Sync with a body', [bind(), EXECUTE, Buffer.from([0x53, 0, 0, 0, 5, 0])]],
    ['no Execute', [bind(), DESCRIBE, SYNC]],
    ['two of them', [bind(), EXECUTE, EXECUTE, SYNC]],
    ['a row limit', [bind(), encodeExecute('', 10), SYNC]],
    ['a portal with a name', [bind('', 'p'), EXECUTE, SYNC]],
    ['the Execute of another portal', [bind(), encodeExecute('p'), SYNC]],
    ['the Describe of another portal', [bind(), encodeDescribe('portal', 'p'), EXECUTE, SYNC]],
    ['the Describe of a statement', [bind(), encodeDescribe('statement', ''), EXECUTE, SYNC]],
    ['the Close of a statement', [bind(), EXECUTE, encodeClose('statement', ''), SYNC]],
    ['a statement that the client does not have', [bind('s2'), EXECUTE, SYNC]],
    ['a Parse of another text', [encodeParse('', 'SELECT $1::int8', [23]), bind(), EXECUTE, SYNC]],
    ['a Parse of a longer text', [encodeParse('', `${SQL} `, [23]), bind(), EXECUTE, SYNC]],
    ['a Parse with other types', [encodeParse('', SQL, [20]), bind(), EXECUTE, SYNC]],
    ['a Parse with fewer types', [encodeParse('', SQL), bind(), EXECUTE, SYNC]],
    ['a Parse with a name', [encodeParse('s1', 'SELECT 1'), bind('s1'), EXECUTE, SYNC]],
    ['a Parse, and a Bind of another statement', [PARSE, bind('s1'), EXECUTE, SYNC]],
    ['a Parse alone', [PARSE, SYNC]],
    ['two of them, one after the other', [bind(), EXECUTE, bind(), EXECUTE, SYNC]],
  ])('is not one with %s', (_what, messages) => {
    expect(read(...messages)).toBeNull();
  });

  it('may prepare another text, which the client does not have yet', () => {
    const other = Buffer.concat([encodeParse('', 'SELECT $1::int8', [23]), bind(), EXECUTE, SYNC]);
    const batch = new StraightBatch();
    expect(batch.read(other)).toBe(true);
    expect(batch.find(other, statements)).toBeNull();
    const mismatched = Buffer.concat([encodeParse('s1', 'SELECT 1'), bind(), EXECUTE, SYNC]);
    expect(batch.read(mismatched)).toBe(false);
  });

  it('is not one wherever it breaks off', () => {
    const whole = Buffer.concat([PARSE, bind(), DESCRIBE, EXECUTE, CLOSE, SYNC]);
    for (let length = 1; length < whole.length; length++)
      expect(new StraightBatch().read(whole.subarray(0, length))).toBe(false);
    expect(new StraightBatch().read(whole)).toBe(true);
  });
});
