import { isAtLeast } from '../suite/programs.js';
import type { Peer } from './peer.js';

/** Untried: no package of it was at hand. */
export const odyssey: Peer = {
  name: 'odyssey',
  program: 'odyssey',
  versionArgs: ['--version'],
  files: (s) => ({
    'odyssey.conf': `daemonize no
log_to_stdout yes
log_session no
log_query no
log_stats no
workers 1
client_max ${s.maxClients}
listen {
  host "127.0.0.1"
  port ${s.port}
}
storage "server" {
  type "remote"
  host "127.0.0.1"
  port ${s.serverPort}
}
database "${s.database}" {
  user "${s.user}" {
    authentication "none"
    storage "server"
    storage_user "${s.user}"
    storage_password "${s.password}"
    pool "transaction"
    pool_size ${s.poolSize}
    pool_reserve_prepared_statement yes
    pool_discard no
  }
}
`,
  }),
  args: () => ['odyssey.conf'],
  hasPreparedStatements: (version) => isAtLeast(version, '1.3'),
  stopSignals: ['SIGTERM', 'SIGKILL'],
};
