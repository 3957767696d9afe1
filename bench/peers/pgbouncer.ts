import { isAtLeast } from '../suite/programs.js';
import type { Peer } from './peer.js';

/** Prepared statements in transaction mode came with it. */
const PREPARED_SINCE = '1.21';

/** A value of a connection string in [databases]. */
const quote = (value: string) => `'${value.replaceAll("'", "''")}'`;

export const pgbouncer: Peer = {
  name: 'pgbouncer',
  program: 'pgbouncer',
  versionArgs: ['--version'],
  files: (s) => ({
    'pgbouncer.ini': `[databases]
${s.database} = host=127.0.0.1 port=${s.serverPort} dbname=${s.database} user=${s.user} password=${quote(s.password)}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${s.port}
unix_socket_dir =
auth_type = trust
auth_file = users.txt
pool_mode = transaction
default_pool_size = ${s.poolSize}
max_client_conn = ${s.maxClients}
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
${isAtLeast(s.version, PREPARED_SINCE) ? 'max_prepared_statements = 200\n' : ''}`,
    'users.txt': `"${s.user}" ""\n`,
  }),
  args: () => ['pgbouncer.ini'],
  hasPreparedStatements: (version) => isAtLeast(version, PREPARED_SINCE),
  stopSignals: ['SIGTERM', 'SIGKILL'],
};
