import { type HbaField, type HbaRecord, type HbaToken, readRecords } from './hba-tokens.js';
import { type IpRange, inRange, maskOf, ownRanges, parseIp } from './ip-range.js';
import { matchesName, type NamePattern, parsePattern } from './name-pattern.js';
import type { ConnectionFacts } from './peer.js';

/** Methods that the proxy has, by their names in pg_hba.conf. */
export const AUTH_METHODS = ['scram-sha-256', 'md5', 'password', 'cert', 'trust', 'reject'] as const;
export type AuthMethod = (typeof AUTH_METHODS)[number];

const NOT_SUPPORTED = ['peer', 'ident', 'gss', 'sspi', 'pam', 'bsd', 'ldap', 'radius', 'oauth'];

export type DatabaseMatch = NamePattern | { readonly kind: 'all' | 'sameuser' | 'replication' };
export type UserMatch = NamePattern | { readonly kind: 'all' };
export type AddressMatch =
  | { readonly kind: 'all' | 'samehost' | 'samenet' }
  | { readonly kind: 'range'; readonly range: IpRange };

/** One record of pg_hba.conf, as PostgreSQL's documentation of that file explains it. */
export interface HbaRule {
  /** From 1. */
  readonly line: number;
  readonly type: 'local' | 'host' | 'hostssl' | 'hostnossl';
  readonly databases: readonly DatabaseMatch[];
  readonly users: readonly UserMatch[];
  /** Of `local`: all. */
  readonly address: AddressMatch;
  readonly method: AuthMethod;
  readonly clientCert: 'off' | 'verify-ca' | 'verify-full';
  /** What of the certificate is the name: its common name or its whole subject. */
  readonly clientName: 'CN' | 'DN';
  /** Map in pg_ident.conf from the certificate's name to users. */
  readonly map: string | null;
}

/** A mistake in a file; `line` from 1. */
export interface FileProblem {
  readonly line: number;
  readonly problem: string;
}

export interface ParsedRules {
  readonly rules: readonly HbaRule[];
  readonly problems: readonly FileProblem[];
}

/** Reads rules in the format of pg_hba.conf. Every mistake is reported; what the proxy does not have is one. */
export function parseHba(text: string): ParsedRules {
  const rules: HbaRule[] = [];
  const problems: FileProblem[] = [];
  for (const record of readRecords(text)) {
    try {
      rules.push(parseRule(record));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      problems.push({ line: record.line, problem: error.message });
    }
  }
  return { rules, problems };
}

/** What a client says it is, in its start-up packet. */
export interface Claim {
  readonly user: string;
  readonly database: string;
  /** `physical` is judged by rules for `replication` alone, `logical` as an ordinary connection to its database. Default: null. */
  readonly replication?: 'physical' | 'logical' | null;
}

/** The first rule that fits, which decides alone; null: nobody is let in. */
export function findRule(rules: readonly HbaRule[], connection: ConnectionFacts, who: Claim): HbaRule | null {
  const ip = connection.address === null ? null : parseIp(connection.address);
  for (const rule of rules) {
    if (
      matchesConnection(rule, connection, ip) &&
      rule.databases.some((d) => matchesDatabase(d, who)) &&
      rule.users.some((u) => u.kind === 'all' || matchesName(u, who.user))
    )
      return rule;
  }
  return null;
}

function matchesConnection(rule: HbaRule, { kind, tls }: ConnectionFacts, ip: Buffer | null): boolean {
  if (rule.type === 'local') return kind === 'unix';
  if (kind === 'unix' || ip === null) return false;
  if (rule.type === 'hostssl' && tls === null) return false;
  if (rule.type === 'hostnossl' && tls !== null) return false;
  const { address } = rule;
  switch (address.kind) {
    case 'all':
      return true;
    case 'range':
      return inRange(ip, address.range);
    default:
      return ownRanges(address.kind).some((range) => inRange(ip, range));
  }
}

/** As check_db in PostgreSQL's hba.c. */
function matchesDatabase(match: DatabaseMatch, who: Claim): boolean {
  if (who.replication === 'physical') return match.kind === 'replication';
  switch (match.kind) {
    case 'all':
      return true;
    case 'sameuser':
      return who.database === who.user;
    case 'replication':
      return false;
    default:
      return matchesName(match, who.database);
  }
}

function parseRule({ line, fields }: HbaRecord): HbaRule {
  const left = [...fields];
  const next = (what: string): HbaField => {
    const field = left.shift();
    if (field === undefined) throw new SyntaxError(`end-of-line before ${what}`);
    return field;
  };
  const one = (field: HbaField, what: string): HbaToken => {
    if (field.length > 1) throw new SyntaxError(`multiple values specified for ${what}`);
    return field[0] as HbaToken;
  };

  const type = parseType(one(next('connection type'), 'connection type').text);
  const databases = next('database specification').map(parseDatabase);
  const users = next('role specification').map(parseUser);
  let address: AddressMatch = { kind: 'all' };
  if (type !== 'local') {
    const token = one(next('IP address specification'), 'host address');
    const mask = (): string => one(next('netmask specification'), 'netmask').text;
    address = parseAddress(token, mask);
  }
  const method = parseMethod(one(next('authentication method'), 'authentication type').text, type);
  const rule: HbaRule = {
    line,
    type,
    databases,
    users,
    address,
    method,
    clientCert: method === 'cert' ? 'verify-full' : 'off',
    clientName: 'CN',
    map: null,
  };
  return left.flat().reduce(withOption, rule);
}

function parseType(word: string): HbaRule['type'] {
  switch (word) {
    case 'local':
    case 'host':
    case 'hostssl':
    case 'hostnossl':
      return word;
    case 'hostnogssenc': // no connection of ours is encrypted with GSSAPI
      return 'host';
    case 'hostgssenc':
      throw new SyntaxError('hostgssenc record cannot match because GSSAPI is not supported by the proxy');
    case 'include':
    case 'include_if_exists':
    case 'include_dir':
      throw new SyntaxError(`"${word}" is not supported by the proxy: put all rules into one file`);
    default:
      throw new SyntaxError(`invalid connection type "${word}"`);
  }
}

const isKeyword = (token: HbaToken, word: string): boolean => !token.quoted && token.text === word;

function refuseFile(token: HbaToken): void {
  if (!token.quoted && token.text.length > 1 && token.text.startsWith('@'))
    throw new SyntaxError(`"${token.text}": names from another file are not supported by the proxy`);
}

function parseDatabase(token: HbaToken): DatabaseMatch {
  refuseFile(token);
  for (const kind of ['all', 'sameuser', 'replication'] as const) if (isKeyword(token, kind)) return { kind };
  if (isKeyword(token, 'samerole') || isKeyword(token, 'samegroup'))
    throw new SyntaxError(`"${token.text}" is not supported by the proxy: it does not know who is a member of a role`);
  return parsePattern(token);
}

function parseUser(token: HbaToken): UserMatch {
  refuseFile(token);
  if (isKeyword(token, 'all')) return { kind: 'all' };
  if (!token.quoted && token.text.startsWith('+'))
    throw new SyntaxError(`"${token.text}" is not supported by the proxy: it does not know who is a member of a role`);
  return parsePattern(token);
}

function parseAddress(token: HbaToken, mask: () => string): AddressMatch {
  for (const kind of ['all', 'samehost', 'samenet'] as const) if (isKeyword(token, kind)) return { kind };
  const [host, bits] = token.text.split('/', 2) as [string, string | undefined];
  const address = parseIp(host);
  if (address === null)
    throw new SyntaxError(
      bits === undefined && !/^[\d.]+$|:/.test(host)
        ? `host name "${host}" is not supported by the proxy: give IP addresses`
        : `invalid IP address "${host}"`,
    );
  if (bits !== undefined) {
    const found = /^\d+$/.test(bits) ? maskOf(address, Number(bits)) : null;
    if (found === null) throw new SyntaxError(`invalid CIDR mask in address "${token.text}"`);
    return { kind: 'range', range: { address, mask: found } };
  }
  const text = mask();
  const found = parseIp(text);
  if (found === null) throw new SyntaxError(`invalid IP mask "${text}"`);
  if (found.length !== address.length) throw new SyntaxError('IP address and mask do not match');
  return { kind: 'range', range: { address, mask: found } };
}

function parseMethod(word: string, type: HbaRule['type']): AuthMethod {
  const method = AUTH_METHODS.find((m) => m === word);
  if (method === undefined) {
    const known = `the methods are ${AUTH_METHODS.join(', ')}`;
    throw new SyntaxError(
      NOT_SUPPORTED.includes(word)
        ? `authentication method "${word}" is not supported by the proxy; ${known}`
        : `invalid authentication method "${word}"; ${known}`,
    );
  }
  if (method === 'cert' && type !== 'hostssl')
    throw new SyntaxError('cert authentication is only supported on hostssl connections');
  if (method === 'password' && type === 'hostnossl')
    throw new SyntaxError('password authentication sends passwords in the clear: use hostssl, or scram-sha-256');
  return method;
}

function withOption(rule: HbaRule, token: HbaToken): HbaRule {
  const at = token.text.indexOf('=');
  if (at < 0) throw new SyntaxError(`authentication option not in name=value format: ${token.text}`);
  const name = token.text.slice(0, at);
  const value = token.text.slice(at + 1);
  switch (name) {
    case 'map':
      if (rule.method !== 'cert')
        throw new SyntaxError('authentication option "map" is only valid for authentication method cert');
      return { ...rule, map: value };
    case 'clientcert':
      if (rule.type !== 'hostssl') throw new SyntaxError('clientcert can only be configured for "hostssl" rows');
      if (value !== 'verify-full' && value !== 'verify-ca')
        throw new SyntaxError(`invalid value for clientcert: "${value}"`);
      if (rule.method === 'cert' && value === 'verify-ca')
        throw new SyntaxError('clientcert only accepts "verify-full" when using "cert" authentication');
      return { ...rule, clientCert: value };
    case 'clientname':
      if (rule.type !== 'hostssl') throw new SyntaxError('clientname can only be configured for "hostssl" rows');
      if (value !== 'CN' && value !== 'DN') throw new SyntaxError(`invalid value for clientname: "${value}"`);
      return { ...rule, clientName: value };
    default:
      throw new SyntaxError(`unrecognized authentication option name: "${name}"`);
  }
}
