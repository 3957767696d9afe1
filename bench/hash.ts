/**
 * How long the hash of a key takes, against MD5 of the same bytes by Node's own library.
 * Run: npx tsc && node dist/bench/hash.js
 */
import { createHash } from 'node:crypto';
import { hashKey } from '../topology/hash.js';
import type { KeyTuple, KeyType } from '../topology/key.js';
import { compareContenders } from './measure.js';

const TEXT = 'customer-0123456789@example.com';
const KEYS: readonly (readonly [name: string, types: readonly KeyType[], key: KeyTuple])[] = [
  ['int8', ['int8'], [4711n]],
  ['text', ['text'], [TEXT]],
  ['int8 and text', ['int8', 'text'], [4711n, TEXT]],
];

for (const [name, types, key] of KEYS) {
  const bytes = Buffer.from(key.join(''));
  compareContenders(`hash: ${name}`, [
    { contender: 'MD5 of Node', role: 'reference', run: () => createHash('md5').update(bytes).digest() },
    { contender: 'hash of the key', role: 'ours', run: () => hashKey(types, key) },
  ]);
}
