import { networkInterfaces } from 'node:os';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { findRule, parseHba } from '../../../proxy/auth/hba.js';
import { readRecords } from '../../../proxy/auth/hba-tokens.js';
import { mayBe, parseIdent } from '../../../proxy/auth/ident.js';
import { parseIp } from '../../../proxy/auth/ip-range.js';
import type { ConnectionFacts } from '../../../proxy/auth/peer.js';

const TLS = { serverEndPoint: Buffer.alloc(32), clientCommonName: null, clientDistinguishedName: null };
const tcp = (address: string, tls = false): ConnectionFacts => ({ kind: 'tcp', address, tls: tls ? TLS : null });
const UNIX: ConnectionFacts = { kind: 'unix', address: null, tls: null };

/** Line of the rule that decides; null: none. */
function lineFor(rules: string, connection: ConnectionFacts, user = 'app', database = 'shop'): number | null {
  const parsed = parseHba(rules);
  expect(parsed.problems).toEqual([]);
  return findRule(parsed.rules, connection, { user, database })?.line ?? null;
}

describe('words', () => {
  const words = (text: string): string[][][] =>
    readRecords(text).map((r) => r.fields.map((f) => f.map((t) => (t.quoted ? `Q:${t.text}` : t.text))));

  it.each<[string, string[][][]]>([
    ['', []],
    ['# only a comment\n\n  \t', []],
    ['a b\tc', [[['a'], ['b'], ['c']]]],
    ['a,b c', [[['a', 'b'], ['c']]]],
    ['a, b ,c d', [[['a', 'b'], ['c'], ['d']]]],
    ['"a b" c', [[['Q:a b'], ['c']]]],
    ['"say ""x"", y"', [[['Q:say "x", y']]]],
    ['"#no" b # yes', [[['Q:#no'], ['b']]]],
    ['a#b c', [[['a']]]],
    ['"" x', [[['Q:'], ['x']]]],
    ['@"my file"', [[['@my file']]]],
    ['a \\\nb', [[['a'], ['b']]]],
    ['a\r\nb\r\n', [[['a']], [['b']]]],
    ['"open', [[['Q:open']]]],
  ])('%j', (text, expected) => expect(words(text)).toEqual(expected));

  it('tells the first line of a continued record', () => {
    expect(readRecords('\n\na \\\nb\nc').map((r) => r.line)).toEqual([3, 5]);
  });

  it('reads back any name that was quoted', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.string({ unit: 'grapheme' }).filter((s) => !/[\n\r\\]/.test(s)),
          { minLength: 1 },
        ),
        (names) => {
          const line = names.map((n) => `"${n.replaceAll('"', '""')}"`).join(' ');
          expect(readRecords(line)[0]?.fields.map((f) => f[0]?.text)).toEqual(names);
        },
      ),
    );
  });
});

describe('addresses', () => {
  it.each([
    ['127.0.0.1', '7f000001'],
    ['::1', '00000000000000000000000000000001'],
    ['::', '0'.repeat(32)],
    ['fe80::1%eth0', 'fe800000000000000000000000000001'],
    ['2001:db8:0:1::2:3', '20010db8000000010000000000020003'],
    ['::ffff:10.1.2.3', '0a010203'],
    ['64:ff9b::192.0.2.33', '0064ff9b0000000000000000c0000221'],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
  ])('%s', (text, hex) => expect(parseIp(text)?.toString('hex')).toBe(hex));

  it.each(['', 'localhost', '1.2.3', '1.2.3.4.5', '1::2::3', '12345::'])('%j is none', (text) =>
    expect(parseIp(text)).toBeNull(),
  );
});

describe('the first rule that fits decides', () => {
  it.each<[string, ConnectionFacts, boolean]>([
    ['host all all 10.0.0.0/8 trust', tcp('10.255.0.1'), true],
    ['host all all 10.0.0.0/8 trust', tcp('11.0.0.1'), false],
    ['host all all 10.0.0.0/8 trust', tcp('::ffff:10.0.0.1'), true],
    ['host all all 10.0.0.0 255.255.0.0 trust', tcp('10.0.9.9'), true],
    ['host all all 10.0.0.0 255.255.0.0 trust', tcp('10.1.0.1'), false],
    ['host all all 10.0.0.1 255.0.0.255 trust', tcp('10.7.7.1'), true],
    ['host all all 0.0.0.0/0 trust', tcp('1.2.3.4'), true],
    ['host all all 0.0.0.0/0 trust', tcp('::1'), false],
    ['host all all ::/0 trust', tcp('::1'), true],
    ['host all all fd00::/9 trust', tcp('fd7f::1'), true],
    ['host all all fd00::/9 trust', tcp('fd80::1'), false],
    ['host all all all trust', tcp('::1'), true],
    ['host all all samehost trust', tcp('127.0.0.1'), true],
    ['host all all samehost trust', tcp('127.0.0.2'), false],
    ['host all all samehost trust', tcp('203.0.113.7'), false],
    ['host all all samenet trust', tcp('203.0.113.7'), false],
    ['host all all all trust', UNIX, false],
    ['local all all trust', UNIX, true],
    ['local all all trust', tcp('127.0.0.1'), false],
    ['hostssl all all all trust', tcp('1.1.1.1'), false],
    ['hostssl all all all trust', tcp('1.1.1.1', true), true],
    ['hostnossl all all all trust', tcp('1.1.1.1', true), false],
    ['hostnossl all all all trust', tcp('1.1.1.1'), true],
    ['hostnogssenc all all all trust', tcp('1.1.1.1'), true],
  ])('%s for %j: %s', (rule, connection, fits) => expect(lineFor(rule, connection) !== null).toBe(fits));

  it('samenet covers the networks of this machine', () => {
    const own = Object.values(networkInterfaces()).flatMap((all) => all ?? []);
    for (const { address } of own) expect(lineFor('host all all samenet trust', tcp(address))).toBe(1);
    expect(own.length).toBeGreaterThan(0);
  });

  it.each<[string, string, string, boolean]>([
    ['shop', 'app', 'shop', true],
    ['shop', 'app', 'shop2', false],
    ['a,b,shop', 'app', 'shop', true],
    ['sameuser', 'app', 'app', true],
    ['sameuser', 'app', 'shop', false],
    ['"sameuser"', 'app', 'sameuser', true],
    ['"sameuser"', 'app', 'app', false],
    ['"all"', 'app', 'shop', false],
    ['replication', 'app', 'shop', false],
    ['replication', 'app', 'replication', false],
    ['"replication"', 'app', 'replication', true],
    ['/^sh', 'app', 'shop', true],
    ['/^sh$', 'app', 'shop', false],
    ['"/^s h"', 'app', 's h', true],
    ['SHOP', 'app', 'shop', false],
  ])('database %s: user %s, database %s: %s', (field, user, database, fits) =>
    expect(lineFor(`local ${field} all trust`, UNIX, user, database) !== null).toBe(fits),
  );

  it.each<[string, 'physical' | 'logical', string, boolean]>([
    ['replication', 'physical', 'shop', true],
    ['replication', 'physical', 'app', true],
    ['a,replication', 'physical', 'app', true],
    ['all', 'physical', 'shop', false],
    ['shop', 'physical', 'shop', false],
    ['sameuser', 'physical', 'app', false],
    ['/^', 'physical', 'shop', false],
    ['"replication"', 'physical', 'replication', false],
    ['replication', 'logical', 'shop', false],
    ['replication', 'logical', 'replication', false],
    ['all', 'logical', 'shop', true],
    ['shop', 'logical', 'shop', true],
    ['other', 'logical', 'shop', false],
    ['sameuser', 'logical', 'app', true],
  ])('database %s: %s replication, database %s: %s', (field, replication, database, fits) => {
    const { rules } = parseHba(`local ${field} all trust`);
    expect(findRule(rules, UNIX, { user: 'app', database, replication }) !== null).toBe(fits);
  });

  it.each<[string, string, boolean]>([
    ['app', 'app', true],
    ['a, app', 'app', true],
    ['"all"', 'app', false],
    ['"all"', 'all', true],
    ['"+x"', '+x', true],
    ['/^ap+$', 'appp', true],
    ['/^ap+$', 'apx', false],
  ])('user %s: %s: %s', (field, user, fits) =>
    expect(lineFor(`local all ${field} trust`, UNIX, user) !== null).toBe(fits),
  );

  it('and no other is looked at', () => {
    const rules = `# TYPE DATABASE USER ADDRESS METHOD
host  all  bad  all           reject
host  shop app  10.0.0.0/8    md5

hostssl all all all           scram-sha-256`;
    expect(lineFor(rules, tcp('10.0.0.1', true), 'bad')).toBe(2);
    expect(lineFor(rules, tcp('10.0.0.1', true), 'app')).toBe(3);
    expect(lineFor(rules, tcp('11.0.0.1', true), 'app')).toBe(5);
    expect(lineFor(rules, tcp('11.0.0.1'), 'app')).toBe(null);
  });
});

describe('options', () => {
  it('cert needs a whole certificate', () => {
    expect(parseHba('hostssl all all all cert map=m clientname=DN').rules[0]).toMatchObject({
      method: 'cert',
      clientCert: 'verify-full',
      clientName: 'DN',
      map: 'm',
    });
    expect(parseHba('hostssl all all all scram-sha-256 clientcert=verify-ca').rules[0]).toMatchObject({
      clientCert: 'verify-ca',
      clientName: 'CN',
    });
  });
});

describe('mistakes', () => {
  it.each([
    ['hots all all all trust', 'invalid connection type "hots"'],
    ['host,local all all all trust', 'multiple values specified for connection type'],
    ['host', 'end-of-line before database specification'],
    ['host all', 'end-of-line before role specification'],
    ['host all all', 'end-of-line before IP address specification'],
    ['host all all 10.0.0.1', 'end-of-line before netmask specification'],
    ['host all all 10.0.0.1/33 trust', 'invalid CIDR mask in address "10.0.0.1/33"'],
    ['host all all 10.0.0.1/x trust', 'invalid CIDR mask'],
    ['host all all 10.0.0/8 trust', 'invalid IP address "10.0.0"'],
    ['host all all 10.0.0.1 ffff:: trust', 'IP address and mask do not match'],
    ['host all all 10.0.0.1 trust trust', 'invalid IP mask "trust"'],
    ['host all all db.example.com trust', 'host name "db.example.com" is not supported by the proxy'],
    ['host all all .example.com trust', 'host name ".example.com" is not supported by the proxy'],
    ['host all all 1.1.1.1/32,2.2.2.2/32 trust', 'multiple values specified for host address'],
    ['local all all', 'end-of-line before authentication method'],
    ['local all all scram', 'invalid authentication method "scram"; the methods are scram-sha-256, md5'],
    ['local all all peer', 'authentication method "peer" is not supported by the proxy'],
    ['host all all all ldap ldapserver=x', 'authentication method "ldap" is not supported'],
    ['host all all all cert', 'cert authentication is only supported on hostssl connections'],
    ['hostnossl all all all password', 'password authentication sends passwords in the clear'],
    ['hostgssenc all all all trust', 'GSSAPI is not supported'],
    ['local all +group trust', '"+group" is not supported by the proxy'],
    ['local samerole all trust', '"samerole" is not supported by the proxy'],
    ['local @dbs all trust', '"@dbs": names from another file are not supported'],
    ['include other.conf', '"include" is not supported by the proxy'],
    ['local all /[ trust', 'invalid regular expression "["'],
    ['local all /[[:alpha:]] trust', '[:class:]'],
    ['local all all trust map=x', 'option "map" is only valid for authentication method cert'],
    ['local all all trust x', 'authentication option not in name=value format: x'],
    ['local all all trust x=1', 'unrecognized authentication option name: "x"'],
    ['host all all all trust clientcert=verify-full', 'clientcert can only be configured for "hostssl" rows'],
    ['hostssl all all all trust clientcert=1', 'invalid value for clientcert: "1"'],
    ['hostssl all all all cert clientcert=verify-ca', 'clientcert only accepts "verify-full"'],
    ['hostssl all all all cert clientname=XN', 'invalid value for clientname: "XN"'],
  ])('%s', (rule, problem) => {
    const { rules, problems } = parseHba(`# first line\n${rule}`);
    expect(rules).toEqual([]);
    expect(problems).toEqual([{ line: 2, problem: expect.stringContaining(problem) }]);
  });

  it('are all reported, and the good rules are there', () => {
    const { rules, problems } = parseHba('local all all trust\nx\nlocal all\nlocal all all md5');
    expect(rules.map((r) => r.line)).toEqual([1, 4]);
    expect(problems.map((p) => p.line)).toEqual([2, 3]);
  });

  it('never throws, whatever the file says', () => {
    const word = fc.constantFrom(
      'host',
      'hostssl',
      'local',
      'all',
      '"',
      ',',
      '@',
      '+',
      '/',
      '/(',
      '10.0.0.0/8',
      '::1',
      '/33',
      'trust',
      'cert',
      '#',
      '\\',
      'map=',
      '\n',
      ' ',
    );
    fc.assert(
      fc.property(fc.array(fc.oneof(word, fc.string()), { maxLength: 30 }), (words) => {
        const { rules } = parseHba(words.join(' '));
        findRule(rules, tcp('10.0.0.1'), { user: 'u', database: 'd' });
        parseIdent(words.join(' '));
      }),
    );
  });
});

describe('maps', () => {
  const MAP = `m  "Ann Smith"        ann
m  /^(.*)@example\\.com$  \\1
m  root               all
n  bob                /^b`;

  it.each<[string | null, string, string, boolean]>([
    [null, 'ann', 'ann', true],
    [null, 'Ann', 'ann', false],
    ['m', 'Ann Smith', 'ann', true],
    ['m', 'ann', 'ann', false],
    ['m', 'joe@example.com', 'joe', true],
    ['m', 'joe@example.com', 'jim', false],
    ['m', 'joe@example.com.evil.org', 'joe', false],
    ['m', 'root', 'anyone', true],
    ['n', 'root', 'anyone', false],
    ['n', 'bob', 'bert', true],
    ['n', 'bob', 'ann', false],
    ['none', 'ann', 'ann', false],
  ])('map %s: %s as %s: %s', (map, system, user, may) => {
    const { entries, problems } = parseIdent(MAP);
    expect(problems).toEqual([]);
    expect(mayBe(entries, map, system, user)).toBe(may);
  });

  it.each([
    ['m ann', 'expected three fields'],
    ['m a b c', 'expected three fields'],
    ['m a,b c', 'multiple values in ident field'],
    ['m a \\1', 'is no regular expression'],
    ['m /a \\1', 'has no parentheses'],
    ['m a +g', 'is not supported'],
  ])('%s is a mistake', (text, problem) =>
    expect(parseIdent(text).problems).toEqual([{ line: 1, problem: expect.stringContaining(problem) }]),
  );
});
