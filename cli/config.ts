import { readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type Document, isMap, LineCounter, parseDocument } from 'yaml';
import type { z } from 'zod';
import type { ListenOptions } from '../proxy/listener/listener.js';
import type { ProxyProtocolMode } from '../proxy/listener/proxy-protocol.js';
import type { TlsOptions } from '../proxy/listener/tls-server.js';
import { UsageError } from '../topology/errors.js';
import { type ConfigFile, configSchema } from './config-schema.js';
import { nearest } from './nearest.js';
import { withPassword } from './postgres-url.js';

type AuthSection = ConfigFile['proxy']['auth'];

/** The configuration with every secret read. Frozen; holds passwords: never log or print it. */
export interface Config extends Omit<ConfigFile, 'catalog' | 'proxy' | 'shards'> {
  /** URL of the catalog's database, with its password. */
  readonly catalogUrl: string;
  readonly proxy: Omit<ConfigFile['proxy'], 'auth' | 'serverPasswords' | 'listen' | 'tls'> & {
    readonly listen: ListenConfig;
    /** Paths resolved from the folder of the file; undefined: no TLS. */
    readonly tls: TlsOptions | undefined;
    readonly auth: Omit<AuthSection, 'users' | 'query'> & {
      readonly users: ReadonlyMap<string, { readonly password?: string; readonly verifier?: string }>;
      readonly query: Pick<AuthSection['query'], 'enabled' | 'sql' | 'user' | 'timeoutMs'> & {
        readonly password: string | null;
      };
    };
    readonly serverPasswords: ReadonlyMap<string, string>;
  };
  /** Passwords of Foreshard's own user on the shards, by shard name. */
  readonly shardPasswords: ReadonlyMap<string, string>;
}

type ListenConfig = ListenOptions & {
  readonly proxyProtocol?: ProxyProtocolMode;
  readonly trustedProxies?: readonly string[];
};

export interface LoadedConfig {
  readonly config: Config;
  /** Things that work but should not stay so, such as a password file that others can read. */
  readonly warnings: readonly string[];
}

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Reads, validates and resolves a configuration file. Every mistake is reported, each with its line, path and reason.
 * @throws UsageError
 */
export function loadConfig(path: string, env: Environment = process.env): LoadedConfig {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(
      `cannot read the configuration file "${path}": ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      'give its path with --config; deploy/foreshard.example.yaml is one to start from',
    );
  }
  return parseConfig(text, { path, env });
}

/** As `loadConfig`, for a text. `path` is for messages, and relative `passwordFile`s start from its folder. */
export function parseConfig(text: string, source: { readonly path: string; readonly env: Environment }): LoadedConfig {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  if (document.errors.length > 0)
    throw invalid(
      source.path,
      document.errors.map(
        (e) => `line ${e.linePos?.[0].line ?? '?'}: ${e.message.split('\n')[0]?.replace(/ at line.*$/, '')}`,
      ),
    );
  const result = configSchema.safeParse(withoutEmpty(document.toJS()) ?? {});
  if (!result.success)
    throw invalid(
      source.path,
      result.error.issues.flatMap((issue) => describe(issue, document, lines)),
    );
  return resolveSecrets(result.data, source);
}

/** The configuration with every default, for a catalog given by URL alone. */
export function defaultConfig(catalogUrl: string): Config {
  const parsed = configSchema.safeParse({ catalog: { url: catalogUrl } });
  if (!parsed.success) throw new UsageError(`the catalog's URL ${parsed.error.issues[0]?.message}`);
  return resolveSecrets(parsed.data, { path: 'foreshard.yaml', env: {} }).config;
}

/** `section:` with nothing under it is the section with its defaults, not a null. */
function withoutEmpty(value: unknown): unknown {
  if (value === null || typeof value !== 'object') return value;
  if (Array.isArray(value)) return value.map(withoutEmpty);
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, inner]) => inner !== null)
      .map(([key, inner]) => [key, withoutEmpty(inner)]),
  );
}

function invalid(path: string, problems: readonly string[]): UsageError {
  return new UsageError(
    `configuration "${path}" is not valid:\n${problems.map((p) => `  ${p}`).join('\n')}`,
    'docs/configuration.md describes every key',
  );
}

function describe(issue: z.core.$ZodIssue, document: Document, lines: LineCounter): string[] {
  if (issue.code === 'unrecognized_keys')
    return issue.keys.map((key) => {
      const known = keysAt(issue.path);
      const guess = nearest(key, known);
      const remedy = guess === null ? `known keys: ${known.join(', ')}` : `did you mean "${guess}"?`;
      return `${lineOf(document, lines, [...issue.path, key])}${dotted([...issue.path, key])}: unknown key; ${remedy}`;
    });
  const where = `${lineOf(document, lines, issue.path)}${dotted(issue.path)}`;
  return [`${where}: ${reason(issue)}`];
}

function reason(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type' && issue.input === undefined && issue.message.endsWith('received undefined'))
    return `is required (${issue.expected})`;
  if (issue.code === 'invalid_key') return 'is not a name that a shard can have (lower-case letters, digits, _ and -)';
  const text = issue.message.replace(/^Invalid (input|option): /, '');
  return text.charAt(0).toLowerCase() + text.slice(1);
}

function dotted(path: readonly PropertyKey[]): string {
  return path.length === 0 ? 'the file' : path.map(String).join('.');
}

/** The line of the key at `path`, or of the nearest parent that is in the file, as `line N: `; empty when there is none. */
function lineOf(document: Document, lines: LineCounter, path: readonly PropertyKey[]): string {
  for (let depth = path.length; depth > 0; depth--) {
    const parent = depth === 1 ? document.contents : document.getIn(path.slice(0, depth - 1), true);
    if (!isMap(parent)) continue;
    const pair = parent.items.find((item) => String(item.key) === String(path[depth - 1]));
    const offset = (pair?.key as { range?: [number, number, number] } | undefined)?.range?.[0];
    if (offset !== undefined) return `line ${lines.linePos(offset).line}: `;
  }
  return '';
}

/** Keys that the schema knows at `path`. */
function keysAt(path: readonly PropertyKey[]): string[] {
  let schema: unknown = configSchema;
  for (const step of path) {
    const inner = unwrap(schema);
    schema = inner?.shape?.[String(step)] ?? inner?.valueType;
  }
  return Object.keys(unwrap(schema)?.shape ?? {});
}

interface SchemaNode {
  readonly shape?: Record<string, unknown>;
  readonly valueType?: unknown;
}

function unwrap(schema: unknown): SchemaNode | undefined {
  let node = schema as { def?: { innerType?: unknown } } | undefined;
  while (node?.def?.innerType !== undefined) node = node.def.innerType as typeof node;
  return node as SchemaNode | undefined;
}

interface SecretReference {
  readonly password?: string | undefined;
  readonly passwordEnv?: string | undefined;
  readonly passwordFile?: string | undefined;
}

function resolveSecrets(file: ConfigFile, source: { readonly path: string; readonly env: Environment }): LoadedConfig {
  const warnings: string[] = [];
  const problems: string[] = [];

  const read = (at: string, reference: SecretReference): string | undefined => {
    if (reference.password !== undefined) return reference.password;
    if (reference.passwordEnv !== undefined) {
      const value = source.env[reference.passwordEnv];
      if (value === undefined || value === '')
        problems.push(`${at}.passwordEnv: the environment variable ${reference.passwordEnv} is not set`);
      return value;
    }
    if (reference.passwordFile === undefined) return undefined;
    const path = resolve(dirname(source.path), reference.passwordFile);
    try {
      if ((statSync(path).mode & 0o077) !== 0)
        warnings.push(`${at}.passwordFile: "${path}" can be read by others; chmod 600 it`);
      // One line end belongs to the file, not to the password.
      const value = readFileSync(path, 'utf8').replace(/\r?\n$/, '');
      if (value === '') problems.push(`${at}.passwordFile: "${path}" is empty`);
      return value;
    } catch (error) {
      problems.push(
        `${at}.passwordFile: cannot read "${path}": ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      );
      return undefined;
    }
  };
  const readAll = (at: string, record: Readonly<Record<string, SecretReference>>): Map<string, string> => {
    const values = new Map<string, string>();
    for (const [name, reference] of Object.entries(record)) {
      const value = read(`${at}.${name}`, reference);
      if (value !== undefined) values.set(name, value);
    }
    return values;
  };

  const { catalog, shards, ...rest } = file;
  const { auth, serverPasswords, listen, tls, ...proxy } = file.proxy;
  const users = new Map<string, { password?: string; verifier?: string }>();
  for (const [name, user] of Object.entries(auth.users)) {
    const password = read(`proxy.auth.users.${name}`, user);
    users.set(name, {
      ...(password === undefined ? {} : { password }),
      ...(user.verifier === undefined ? {} : { verifier: user.verifier }),
    });
  }
  const { enabled, sql, user, timeoutMs } = auth.query;
  const besideConfig = (path: string | null): string | null =>
    path === null ? null : resolve(dirname(source.path), path);
  const passphrase = tls.keyPassphrase && read('proxy.tls.keyPassphrase', tls.keyPassphrase);
  const config: Config = Object.freeze({
    ...rest,
    catalogUrl: withPassword(catalog.url, read('catalog', catalog)),
    proxy: Object.freeze({
      ...proxy,
      listen: listenConfig(listen),
      tls: tlsConfig(tls, dirname(source.path), passphrase),
      auth: Object.freeze({
        ...auth,
        users,
        hbaFile: besideConfig(auth.hbaFile),
        identFile: besideConfig(auth.identFile),
        usersFile: besideConfig(auth.usersFile),
        query: { enabled, sql, user, timeoutMs, password: read('proxy.auth.query', auth.query) ?? null },
      }),
      serverPasswords: readAll('proxy.serverPasswords', serverPasswords),
    }),
    shardPasswords: readAll('shards', shards),
  });
  if (problems.length > 0) throw invalid(source.path, problems);
  return { config, warnings };
}

function listenConfig(file: ConfigFile['proxy']['listen']): ListenConfig {
  const { socketDirectory, socketGroup, socketMode, trustedProxies, ...listen } = file;
  return {
    ...listen,
    trustedProxies: trustedProxies ?? [],
    socketMode: Number.parseInt(socketMode, 8),
    ...(socketDirectory === null ? {} : { socketDirectory }),
    ...(socketGroup === null ? {} : { socketGroup }),
  };
}

/** Paths are relative to the folder of the configuration file, as those of passwords are. */
function tlsConfig(
  file: ConfigFile['proxy']['tls'],
  folder: string,
  keyPassphrase: string | undefined,
): TlsOptions | undefined {
  const { mode, certFile, keyFile, caFile, minVersion, ciphers } = file;
  if (mode === 'off' || certFile === null || keyFile === null) return undefined;
  return {
    mode,
    certFile: resolve(folder, certFile),
    keyFile: resolve(folder, keyFile),
    keyPassphrase,
    caFile: caFile === null ? undefined : resolve(folder, caFile),
    minVersion,
    ciphers: ciphers ?? undefined,
  };
}
