import { chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { findFreePort } from '../../deploy/embedded/ports.js';
import { type HeldProcess, type SpawnOptions, Supervisor } from '../../deploy/embedded/supervisor.js';
import { serverUser } from '../../deploy/embedded/unprivileged.js';
import type { Peer } from '../peers/peer.js';
import { USER, withServer } from './data.js';
import { ROOT } from './machine.js';
import { processTree } from './process-figures.js';
import { findProgram, versionOf } from './programs.js';

/** Something that the load can be sent to. */
export interface Target {
  readonly peer: string;
  readonly port: number;
  readonly database: string;
  /** Whether it takes named statements of many clients. */
  readonly prepared: boolean;
  /** For the tables: why not, and what it is. */
  readonly version: string;
  /** Its processes; none for the server itself, which all have behind them. */
  pids(): number[];
  stop(): Promise<void>;
}

/** What a pooler is given. */
export interface Behind {
  readonly folder: string;
  readonly database: string;
  readonly password: string;
  readonly poolSize: number;
  /** Of Foreshard. */
  readonly lanes: 'auto' | 'single' | 'off';
}

/** More than any part connects. */
const MAX_CLIENTS = 20_000;
const START_TIMEOUT_MS = 60_000;
const POLL_MS = 50;

/** Starts a pooler of another house, as an unprivileged user when we are root; null when it is not installed. */
export async function startPeer(peer: Peer, behind: Behind, serverPort: number): Promise<Target | null> {
  const program = findProgram(peer.program);
  if (program === null) return null;
  const version = versionOf(program, peer.versionArgs);
  const runAs = serverUser();
  const folder = join(behind.folder, `${peer.name}-${nextFolder++}`);
  mkdirSync(folder, { mode: 0o700 });
  const port = await findFreePort();
  const settings = {
    port,
    otherPort: await findFreePort(),
    serverPort,
    user: USER,
    maxClients: MAX_CLIENTS,
    version,
    ...behind,
    folder,
  };
  const own = (path: string) => {
    if (runAs !== undefined) chownSync(path, runAs.uid, runAs.gid);
  };
  own(folder);
  for (const [name, text] of Object.entries(peer.files(settings))) {
    writeFileSync(join(folder, name), text, { mode: 0o600 });
    own(join(folder, name));
  }
  const held = await spawnHeld({
    file: program,
    args: peer.args(settings),
    cwd: folder,
    log: join(behind.folder, `${peer.name}-${port}.log`),
    stopSignals: peer.stopSignals,
    ...(runAs === undefined ? {} : { uid: runAs.uid, gid: runAs.gid }),
  });
  const url = `postgresql://${USER}:${encodeURIComponent(behind.password)}@127.0.0.1:${port}/${behind.database}`;
  const answers = () =>
    withServer(url, (client) => client.query('SELECT 1')).then(
      () => true,
      (error: unknown) => {
        held.lastError = error;
        return false;
      },
    );
  await held.until(answers);
  return {
    peer: peer.name,
    port,
    database: behind.database,
    prepared: peer.hasPreparedStatements(version),
    version,
    pids: () => processTree(held.pid),
    stop: () => held.stop(),
  };
}

/** `foreshard serve` as a user starts it, with a configuration file. */
export async function startForeshard(
  name: string,
  behind: Behind & { readonly catalogUrl: string; readonly workers?: number },
): Promise<Target> {
  const file = join(behind.folder, `${name}-${nextFolder++}.yaml`);
  const log = `${file}.log`;
  // JSON is YAML.
  const configuration = {
    catalog: { url: behind.catalogUrl },
    database: behind.database,
    proxy: {
      name,
      workers: behind.workers ?? 1,
      listen: { port: 0 },
      auth: { method: 'trust' },
      serverPasswords: { [USER]: { password: behind.password } },
      pool: { size: behind.poolSize, lanes: behind.lanes },
      limits: { maxClients: MAX_CLIENTS },
    },
  };
  writeFileSync(file, JSON.stringify(configuration), { mode: 0o600 });
  const held = await spawnHeld({
    file: process.execPath,
    args: [join(ROOT, 'dist/cli/main.js'), 'serve', '--only', 'proxy', '--config', file],
    cwd: behind.folder,
    log,
    stopSignals: ['SIGTERM', 'SIGKILL'],
  });
  let port = 0;
  await held.until(async () => {
    const ready = readFileSync(log, 'utf8')
      .split('\n')
      .find((line) => line.includes('"msg":"ready"'));
    if (ready === undefined) return false;
    port = Number(/:(\d+)(?=,|$)/.exec((JSON.parse(ready) as { listen: string }).listen)?.[1]);
    return true;
  });
  return {
    peer: name,
    port,
    database: behind.database,
    prepared: true,
    version: '',
    pids: () => processTree(held.pid),
    stop: () => held.stop(),
  };
}

let nextFolder = 1;

/** A process that ends with us, however we end, and that can be waited for. */
interface Held {
  readonly pid: number;
  lastError: unknown;
  /** Waits until the process is ready. @throws Error with the end of its log when it ends or takes too long instead */
  until(ready: () => Promise<boolean>): Promise<void>;
  stop(): Promise<void>;
}

async function spawnHeld(options: Omit<SpawnOptions, 'env'>): Promise<Held> {
  const env = {
    PATH: process.env.PATH ?? '',
    LC_ALL: 'C',
    ...(process.env.LD_LIBRARY_PATH === undefined ? {} : { LD_LIBRARY_PATH: process.env.LD_LIBRARY_PATH }),
  };
  const process_: HeldProcess = await Supervisor.shared().spawn({ ...options, env });
  const held: Held = {
    pid: process_.pid,
    lastError: undefined,
    async until(ready) {
      const deadline = performance.now() + START_TIMEOUT_MS;
      while (!(await ready())) {
        if (process_.exit === undefined && performance.now() < deadline) {
          await delay(POLL_MS);
          continue;
        }
        const why = process_.exit === undefined ? 'does not answer' : 'has ended';
        const log = existsSync(options.log) ? readFileSync(options.log, 'utf8').trim().slice(-1500) : '';
        const last = held.lastError instanceof Error ? `; last: ${held.lastError.message}` : '';
        await held.stop();
        throw new Error(`${options.file} ${why}${last}\n${log}`);
      }
    },
    async stop() {
      for (const signal of options.stopSignals) {
        if (process_.exit !== undefined) return;
        await process_.signal(signal);
        await Promise.race([process_.wait(), delay(STOP_PATIENCE_MS, undefined, { ref: false })]);
      }
    },
  };
  return held;
}

/** How long a process has to obey a signal before the next, harder one. */
const STOP_PATIENCE_MS = 10_000;
