import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { defaultConfig, loadConfig, parseConfig } from '../../cli/config.js';
import { configSchema } from '../../cli/config-schema.js';
import { UsageError } from '../../topology/errors.js';
import { temporaryDirectory } from './temporary-directory.js';

const URL_LINE = 'catalog:\n  url: postgresql://foreshard@127.0.0.1/foreshard\n';
const VERIFIER =
  'SCRAM-SHA-256$4096:9w0ng1bXSFRGWEOFd3G9cA==$Pc6gFs4lqQdsAQkOmSHlFQX6tRwtCFzCUaTBKwbEP4M=:Ux4PwHqrk2WVFN0+R5DMUjiRXZiQYmSc4yMfFi9dkJA=';

function mistake(text: string, env: Record<string, string> = {}): string {
  try {
    parseConfig(text, { path: 'foreshard.yaml', env });
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return (error as UsageError).message;
  }
  throw new Error('the configuration was accepted');
}

describe('configuration', () => {
  const dir = temporaryDirectory('foreshard-config-');

  it('fills in every default when only the catalog is given', () => {
    const config = defaultConfig('postgresql://foreshard:pw@127.0.0.1/foreshard');
    expect(config.catalogUrl).toBe('postgresql://foreshard:pw@127.0.0.1/foreshard');
    expect(config.proxy.listen).toMatchObject({ host: '127.0.0.1', port: 6432 });
    expect(config.proxy.tls).toBeUndefined();
    expect(config.proxy.auth.method).toBe('scram-sha-256');
    expect(config.proxy.pool.size).toBe(20);
    expect(config.log.level).toBe('info');
  });

  it('takes an empty section as its defaults', () => {
    const { config } = parseConfig(`${URL_LINE}proxy:\n  pool:\n`, { path: 'f.yaml', env: {} });
    expect(config.proxy.pool.size).toBe(20);
  });

  it.each([
    ['', /catalog: is required/],
    ['catalog: {}', /line 1: catalog\.url: is required/],
    ['catalog:\n  url: mysql://x/y', /line 2: catalog\.url: has the scheme "mysql"/],
    ['catalog:\n  url: postgresql://host', /line 2: catalog\.url: names no database/],
    [`${URL_LINE}prxy: {}`, /line 3: prxy: unknown key; did you mean "proxy"\?/],
    [`${URL_LINE}proxy:\n  pool:\n    sise: 3`, /line 5: proxy\.pool\.sise: unknown key; did you mean "size"\?/],
    [
      `${URL_LINE}proxy:\n  auth:\n    users:\n      app: {pasword: x}`,
      /line 6: proxy\.auth\.users\.app\.pasword: unknown key; did you mean "password"\?/,
    ],
    [`${URL_LINE}proxy:\n  listen:\n    port: 99999`, /line 5: proxy\.listen\.port: too big/],
    [`${URL_LINE}proxy:\n  listen:\n    port: "x"`, /line 5: proxy\.listen\.port: expected number, received string/],
    [
      `${URL_LINE}proxy:\n  listen:\n    trustedProxies: [lb1]`,
      /proxy\.listen\.trustedProxies\.0: "lb1" is not an IP address/,
    ],
    [`${URL_LINE}proxy:\n  listen: {proxyProtocol: require}`, /trustedProxies: list the load balancers/],
    [`${URL_LINE}proxy:\n  listen: {socketMode: "0888"}`, /socketMode: is not a file mode/],
    [`${URL_LINE}proxy:\n  tls: {mode: require, keyFile: k}`, /proxy\.tls\.certFile: is needed with mode "require"/],
    [`${URL_LINE}log:\n  level: loud`, /line 4: log\.level: expected one of "trace"/],
    [`${URL_LINE}catalog: {}`, /line 3: Map keys must be unique/],
    [`${URL_LINE}proxy: [`, /line \d+: /],
    [
      `${URL_LINE}  password: a\n  passwordEnv: B`,
      /line 4: catalog\.passwordEnv: give one of password, passwordEnv, not both/,
    ],
    ['catalog:\n  url: postgresql://u:p@h/d\n  password: q', /catalog\.password: the url already holds a password/],
    [`${URL_LINE}shards:\n  s1: {}`, /line 4: shards\.s1: give one of password/],
    [`${URL_LINE}shards:\n  "S 1": {password: x}`, /shards\.S 1: is not a name/],
    [
      `${URL_LINE}shards:\n  s1: {passwordEnv: NOT_THERE}`,
      /shards\.s1\.passwordEnv: the environment variable NOT_THERE is not set/,
    ],
    [
      `${URL_LINE}shards:\n  s1: {passwordFile: /nowhere/pw}`,
      /shards\.s1\.passwordFile: cannot read "\/nowhere\/pw": ENOENT/,
    ],
    [
      `${URL_LINE}proxy:\n  auth:\n    users:\n      app: {verifier: md5abc}`,
      /users\.app\.verifier: is not a SCRAM-SHA-256 verifier/,
    ],
  ])('refuses %j', (text, expected) => {
    expect(mistake(text)).toMatch(expected);
  });

  it('reports all mistakes at once', () => {
    const message = mistake(`${URL_LINE}proxy:\n  pool: {size: 0}\n  lease: {ttlMs: never}\nplaner: {}\n`);
    expect(message).toMatch(/proxy\.pool\.size/);
    expect(message).toMatch(/proxy\.lease\.ttlMs/);
    expect(message).toMatch(/planer: unknown key; did you mean "planner"/);
  });

  it('never repeats a secret in an error', () => {
    expect(mistake('catalog:\n  url: "mysql://u:hunter2@h/d"\n')).not.toMatch(/hunter2/);
    expect(mistake(`${URL_LINE}  password: [hunter2]\n`)).not.toMatch(/hunter2/);
  });

  it('reads secrets from the file, the environment and files of their own', () => {
    writeFileSync(join(dir, 'closed'), 'p@ss/wörd\n', { mode: 0o600 });
    writeFileSync(join(dir, 'open'), 'two', { mode: 0o600 });
    chmodSync(join(dir, 'open'), 0o644);
    const file = join(dir, 'foreshard.yaml');
    writeFileSync(
      file,
      `${URL_LINE}  passwordFile: closed
proxy:
  auth: {users: {app: {passwordEnv: APP_PW}, ro: {verifier: "${VERIFIER}"}}}
  serverPasswords: {app: {password: direct}}
shards: {s1: {passwordFile: open}}
`,
    );
    const { config, warnings } = loadConfig(file, { APP_PW: 'three' });
    expect(decodeURIComponent(new URL(config.catalogUrl).password)).toBe('p@ss/wörd');
    expect(config.proxy.auth.users.get('app')).toEqual({ password: 'three' });
    expect(config.proxy.auth.users.get('ro')).toEqual({ verifier: VERIFIER });
    expect(config.proxy.serverPasswords.get('app')).toBe('direct');
    expect(config.shardPasswords.get('s1')).toBe('two');
    expect(warnings).toEqual([
      expect.stringMatching(/shards\.s1\.passwordFile: .*open" can be read by others; chmod 600/),
    ]);
  });

  it('finds certificates and keys from the folder of the file', () => {
    const file = join(dir, 'tls.yaml');
    writeFileSync(
      file,
      `${URL_LINE}proxy:\n  tls: {mode: allow, certFile: c.pem, keyFile: /k.pem, keyPassphrase: {passwordEnv: KEY}}\n`,
    );
    expect(loadConfig(file, { KEY: 'open' }).config.proxy.tls).toEqual({
      mode: 'allow',
      certFile: join(dir, 'c.pem'),
      keyFile: '/k.pem',
      keyPassphrase: 'open',
      minVersion: 'TLSv1.2',
    });
  });

  it('says which file is missing', () => {
    expect(() => loadConfig('/nowhere/foreshard.yaml', {})).toThrow(/"\/nowhere\/foreshard\.yaml": ENOENT/);
  });

  it('accepts the example file that is shipped', () => {
    const env = new Proxy({}, { get: () => 'x' }) as Record<string, string>;
    expect(loadConfig('deploy/foreshard.example.yaml', env).config.catalogUrl).toMatch(/^postgresql:/);
  });

  it('is documented: every key with its default', () => {
    const document = readFileSync('docs/configuration.md', 'utf8');
    const rows = new Map(
      [...document.matchAll(/^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|/gm)].map((m) => [
        m[1] as string,
        (m[3] as string).trim(),
      ]),
    );
    const schema = z.toJSONSchema(configSchema, { io: 'output', unrepresentable: 'any' });
    const keys = leaves(schema as Node, []);
    expect(keys.length).toBeGreaterThan(30);
    for (const { path, node } of keys) {
      expect(rows.keys(), `${path} is missing in docs/configuration.md`).toContain(path);
      if (node.default !== undefined && node.default !== null && path !== 'proxy.name')
        expect(rows.get(path), path).toBe(`\`${String(node.default)}\``);
    }
    expect([...rows.keys()].sort()).toEqual(keys.map((k) => k.path).sort());
  });
});

interface Node {
  readonly properties?: Record<string, Node>;
  readonly additionalProperties?: Node | false;
  readonly default?: unknown;
}

function leaves(node: Node, path: string[]): { path: string; node: Node }[] {
  if (node.properties !== undefined)
    return Object.entries(node.properties).flatMap(([key, inner]) => leaves(inner, [...path, key]));
  if (node.additionalProperties) return leaves(node.additionalProperties, [...path, '<name>']);
  return [{ path: path.join('.'), node }];
}
