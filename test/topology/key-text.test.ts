import { describe, expect, test } from 'vitest';
import { hashKey } from '../../topology/hash.js';
import { parseBound, parseKey, parsePositions } from '../../topology/key-text.js';

const two = { method: 'range', keyTypes: ['int4', 'text'] } as const;
const text = { method: 'range', keyTypes: ['text'] } as const;
const hashed = { method: 'hash', keyTypes: ['text', 'int8'] } as const;

describe('a key as people write it', () => {
  test('has its columns by commas, in quotes where they need them', () => {
    expect(parseKey(two, '7')).toEqual([7n]);
    expect(parseKey(two, '7,a')).toEqual([7n, 'a']);
    expect(parseKey(two, ' 7 , a b ')).toEqual([7n, 'a b']);
    expect(parseKey(two, '-7,"a, ""b"" "')).toEqual([-7n, 'a, "b" ']);
    expect(parseKey(two, '7,')).toEqual([7n, '']);
    expect(parseKey(text, '')).toEqual(['']);
    expect(parseKey(text, '"-inf"')).toEqual(['-inf']);
    expect(parseKey(text, 'é')).toEqual([Buffer.from('é').toString('latin1')]);
    expect(parseKey({ method: 'range', keyTypes: ['date'] }, '2000-01-02')).toEqual([1n]);
  });

  test('is refused when it could mean something else', () => {
    expect(() => parseKey(text, 'a,b')).toThrow('"a,b" is not a key here');
    expect(() => parseKey(two, '7,a,b')).toThrow('"7,a,b" is not a key here');
    expect(() => parseKey(two, '7,"a')).toThrow('"7,"a" is not a key here');
    expect(() => parseKey(two, '7,"a"b')).toThrow('is not a key here');
    expect(() => parseKey(two, 'x')).toThrow('"x" is not a value of type int4');
    expect(() => parseKey({ method: 'range', keyTypes: ['int2'] }, '40000')).toThrow(
      '"40000" is not a value of type int2',
    );
    expect(() => parseKey({ method: 'range', keyTypes: ['date'] }, '2/1/2000')).toThrow('not a value of type date');
  });

  test('by hash is hashed, and whole', () => {
    expect(parseKey(hashed, 'a,7')).toEqual([hashKey(hashed.keyTypes, ['a', 7n])]);
    expect(() => parseKey(hashed, 'a')).toThrow('"a" has 1 of the key\'s 2 columns');
  });

  test('as a bound may be an end, or a hash', () => {
    expect(parseBound(text, '-inf')).toBeNull();
    expect(parseBound(text, '+inf')).toBeNull();
    expect(parseBound(text, '"+inf"')).toEqual(['+inf']);
    expect(parseBound(hashed, '-9223372036854775808')).toEqual([-(2n ** 63n)]);
    expect(() => parseBound(hashed, 'a')).toThrow('"a" is not a value of type int8');
  });

  test('stands beside others by semicolons', () => {
    expect(parsePositions(two, '5;7,a')).toEqual([[5n], [7n, 'a']]);
    expect(parsePositions(two, '5,";""";7')).toEqual([[5n, ';"'], [7n]]);
    expect(parsePositions(text, ';')).toEqual([[''], ['']]);
    expect(() => parsePositions(text, '"a;b')).toThrow('do not match');
    expect(() => parsePositions(text, 'a;"b"c;d')).toThrow('not a key here');
    expect(() => parsePositions(two, '5;-inf')).toThrow('-inf is no position');
  });
});
