import { type ChildProcess, fork } from 'node:child_process';
import type { Socket } from 'node:net';
import type { AdminAnswer, AdminRequest, Holds, ShutdownMode } from '../../proxy/admin/siblings.js';
import type { LoginEvent } from '../../proxy/auth/failed-logins.js';
import type { CancelKey } from '../../proxy/clients.js';
import type { ListenOptions } from '../../proxy/listener/listener.js';
import { EXIT, type Failure, ReportedFailure } from '../failure.js';
import type { ServeSettings, Shared, ToChild } from './messages.js';
import {
  CHILD_COMMAND,
  type FromChild,
  type FromProxy,
  type Plan,
  PROTOCOL,
  type ReloadOutcome,
  type Role,
} from './messages.js';
import { nodeOptionsOf } from './node-options.js';
import type { Receiver } from './spread.js';

/** An administrator's question to a process that does not answer is given up after this time. */
const ANSWER_MS = 2000;
/** A process that is to end now has its own limits (5 s for open transactions); one that hangs is ended. */
const END_MS = 15_000;

/** One process of `foreshard serve`, seen from its parent. */
export class Child implements Receiver {
  readonly role: Role;
  /** Clients it has been given that have not left. */
  clients = 0;
  /** Rejects when the process cannot start. */
  readonly plan: Promise<Plan>;
  /** Rejects when the process cannot start. */
  readonly ready: Promise<void>;
  /** How it ended. Never rejects. */
  readonly ended: Promise<string>;
  readonly #process: ChildProcess;
  readonly #onRequest: (message: FromProxy) => void;
  readonly #answers = new Map<number, (answer: AdminAnswer) => void>();
  readonly #reloads = new Map<number, (outcome: ReloadOutcome) => void>();
  #next = 0;
  #planned: (plan: Plan) => void = () => undefined;
  #isReady: () => void = () => undefined;
  #fail: (error: Error) => void = () => undefined;
  #endTimer: NodeJS.Timeout | null = null;
  /** How it ended; null: it has not. */
  #end: string | null = null;
  /** What is to be done when it ends. A reaction to `ended` for each client and question would stay, with all it knows, as long as the process. */
  readonly #atEnd = new Set<(how: string) => void>();
  #serving = false;

  /** @param onRequest what the process wants of its parent */
  constructor(role: Role, settings: ServeSettings, onRequest: (message: FromProxy) => void) {
    this.role = role;
    this.#onRequest = onRequest;
    const failed = new Promise<never>((_, reject) => {
      this.#fail = reject;
    });
    this.plan = Promise.race([failed, new Promise<Plan>((resolve) => (this.#planned = resolve))]);
    this.ready = Promise.race([failed, new Promise<void>((resolve) => (this.#isReady = resolve))]);
    this.plan.catch(() => undefined);
    this.ready.catch(() => undefined);
    // By the name we were called with, so that a link to an installation leads to the one it points to now.
    this.#process = fork(process.argv[1] as string, [CHILD_COMMAND], {
      serialization: 'advanced',
      stdio: 'inherit',
      execArgv: nodeOptionsOf(role, process.execArgv, process.env.NODE_OPTIONS),
    });
    this.#process.on('message', (message: FromChild) => this.#receive(message));
    this.ended = new Promise((resolve) => {
      const end = (how: string) => {
        this.#end = how;
        this.#serving = false;
        if (this.#endTimer !== null) clearTimeout(this.#endTimer);
        this.#fail(new Error(`a process of foreshard serve has ended (${how})`));
        resolve(how);
        for (const over of this.#atEnd) over(how);
      };
      this.#process.on('exit', (code, signal) => end(signal ?? `exit code ${code}`));
      this.#process.on('error', (error) => {
        if (this.#process.pid === undefined) end(error.message);
      });
    });
    this.#tell({ kind: 'start', role, settings });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Whether it is ready, and lives. */
  get serving(): boolean {
    return this.#serving;
  }

  go(listen: ListenOptions, workers: number, shared: Shared): void {
    this.#tell({ kind: 'go', listen, workers, shared });
  }

  hold(holds: Holds): void {
    this.#tell({ kind: 'hold', holds });
  }

  give(socket: Socket): Promise<boolean> {
    if (this.#end !== null) return Promise.resolve(false);
    this.clients += 1;
    let untouched = false;
    return this.#unlessEnded(
      (given) => {
        // Node itself would forget the sockets of which it has yet to hear that they have come, or which it has yet to send, when the process dies: nobody
        // would close them, and their clients would wait for ever. One that is on its way is closed by the kernel, with the channel.
        this.#process.send({ kind: 'client' } satisfies ToChild, socket, { keepOpen: true }, (error) => {
          untouched = (error as NodeJS.ErrnoException | null)?.code === 'ERR_IPC_CHANNEL_CLOSED';
          // That it has ended will be heard of only when the event loop comes round: told before, whoever asks would ask again, and for ever.
          if (untouched) return;
          socket.destroy();
          given(true);
        });
      },
      () => {
        if (untouched) return false;
        // It may have been on its way.
        socket.destroy();
        return true;
      },
    );
  }

  cancel(key: CancelKey): void {
    this.#tell({ kind: 'cancel', key });
  }

  hearLogin(event: LoginEvent): void {
    this.#tell({ kind: 'login', event });
  }

  /** About this process alone; null when it does not answer in time. */
  async ask(request: AdminRequest): Promise<AdminAnswer | null> {
    const id = this.#next++;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await this.#unlessEnded<AdminAnswer | null>(
        (answer) => {
          this.#answers.set(id, answer);
          timer = setTimeout(() => answer(null), ANSWER_MS);
          this.#tell({ kind: 'ask', id, request });
        },
        () => null,
      );
    } finally {
      clearTimeout(timer);
      this.#answers.delete(id);
    }
  }

  /** Never rejects. */
  async reload(): Promise<ReloadOutcome> {
    const id = this.#next++;
    return await this.#unlessEnded<ReloadOutcome>(
      (reloaded) => {
        this.#reloads.set(id, reloaded);
        this.#tell({ kind: 'reload', id });
      },
      (how) => {
        const message = `a process has ended while it read the configuration (${how})`;
        return { kind: 'failed', failure: { exitCode: EXIT.failed, message, hint: undefined } };
      },
    ).finally(() => this.#reloads.delete(id));
  }

  answers(id: number, answers: readonly AdminAnswer[]): void {
    this.#tell({ kind: 'answers', id, answers });
  }

  result(id: number, failure: Failure | null): void {
    this.#tell({ kind: 'result', id, failure });
  }

  /** Lets its clients go as `mode` says, and ends. `now` is bounded. */
  stop(mode: ShutdownMode, patienceMs: number): void {
    this.#tell({ kind: 'stop', mode, patienceMs });
    if (mode === 'now' && this.#end === null) this.#endTimer ??= setTimeout(() => this.kill(), END_MS);
  }

  /** Ends it at once. */
  kill(): void {
    this.#process.kill('SIGKILL');
  }

  /** What `begin` is told, or, when the process ends before, what `otherwise` makes of that. */
  #unlessEnded<T>(begin: (done: (value: T) => void) => void, otherwise: (how: string) => T): Promise<T> {
    if (this.#end !== null) return Promise.resolve(otherwise(this.#end));
    return new Promise((resolve) => {
      const over = (how: string) => resolve(otherwise(how));
      this.#atEnd.add(over);
      begin((value) => {
        this.#atEnd.delete(over);
        resolve(value);
      });
    });
  }

  #tell(message: ToChild): void {
    // When it is gone, `ended` says so.
    if (this.#process.connected) this.#process.send(message, () => undefined);
  }

  #receive(message: FromChild): void {
    switch (message.kind) {
      case 'plan':
        if (message.protocol === PROTOCOL) this.#planned(message.plan);
        else
          this.#fail(
            new ReportedFailure({
              exitCode: EXIT.failed,
              message: 'the installed version does not go with the one that runs',
              hint: 'Restart the service as a whole.',
            }),
          );
        return;
      case 'ready':
        this.#serving = true;
        this.#isReady();
        return;
      case 'failed':
        this.#fail(new ReportedFailure(message.failure));
        return;
      case 'gone':
        this.clients -= message.clients;
        return;
      case 'answer':
        this.#answers.get(message.id)?.(message.answer);
        return;
      case 'reloaded':
        this.#reloads.get(message.id)?.(message.outcome);
        return;
      default:
        this.#onRequest(message);
    }
  }
}
