import {
  chmodSync,
  chownSync,
  existsSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { ForeshardError } from '../../topology/errors.js';

/** UNIXSOCK_PATH_BUFLEN less the final zero byte on Linux; macOS has four bytes less. */
const MAX_PATH_BYTES = 107;

export interface SocketFileOptions {
  readonly directory: string;
  readonly port: number;
  /** Permissions of the socket. */
  readonly mode: number;
  /** Name or number of the group that owns it; null: the process's own. */
  readonly group: string | null;
}

/**
 * The file of a Unix socket, `.s.PGSQL.PORT` as libpq looks for it, with a lock file beside it as PostgreSQL has: it holds the
 * owner's process id, so that what a dead process has left is replaced and a living one is not.
 *
 * `bindPath` is bound and then moved to `path`: a server's end removes the name that it bound, and a successor on the same
 * port may have put its own socket in our place by then.
 */
export class SocketFile {
  readonly path: string;
  readonly bindPath: string;
  readonly #lock: string;
  readonly #options: SocketFileOptions;

  /** @throws ForeshardError when another process has the socket, or the directory cannot be used */
  static claim(options: SocketFileOptions): SocketFile {
    const file = new SocketFile(options);
    const bytes = Buffer.byteLength(file.bindPath);
    if (bytes > MAX_PATH_BYTES)
      throw new ForeshardError(
        '58030',
        `Unix-domain socket path "${file.bindPath}" is too long (maximum ${MAX_PATH_BYTES} bytes)`,
        {
          hint: 'Choose a shorter proxy.listen.socketDirectory.',
        },
      );
    file.#takeLock();
    return file;
  }

  private constructor(options: SocketFileOptions) {
    this.#options = options;
    this.path = join(resolve(options.directory), `.s.PGSQL.${options.port}`);
    this.bindPath = `${this.path}.${process.pid}`;
    this.#lock = `${this.path}.lock`;
  }

  /** To be called once `bindPath` is being listened on: clients find it from now on. */
  publish(): void {
    const { mode, group } = this.#options;
    try {
      if (group !== null) chownSync(this.bindPath, -1, groupId(group));
      chmodSync(this.bindPath, mode);
      renameSync(this.bindPath, this.path);
    } catch (error) {
      throw socketError(`could not set up Unix socket "${this.path}"`, error);
    }
  }

  /** Removes socket and lock, if they are still ours. */
  release(): void {
    if (lockHolder(this.#lock) !== process.pid) return;
    for (const path of [this.path, this.#lock])
      try {
        unlinkSync(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
  }

  #takeLock(): void {
    // Process id, "data directory", start time, port, socket directory: what PostgreSQL writes there.
    const { directory, port } = this.#options;
    const content = `${process.pid}\n${process.cwd()}\n${Math.floor(Date.now() / 1000)}\n${port}\n${resolve(directory)}\n`;
    for (let attempt = 0; ; attempt++) {
      try {
        writeFileSync(this.#lock, content, { flag: 'wx', mode: 0o600 });
        break;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attempt === 100)
          throw socketError(`could not create lock file "${this.#lock}"`, error);
      }
      const holder = lockHolder(this.#lock);
      if (holder !== null && isAnother(holder))
        throw new ForeshardError('58030', `lock file "${this.#lock}" already exists`, {
          hint: `Is another process (PID ${holder}) using socket file "${this.path}"?`,
        });
      if (existsSync(this.#lock)) unlinkSync(this.#lock);
    }
    // The socket that a dead process left: `publish` puts ours in its place.
    if (existsSync(this.bindPath)) unlinkSync(this.bindPath);
    if (existsSync(this.path) && !statSync(this.path).isSocket()) {
      unlinkSync(this.#lock);
      throw new ForeshardError('58030', `"${this.path}" exists and is not a socket`, { hint: 'Move it away.' });
    }
  }
}

/** The process that a lock file names; null when there is none, or it names none. */
function lockHolder(path: string): number | null {
  try {
    const pid = Math.abs(Number.parseInt(readFileSync(path, 'latin1'), 10));
    return pid > 0 ? pid : null;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw socketError(`could not read lock file "${path}"`, error);
  }
}

/** Whether a process with this id lives that is neither we nor our parent: these wrote it before a restart (as in a container). */
function isAnother(pid: number): boolean {
  if (pid === process.pid || pid === process.ppid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

function groupId(group: string): number {
  if (/^\d+$/.test(group)) return Number(group);
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${group}:`));
  if (line === undefined) throw new Error(`group "${group}" does not exist`);
  return Number(line.split(':')[2]);
}

function socketError(what: string, cause: unknown): ForeshardError {
  return new ForeshardError('58030', `${what}: ${cause instanceof Error ? cause.message : String(cause)}`, {
    hint: 'Check proxy.listen.socketDirectory, its permissions, and proxy.listen.socketGroup.',
    cause,
  });
}
