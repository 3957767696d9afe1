import type { Peer } from './peer.js';

/** Untried: no package of it was at hand. */
export const pgdog: Peer = {
  name: 'pgdog',
  program: 'pgdog',
  versionArgs: ['--version'],
  files: (s) => ({
    'pgdog.toml': `[general]
host = "127.0.0.1"
port = ${s.port}
workers = 1
default_pool_size = ${s.poolSize}
pooler_mode = "transaction"
auth_type = "trust"
prepared_statements = "extended"

[[databases]]
name = "${s.database}"
host = "127.0.0.1"
port = ${s.serverPort}
database_name = "${s.database}"
`,
    'users.toml': `[[users]]
name = "${s.user}"
database = "${s.database}"
password = "${s.password}"
`,
  }),
  args: () => ['--config', 'pgdog.toml', '--users', 'users.toml'],
  hasPreparedStatements: () => true,
  stopSignals: ['SIGTERM', 'SIGKILL'],
};
