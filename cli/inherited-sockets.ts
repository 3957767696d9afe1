/** SD_LISTEN_FDS_START in systemd's sd-daemon.h. */
const FIRST = 3;

/**
 * File descriptors of the listening sockets that a service manager has opened for the process `pid`, by the protocol of
 * sd_listen_fds(3). Takes the variables that say so out of `env`: they are not for children.
 */
export function inheritedSockets(env: NodeJS.ProcessEnv, pid: number): readonly number[] {
  const count = env.LISTEN_PID === String(pid) ? Number(env.LISTEN_FDS) : 0;
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete env[name];
  return Number.isInteger(count) && count > 0 ? Array.from({ length: count }, (_, i) => FIRST + i) : [];
}
