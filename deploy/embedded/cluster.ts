import { chmodSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Binaries, binariesIn, findBinaries } from './binaries.js';
import { type ClusterHome, findUser, isReady, makeDirectory, openHome, sizeOf } from './data-directory.js';
import { EmbeddedError } from './embedded-error.js';
import { findFreePort } from './ports.js';
import { renderPgHbaConf, renderPostgresqlConf } from './server-config.js';
import { type HeldProcess, Supervisor } from './supervisor.js';
import { reachableTemporaryBase } from './temporary-base.js';
import { describeSpawnError, type RunAs, serverUser } from './unprivileged.js';

/** How to start an embedded server. */
export interface ClusterOptions {
  /** Where it lives, for good. Default: a temporary directory, removed when it stops. */
  readonly dir?: string;
  /** Port on 127.0.0.1. Default: a free one. */
  readonly port?: number;
  /** Directory of the server's programs, of another installation. Default: those from npm. */
  readonly binDir?: string;
  /** Settings of postgresql.conf, over our defaults and under ALTER SYSTEM. */
  readonly settings?: Readonly<Record<string, string>>;
  /** How long the server may take until it accepts connections, recovery included. Default: 120,000. */
  readonly startTimeoutMs?: number;
  /** Receives what a person should know, such as data that is kept elsewhere. Default: standard error. */
  readonly log?: (message: string) => void;
}

const DEFAULT_START_TIMEOUT_MS = 120_000;
const READY_POLL_MS = 10;

/** How long a stop may take before it becomes an immediate one: a stuck subscriber holds up a fast stop for ever. */
const FAST_STOP_PATIENCE_MS = 10_000;

/** PostgreSQL kills its own children five seconds into an immediate stop. */
const IMMEDIATE_STOP_PATIENCE_MS = 10_000;

/** How often another port is tried when the free one was taken before the server got it. */
const PORT_ATTEMPTS = 20;

/** How long a restart waits for its port, which somebody may have used for a moment while the server was down. */
const SAME_PORT_PATIENCE_MS = 10_000;

/** One PostgreSQL server of our own. It never outlives this process: see supervisor.mjs. */
export class EmbeddedCluster {
  readonly port: number;
  /** The directory it was started in; the data may be elsewhere, see `dataDir`. */
  readonly dir: string;
  /** PGDATA. */
  readonly dataDir: string;
  /** Password of the superuser `postgres`. */
  readonly password: string;

  readonly #launcher: Launcher;
  readonly #temporary: boolean;
  #server: HeldProcess;
  #removed = false;
  /** The operation that the next one waits for. */
  #turn: Promise<void> = Promise.resolve();

  private constructor(launcher: Launcher, port: number, server: HeldProcess, temporary: boolean) {
    this.port = port;
    this.dir = launcher.dir;
    this.dataDir = launcher.home.data;
    this.password = launcher.home.password;
    this.#launcher = launcher;
    this.#server = server;
    this.#temporary = temporary;
  }

  /**
   * Ends what this process keeps for its clusters, and waits until it is gone: servers that still run, the copy of PostgreSQL
   * that root's servers run from. Without it the same happens by itself, a moment after the process has ended.
   */
  static async endAll(): Promise<void> {
    await Supervisor.end();
  }

  /**
   * Starts a server and waits until it accepts connections.
   * @throws {EmbeddedError} when it cannot be started; then nothing of it is left
   */
  static async start(options: ClusterOptions = {}): Promise<EmbeddedCluster> {
    const supervisor = Supervisor.shared();
    const runAs = serverUser();
    const temporary = options.dir === undefined;
    const programs = (user: RunAs | undefined) =>
      options.binDir === undefined ? findBinaries(supervisor, user) : binariesIn(options.binDir, user);
    const dir =
      options.dir === undefined
        ? await supervisor.makeTemporary(reachableTemporaryBase(runAs), 'foreshard-', 0o711)
        : makeDirectory(options.dir);
    try {
      const home = await openHome(dir, {
        supervisor,
        runAs,
        sync: !temporary,
        findBinaries: programs,
        log: options.log ?? ((message) => process.stderr.write(`foreshard: ${message}\n`)),
      });
      const binaries = await programs(home.runAs);
      const launcher = new Launcher(supervisor, binaries, dir, home, options);
      const { server, port } = await launcher.launchOnSomePort(options.port);
      return new EmbeddedCluster(launcher, port, server, temporary);
    } catch (error) {
      if (temporary) await supervisor.remove(dir);
      throw error;
    }
  }

  /** Process id of the postmaster. */
  get pid(): number {
    return this.#server.pid;
  }

  /** False once the server has ended, for whatever reason. */
  get running(): boolean {
    return this.#server.exit === undefined;
  }

  /** Resolves when the server that runs now has ended, for whatever reason. */
  async ended(): Promise<void> {
    await this.#server.wait();
  }

  /** What the server has logged since it was last started. */
  log(): string {
    return readFileSync(this.#launcher.logFile, 'utf8');
  }

  /** A URL that psql and drivers take, with the superuser's password (give other users the same, or put in their own). */
  url(database = 'postgres', user = 'postgres'): string {
    const part = encodeURIComponent;
    return `postgresql://${part(user)}:${part(this.password)}@127.0.0.1:${this.port}/${part(database)}`;
  }

  /** Fast shutdown; a temporary directory is removed. Does no harm when the server has died or was stopped before. */
  stop(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#halt();
      if (!this.#temporary || this.#removed) return;
      await this.#launcher.supervisor.remove(this.dir);
      this.#removed = true;
    });
  }

  /** Immediate shutdown: the server ends at once, without a checkpoint, and recovers at its next start. */
  crash(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#server.signal('SIGQUIT');
      await this.#server.wait();
    });
  }

  /** Stops the server if it runs, and starts it on the same port. */
  restart(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#removed) throw new EmbeddedError('the cluster was stopped and its temporary directory removed');
      await this.#halt();
      this.#server = await this.#launcher.launchOnSamePort(this.port);
    });
  }

  #inTurn(operation: () => Promise<void>): Promise<void> {
    const run = this.#turn.then(operation);
    // A failure is its caller's to handle; the next operation starts anyway.
    this.#turn = run.catch(() => undefined);
    return run;
  }

  async #halt(): Promise<void> {
    const ended = this.#server.wait();
    for (const [signal, patienceMs] of [
      ['SIGINT', FAST_STOP_PATIENCE_MS],
      ['SIGQUIT', IMMEDIATE_STOP_PATIENCE_MS],
      ['SIGKILL', undefined],
    ] as const) {
      await this.#server.signal(signal);
      if (patienceMs === undefined) break;
      const timer = new AbortController();
      const late = delay(patienceMs, true, { signal: timer.signal }).catch(() => true);
      const stillRuns = await Promise.race([ended.then(() => false), late]);
      timer.abort();
      if (!stillRuns) return;
    }
    await ended;
  }
}

/** Starts the server of one cluster, now and after each stop. */
class Launcher {
  readonly logFile: string;
  readonly #startTimeoutMs: number;

  constructor(
    readonly supervisor: Supervisor,
    readonly binaries: Binaries,
    readonly dir: string,
    readonly home: ClusterHome,
    options: ClusterOptions,
  ) {
    this.logFile = join(dir, 'server.log');
    this.#startTimeoutMs = options.startTimeoutMs ?? DEFAULT_START_TIMEOUT_MS;
    // Beside the data and not in it: what is in it belongs to the server's user, and root does not write through that.
    writePublic(
      join(home.home, 'postgresql.conf'),
      renderPostgresqlConf(binaries.majorVersion, options.settings ?? {}),
    );
    writePublic(join(home.home, 'pg_hba.conf'), renderPgHbaConf());
  }

  async launchOnSomePort(wanted: number | undefined): Promise<{ server: HeldProcess; port: number }> {
    for (let attempt = 0; attempt < PORT_ATTEMPTS; attempt++) {
      const port = wanted ?? (await findFreePort());
      const server = await this.#launch(port);
      if (server !== undefined) return { server, port };
      if (wanted !== undefined) throw portTaken(wanted);
    }
    throw new EmbeddedError(`found no free port on 127.0.0.1 in ${PORT_ATTEMPTS} attempts`);
  }

  async launchOnSamePort(port: number): Promise<HeldProcess> {
    const deadline = performance.now() + SAME_PORT_PATIENCE_MS;
    for (;;) {
      const server = await this.#launch(port);
      if (server !== undefined) return server;
      if (performance.now() > deadline) throw portTaken(port);
      await delay(READY_POLL_MS * 10);
    }
  }

  /** Starts the server; undefined when the port is taken, which only the server itself can tell without a race. */
  async #launch(port: number): Promise<HeldProcess | undefined> {
    const { data, home, runAs } = this.home;
    const user = findUser(data);
    if (user !== undefined) throw inUse(data, user);
    if (existsSync(this.logFile)) renameSync(this.logFile, `${this.logFile}.1`);
    const args = ['-D', data, '-p', String(port)];
    args.push('-c', `config_file=${join(home, 'postgresql.conf')}`, '-c', `hba_file=${join(home, 'pg_hba.conf')}`);
    const server = await this.supervisor
      .spawn({
        file: this.binaries.postgres,
        args,
        cwd: data,
        env: { LC_ALL: 'C', PATH: process.env.PATH ?? '' },
        ...(runAs === undefined ? {} : { uid: runAs.uid, gid: runAs.gid }),
        log: this.logFile,
        stopSignals: ['SIGINT', 'SIGQUIT', 'SIGKILL'],
      })
      .catch((error: unknown) => {
        throw describeSpawnError(error, runAs);
      });
    return (await this.#untilReady(server)) ? server : undefined;
  }

  async #untilReady(server: HeldProcess): Promise<boolean> {
    const deadline = performance.now() + this.#startTimeoutMs;
    while (!isReady(this.home.data, server.pid)) {
      if (server.exit !== undefined) {
        const log = sizeOf(this.logFile) === 0 ? '' : readFileSync(this.logFile, 'utf8');
        if (/Address already in use/.test(log)) return false;
        // Another start of the same directory came between our look and the server's own, which is what decides.
        const user = findUser(this.home.data);
        if (user !== undefined) throw inUse(this.home.data, user);
        throw new EmbeddedError('the PostgreSQL server did not start', { detail: log.trim().slice(-2000) });
      }
      if (performance.now() > deadline) {
        await server.signal('SIGQUIT');
        await server.wait();
        throw new EmbeddedError(`the PostgreSQL server did not accept connections within ${this.#startTimeoutMs} ms`, {
          detail: readFileSync(this.logFile, 'utf8').trim().slice(-2000),
        });
      }
      await delay(READY_POLL_MS);
    }
    return true;
  }
}

function inUse(data: string, user: number): EmbeddedError {
  return new EmbeddedError(`the data in "${data}" is in use by another server (process ${user})`, {
    hint: 'stop that server first, or use another directory',
  });
}

function portTaken(port: number): EmbeddedError {
  return new EmbeddedError(`port ${port} of 127.0.0.1 is in use`, {
    hint: 'choose another port, or none for a free one',
  });
}

function writePublic(file: string, text: string): void {
  writeFileSync(file, text);
  chmodSync(file, 0o644);
}
