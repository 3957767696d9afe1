import { describe, expect, it } from 'vitest';
import { parseConfig } from '../../cli/config.js';
import { configEntries } from '../../cli/config-entries.js';

const FILE = `
catalog: { url: "postgresql://me:catalog-pw@db:5432/foreshard" }
proxy:
  auth: { users: { app: { password: user-pw }, ops: { password: ops-pw } } }
  serverPasswords: { app: { password: server-pw } }
  admin: { users: [ops] }
  pool: { size: 7 }
shards: { s1: { password: shard-pw } }
`;

describe('configuration entries', () => {
  const entries = new Map(configEntries(parseConfig(FILE, { path: 'f.yaml', env: {} }).config).map((e) => [e.key, e]));

  it('show values beside their defaults, and whether a reload changes them', () => {
    expect(entries.get('proxy.pool.size')).toEqual({
      key: 'proxy.pool.size',
      value: '7',
      default: '20',
      changeable: true,
    });
    expect(entries.get('proxy.listen.port')).toMatchObject({ value: '6432', changeable: false });
    expect(entries.get('proxy.admin.users')?.value).toBe('ops');
    expect(entries.get('planner.intervalSeconds')?.value).toBe('300');
  });

  it('show the names of secrets, and none of them', () => {
    expect(entries.get('proxy.auth.users')?.value).toBe('app, ops');
    expect(entries.get('proxy.serverPasswords')?.value).toBe('app');
    expect(entries.get('shardPasswords')?.value).toBe('s1');
    expect(entries.get('catalog.url')?.value).toBe('postgresql://me@db:5432/foreshard');
    expect(JSON.stringify([...entries.values()])).not.toMatch(/-pw/);
  });
});
