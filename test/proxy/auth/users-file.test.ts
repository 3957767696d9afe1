import { describe, expect, it } from 'vitest';
import { matchesPassword, parseSecret } from '../../../proxy/auth/user-secret.js';
import { parseUsersFile } from '../../../proxy/auth/users-file.js';
import { md5Answer, md5Hash } from '../../../proxy/wire/login-secret.js';
import { makeVerifier } from '../../../proxy/wire/scram.js';

describe('the file of users', () => {
  it('is read as PgBouncer does', () => {
    const { users, problems } = parseUsersFile(
      `; a comment\n# another\n\n"ann" "secret"\n"a ""b""" "p""w" ignored\r\n  "bob"\t"md5d8578edf8458ce06fbc5bb76a58c5ca4"\n"none" ""\n`,
    );
    expect(problems).toEqual([]);
    expect([...users]).toEqual([
      ['ann', 'secret'],
      ['a "b"', 'p"w'],
      ['bob', 'md5d8578edf8458ce06fbc5bb76a58c5ca4'],
      ['none', ''],
    ]);
  });

  it('reports every mistake with its line', () => {
    const { problems } = parseUsersFile('"a" "b"\nann secret\n"x" \n"" "y"\n"a" "c"\n"open "z"');
    expect(problems).toEqual([
      { line: 2, problem: 'expected "name" "secret", both in double quotes' },
      { line: 3, problem: 'expected "name" "secret", both in double quotes' },
      { line: 4, problem: 'the name is empty' },
      { line: 5, problem: 'user "a" is there already' },
      { line: 6, problem: 'expected "name" "secret", both in double quotes' },
    ]);
  });
});

describe('secrets', () => {
  it('are told apart as PostgreSQL does', async () => {
    expect(parseSecret('md5d8578edf8458ce06fbc5bb76a58c5ca4').kind).toBe('md5');
    expect(parseSecret('md5D8578EDF8458CE06FBC5BB76A58C5CA4').kind).toBe('plain');
    expect(parseSecret('md5short').kind).toBe('plain');
    expect(parseSecret(await makeVerifier('x')).kind).toBe('scram');
    expect(parseSecret('SCRAM-SHA-256$4096:bad').kind).toBe('plain');
  });

  it.each(['plain', 'md5', 'scram'] as const)('a password in the clear is compared with a %s one', async (kind) => {
    const text = { plain: 'pässword', md5: md5Hash('pässword', 'ann'), scram: await makeVerifier('pässword') }[kind];
    const secret = parseSecret(text);
    expect(secret.kind).toBe(kind);
    expect(await matchesPassword('ann', 'pässword', secret)).toBe(true);
    expect(await matchesPassword('ann', 'password', secret)).toBe(false);
    expect(await matchesPassword('ann', text, secret)).toBe(kind === 'plain');
  });

  it('md5 answers are those of PostgreSQL', () => {
    // md5sum's own words: of "secretann", then of those digits and the bytes 1, 2, 3, 4.
    expect(md5Hash('secret', 'ann')).toBe('md59d792a3a8853c2411afb9163d088c036');
    expect(md5Answer(md5Hash('secret', 'ann'), Buffer.from([1, 2, 3, 4]))).toBe('md59009ce60b9ca97f1e752376843d1309e');
  });
});
