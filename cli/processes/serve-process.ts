import type { Socket } from 'node:net';
import type { Holds } from '../../proxy/admin/siblings.js';
import type { ListenOptions } from '../../proxy/listener/listener.js';
import type { Config } from '../config.js';
import { failureOf } from '../failure.js';
import { createLogger } from '../logger.js';
import { warn } from '../output.js';
import { readConfig } from '../read-config.js';
import type { Services } from '../serve.js';
import { applied, changesBetween } from './changes.js';
import type { ServeSettings, ToChild } from './messages.js';
import { type FromChild, type Plan, PROTOCOL, type ReloadOutcome, type Role } from './messages.js';
import { ParentLink } from './parent-link.js';
import { shareOf } from './share.js';

/** Ending takes 5 s for open transactions and what the catalog takes; a parent that is gone cannot end who hangs. */
const ORPHAN_MS = 15_000;

/**
 * Runs one of the processes of `foreshard serve` for its parent, until that says so or is gone. Signals are the parent's to
 * act on: they may come to the whole group. Resolves at the end.
 */
export function runServeProcess(): Promise<void> {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR2'] as const) process.on(signal, () => undefined);
  return new Promise((resolve) => {
    const serve = new ServeProcess(tell, resolve);
    process.on('message', (message: ToChild, socket) => serve.receive(message, socket as Socket | undefined));
    process.on('disconnect', () => {
      setTimeout(() => process.exit(1), ORPHAN_MS).unref();
      void serve.stop('now', 0);
    });
  });
}

function tell(message: FromChild): void {
  if (process.connected) process.send?.(message, undefined, {}, () => undefined);
}

class ServeProcess {
  readonly #tell: (message: FromChild) => void;
  readonly #link: ParentLink;
  readonly #over: () => void;
  #settings: ServeSettings = {};
  #role: Role = { kind: 'others', parts: [] };
  #workers = 1;
  /** As in the file. */
  #config: Config | null = null;
  #services: Services | null = null;
  /** What is to be paused and disabled from the start. */
  #holds: Holds | null = null;
  #stopping = false;
  /** Clients whose going has yet to be told. */
  #gone = 0;

  constructor(tell: (message: FromChild) => void, over: () => void) {
    this.#tell = tell;
    this.#over = over;
    this.#link = new ParentLink(tell);
  }

  receive(message: ToChild, socket: Socket | undefined): void {
    switch (message.kind) {
      case 'start':
        this.#settings = message.settings;
        this.#role = message.role;
        this.#begin();
        return;
      case 'go':
        this.#holds = message.shared.holds;
        void this.#start(message.listen, message.workers, Buffer.from(message.shared.ticketSecret));
        return;
      case 'hold':
        this.#holds = message.holds;
        this.#services?.proxy?.hold(message.holds);
        return;
      case 'client':
        this.#accept(socket);
        return;
      case 'reload':
        void this.#reload().then((outcome) => this.#tell({ kind: 'reloaded', id: message.id, outcome }));
        return;
      case 'stop':
        void this.stop(message.mode, message.patienceMs);
        return;
      case 'cancel':
        this.#services?.proxy?.cancel({ ...message.key, secret: Buffer.from(message.key.secret) });
        return;
      case 'login':
        this.#services?.proxy?.hearLogin(message.event);
        return;
      case 'ask':
        void this.#services?.proxy
          ?.answer(message.request)
          .then((answer) => this.#tell({ kind: 'answer', id: message.id, answer }));
        return;
      case 'answers':
        this.#link.answered(message.id, message.answers);
        return;
      case 'result':
        this.#link.result(message.id, message.failure);
        return;
    }
  }

  async stop(...[mode, patienceMs]: Parameters<Services['stop']>): Promise<void> {
    const first = !this.#stopping;
    this.#stopping = true;
    const stopped = this.#services?.stop(mode, patienceMs);
    if (!first) return;
    try {
      await stopped;
    } catch (error) {
      this.#failed(error);
    }
    this.#end();
  }

  /** Reads the configuration, and tells the parent what of it is for the parent. */
  #begin(): void {
    try {
      this.#config = this.#read();
      this.#tell({ kind: 'plan', protocol: PROTOCOL, plan: planOf(this.#config, this.#settings) });
    } catch (error) {
      this.#failed(error);
      this.#end();
    }
  }

  async #start(listen: ListenOptions, workers: number, ticketSecret: Buffer): Promise<void> {
    const config = this.#config;
    if (config === null) return;
    this.#workers = workers;
    const role = this.#role;
    try {
      const { startServices } = await import('../serve.js');
      const services = await startServices(this.#own(config, listen), {
        only: role.kind === 'proxy' ? ['proxy'] : role.parts,
        logger: createLogger(levelOf(config, this.#settings)),
        ...(role.kind === 'proxy'
          ? { behind: { slot: role.slot, siblings: this.#link, control: this.#link, ticketSecret } }
          : {}),
      });
      this.#services = services;
      if (this.#holds !== null) services.proxy?.hold(this.#holds);
      if (this.#stopping) {
        await services.stop('now', 0);
        return;
      }
      // A part that has failed has said so in the log; a new process begins anew.
      services.failed.catch(() => void this.stop('now', 0));
      this.#tell({ kind: 'ready' });
    } catch (error) {
      this.#failed(error);
      this.#end();
    }
  }

  #accept(socket: Socket | undefined): void {
    const proxy = this.#services?.proxy;
    // Without a socket: it was closed on its way.
    if (proxy === undefined || socket === undefined) {
      socket?.destroy();
      this.#goneOne();
      return;
    }
    socket.on('close', () => this.#goneOne());
    proxy.accept(socket);
  }

  /** A message costs as much as a tenth of a login does: those that leave in one turn are told together. */
  #goneOne(): void {
    if (this.#gone++ > 0) return;
    setImmediate(() => {
      const clients = this.#gone;
      this.#gone = 0;
      this.#tell({ kind: 'gone', clients });
    });
  }

  /** Never rejects. */
  async #reload(): Promise<ReloadOutcome> {
    const before = this.#config;
    const services = this.#services;
    try {
      const config = this.#read();
      if (before === null || services === null) throw new Error('the process is not ready');
      const { all, restart } = changesBetween(before, config);
      await services.reload(this.#own(applied(before, config), config.proxy.listen), levelOf(config, this.#settings));
      if (restart.length > 0 && this.#speaks)
        warn(`${restart.join(', ')}: changed in the configuration, and applied by a restart only`);
      // What needs a restart stays named as long as it differs from what runs.
      this.#config = applied(before, config);
      const others = all.some((key) => /^(planner|migrator|shardPasswords)\b/.test(key));
      return { kind: 'done', plan: planOf(config, this.#settings), others };
    } catch (error) {
      return { kind: 'failed', failure: failureOf(error) };
    }
  }

  /** One process says what is to be said of the file. */
  get #speaks(): boolean {
    return this.#role.kind === 'proxy' && this.#role.index === 0;
  }

  #read(): Config {
    return readConfig(this.#settings, process.env, this.#speaks ? warn : () => undefined);
  }

  /** The file's configuration as it is for this process. */
  #own(config: Config, listen: ListenOptions): Config {
    const own = this.#role.kind === 'proxy' ? shareOf(config, this.#role.index, this.#workers) : config;
    return { ...own, proxy: { ...own.proxy, listen } };
  }

  #failed(error: unknown): void {
    this.#tell({ kind: 'failed', failure: failureOf(error) });
  }

  #end(): void {
    if (process.connected) process.disconnect();
    this.#over();
  }
}

function levelOf(config: Config, settings: ServeSettings): string {
  return settings.verbose === true ? 'debug' : config.log.level;
}

function planOf(config: Config, settings: ServeSettings): Plan {
  const { listen, workers, limits } = config.proxy;
  return {
    workers: settings.workers ?? workers,
    listen: settings.port === undefined ? listen : { ...listen, port: settings.port },
    drainTimeoutMs: limits.drainTimeoutMs,
    logLevel: levelOf(config, settings),
  };
}
