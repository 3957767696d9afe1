import type { Peer } from './peer.js';

/**
 * Pgpool-II gives each client a process and a server connection of its own: there is no transaction pooling, so that `poolSize` does
 * not bind it. It is measured as what it is, one process for each client that the benchmarks need.
 */
export const pgpool: Peer = {
  name: 'pgpool',
  program: 'pgpool',
  versionArgs: ['--version'],
  files: (s) => ({
    'pgpool.conf': `backend_clustering_mode = 'raw'
listen_addresses = '127.0.0.1'
port = ${s.port}
socket_dir = '${s.folder}'
pcp_listen_addresses = ''
pcp_socket_dir = '${s.folder}'
pcp_port = ${s.otherPort}
backend_hostname0 = '127.0.0.1'
backend_port0 = ${s.serverPort}
num_init_children = ${PROCESSES}
max_pool = 1
enable_pool_hba = on
pool_passwd = 'pool_passwd'
logdir = '${s.folder}'
pid_file_name = '${s.folder}/pgpool.pid'
memory_cache_enabled = off
health_check_period = 0
sr_check_period = 0
`,
    'pool_hba.conf': 'host all all 127.0.0.1/32 trust\n',
    pool_passwd: `${s.user}:TEXT${s.password}\n`,
    'pcp.conf': '',
  }),
  args: (s) => ['-n', '-f', `${s.folder}/pgpool.conf`, '-a', `${s.folder}/pool_hba.conf`, '-F', `${s.folder}/pcp.conf`],
  hasPreparedStatements: () => true,
  stopSignals: ['SIGINT', 'SIGQUIT', 'SIGKILL'],
};

/** More than the largest number of clients of the cells. */
const PROCESSES = 270;
