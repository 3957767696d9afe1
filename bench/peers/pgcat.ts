import type { Peer } from './peer.js';

/** Untried: no package of it was at hand. */
export const pgcat: Peer = {
  name: 'pgcat',
  program: 'pgcat',
  versionArgs: ['--version'],
  files: (s) => ({
    'pgcat.toml': `[general]
host = "127.0.0.1"
port = ${s.port}
enable_prometheus_exporter = false
worker_threads = 1
prepared_statements_cache_size = 500
admin_username = "admin"
admin_password = "${s.password}"

[pools.${s.database}]
pool_mode = "transaction"
query_parser_enabled = false
prepared_statements_cache_size = 500

[pools.${s.database}.users.0]
username = "${s.user}"
password = "${s.password}"
pool_size = ${s.poolSize}

[pools.${s.database}.shards.0]
servers = [["127.0.0.1", ${s.serverPort}, "primary"]]
database = "${s.database}"
`,
  }),
  args: () => ['pgcat.toml'],
  hasPreparedStatements: () => true,
  stopSignals: ['SIGTERM', 'SIGKILL'],
};
