/** Settings that a sharded cluster needs, and nothing else; everything not here is PostgreSQL's default. */
const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  // Socket paths are limited to about 100 bytes and need a directory that two users can reach; loopback does without.
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '64MB',
  password_encryption: 'scram-sha-256',
  wal_level: 'logical',
  max_replication_slots: '64',
  max_wal_senders: '64',
  max_logical_replication_workers: '32',
  max_sync_workers_per_subscription: '4',
  max_worker_processes: '48',
  // At the default of five seconds a small move spends all its time waiting for its workers to start.
  wal_retrieve_retry_interval: '200ms',
  // Two-phase commit is how a transaction on several shards commits.
  max_prepared_transactions: '200',
  // What initdb would have chosen, except for the time zone, which is the same everywhere.
  default_text_search_config: 'pg_catalog.english',
  timezone: 'UTC',
  log_timezone: 'UTC',
};

/** Settings that servers before 18 do not know, and need not: there max_replication_slots speaks for both. */
const SETTINGS_SINCE_18: Readonly<Record<string, string>> = { max_active_replication_origins: '64' };

/** postgresql.conf of one server. */
export function renderPostgresqlConf(majorVersion: number, settings: Readonly<Record<string, string>>): string {
  const defaults = majorVersion >= 18 ? { ...DEFAULT_SETTINGS, ...SETTINGS_SINCE_18 } : DEFAULT_SETTINGS;
  const lines = Object.entries({ ...defaults, ...settings }).map(([name, value]) => `${name} = ${quote(value)}`);
  return `# Written at each start. To change a setting for good, use ALTER SYSTEM.\n${lines.join('\n')}\n`;
}

/** pg_hba.conf of one server: loopback only, always with a password. */
export function renderPgHbaConf(): string {
  return ['127.0.0.1/32', '::1/128']
    .flatMap((address) => [`host all all ${address} scram-sha-256`, `host replication all ${address} scram-sha-256`])
    .concat('')
    .join('\n');
}

/** A value as postgresql.conf reads it: in quotes, where quotes are doubled and a backslash escapes. */
function quote(value: string): string {
  return `'${value.replaceAll('\\', '\\\\').replaceAll("'", "''").replaceAll('\n', '\\n')}'`;
}
