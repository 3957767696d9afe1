import type { ConfigEntry } from '../proxy/admin/process-state.js';
import { redactUrl } from '../topology/connection.js';
import { type Config, defaultConfig } from './config.js';
import { isReloaded } from './processes/changes.js';

/** Parts of keys under which secrets are: of these, only the names are shown. */
const SECRET = /^(catalogUrl|users|serverPasswords|shardPasswords)$|password|passphrase|verifier|secret/i;

/** The configuration for SHOW CONFIG, key by key, with the defaults beside it. Never a secret: of users, only names. */
export function configEntries(config: Config): ConfigEntry[] {
  const defaults = new Map(flatten(defaultConfig('postgresql://localhost/foreshard')));
  const entries: ConfigEntry[] = [
    { key: 'catalog.url', value: redactUrl(config.catalogUrl), default: null, changeable: false },
  ];
  for (const [key, value] of flatten(config))
    entries.push({
      key,
      value,
      default: defaults.get(key) ?? null,
      changeable: isReloaded(key),
    });
  return entries.sort((a, b) => (a.key < b.key ? -1 : 1));
}

function flatten(value: object, path = ''): [string, string | null][] {
  return Object.entries(value).flatMap(([name, inner]: [string, unknown]): [string, string | null][] => {
    const key = path === '' ? name : `${path}.${name}`;
    if (key === 'catalogUrl') return [];
    // Names of administrators are a list of texts; names of users with passwords are keys.
    if (SECRET.test(name) && !key.startsWith('proxy.admin.')) return [[key, namesOf(inner)]];
    if (inner === null || inner === undefined) return [[key, null]];
    if (Array.isArray(inner))
      return [[key, inner.every((item) => typeof item !== 'object') ? inner.join(', ') : `${inner.length} entries`]];
    if (inner instanceof Map) return [[key, namesOf(inner)]];
    if (typeof inner === 'object') return flatten(inner, key);
    return [[key, String(inner)]];
  });
}

/** Names that have a secret, never the secret. */
function namesOf(value: unknown): string | null {
  if (value === null || value === undefined) return null;
  if (value instanceof Map) return [...value.keys()].join(', ');
  if (typeof value === 'object') return Object.keys(value).join(', ');
  return '(set)';
}
