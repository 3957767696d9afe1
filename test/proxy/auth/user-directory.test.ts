import { describe, expect, it } from 'vitest';
import { UserDirectory } from '../../../proxy/auth/user-directory.js';
import type { UserRecord } from '../../../proxy/auth/user-record.js';
import { makeVerifier } from '../../../proxy/wire/scram.js';

const record = (source: UserRecord['source'], password: string): UserRecord => ({
  source,
  secret: { kind: 'plain', password },
  expired: false,
  canLogin: true,
});

/** A source whose answers are given by hand. */
function manual(): { find: () => Promise<UserRecord | null>; answer: (r: UserRecord | null) => void; asked: number } {
  const waiting: ((r: UserRecord | null) => void)[] = [];
  const source = {
    asked: 0,
    find: () => {
      source.asked++;
      return new Promise<UserRecord | null>((resolve) => waiting.push(resolve));
    },
    answer: (r: UserRecord | null) => waiting.shift()?.(r),
  };
  return source;
}

const directory = (sources: { find(user: string): Promise<UserRecord | null> }[], cacheMs = 0): UserDirectory =>
  new UserDirectory({
    configured: new Map([['conf', { password: 'c' }]]),
    file: () =>
      new Map([
        ['conf', 'f'],
        ['file', 'f'],
        ['empty', ''],
      ]),
    sources,
    cacheMs,
  });

describe('users', () => {
  it('are looked for in configuration, file, and then one source after the other', async () => {
    const one = { find: async (user: string) => (user === 'both' ? record('catalog', '1') : null) };
    const two = { find: async (user: string) => (user === 'nobody' ? null : record('query', '2')) };
    const users = directory([one, two]);
    const source = async (user: string) => (await users.find(user)).record?.source;
    expect(await source('conf')).toBe('configuration');
    expect(await source('file')).toBe('file');
    expect(await source('both')).toBe('catalog');
    expect(await source('other')).toBe('query');
    expect(await source('nobody')).toBe(undefined);
    expect((await users.find('empty')).record).toMatchObject({ source: 'file', secret: null });
  });

  it('have a password for servers only where it is there in the clear', async () => {
    const verifier = await makeVerifier('x');
    const users = new UserDirectory({
      configured: new Map([
        ['a', { password: 'pa' }],
        ['b', { verifier }],
      ]),
      file: () =>
        new Map([
          ['a', 'other'],
          ['b', 'pb'],
          ['c', 'pc'],
          ['d', 'md5d8578edf8458ce06fbc5bb76a58c5ca4'],
          ['e', ''],
        ]),
      sources: [],
      cacheMs: 0,
    });
    expect(['a', 'b', 'c', 'd', 'e', 'f'].map((u) => users.passwordOf(u))).toEqual([
      'pa',
      null,
      'pc',
      null,
      null,
      null,
    ]);
  });

  it('are read after a login has begun; those who arrive meanwhile share the next look-up', async () => {
    const source = manual();
    const users = directory([source]);
    const first = users.find('u');
    const second = users.find('u');
    const third = users.find('u');
    expect(source.asked).toBe(1);
    source.answer(record('query', 'old'));
    expect((await first).record).toEqual(record('query', 'old'));
    while (source.asked < 2) await new Promise((resolve) => setImmediate(resolve));
    source.answer(record('query', 'new'));
    expect((await second).record).toEqual(record('query', 'new'));
    expect((await third).record).toEqual(record('query', 'new'));
    expect(source.asked).toBe(2);
  });

  it('a look-up that fails fails those who waited for it, and is tried again for the next', async () => {
    let broken = true;
    const users = directory([
      {
        find: async () => {
          if (broken) throw new Error('away');
          return record('query', 'x');
        },
      },
    ]);
    await expect(users.find('u')).rejects.toThrow('away');
    broken = false;
    expect((await users.find('u')).record).toEqual(record('query', 'x'));
  });

  it('are cached when so configured, until read again', async () => {
    let password = 'old';
    const users = directory([{ find: async () => record('query', password) }], 60_000);
    try {
      expect(await users.find('u')).toEqual({ cached: false, record: record('query', 'old') });
      password = 'new';
      expect(await users.find('u')).toEqual({ cached: true, record: record('query', 'old') });
      expect(await users.findAgain('u')).toEqual(record('query', 'new'));
      expect(await users.find('u')).toEqual({ cached: true, record: record('query', 'new') });
    } finally {
      users.close();
    }
  });
});
