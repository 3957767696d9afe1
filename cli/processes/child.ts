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
  #running = true;
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
    this.#process = fork(process.argv[1] as string, [CHILD_COMMAND], { serialization: 'advanced', stdio: 'inherit' });
    this.#process.on('message', (message: FromChild) => this.#receive(message));
    this.ended = new Promise((resolve) => {
      const end = (how: string) => {
        this.#running = false;
        this.#serving = false;
        if (this.#endTimer !== null) clearTimeout(this.#endTimer);
        this.#fail(new Error(`a process of foreshard serve has ended (${how})`));
        resolve(how);
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
    this.clients += 1;
    const given = new Promise<boolean>((resolve) => {
      this.#process.send({ kind: 'client' } satisfies ToChild, socket, {}, (error) => {
        const untouched = (error as NodeJS.ErrnoException | null)?.code === 'ERR_IPC_CHANNEL_CLOSED';
        if (!untouched) socket.destroy();
        resolve(!untouched);
      });
    });
    // One that dies with a socket on its way does not say so.
    return Promise.race([given, this.ended.then(() => true)]);
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
      return await Promise.race([
        new Promise<AdminAnswer>((resolve) => {
          this.#answers.set(id, resolve);
          this.#tell({ kind: 'ask', id, request });
        }),
        new Promise<null>((resolve) => {
          timer = setTimeout(() => resolve(null), ANSWER_MS);
        }),
        this.ended.then(() => null),
      ]);
    } finally {
      clearTimeout(timer);
      this.#answers.delete(id);
    }
  }

  /** Never rejects. */
  async reload(): Promise<ReloadOutcome> {
    const id = this.#next++;
    const outcome = new Promise<ReloadOutcome>((resolve) => this.#reloads.set(id, resolve));
    this.#tell({ kind: 'reload', id });
    return await Promise.race([
      outcome,
      this.ended.then((how): ReloadOutcome => {
        const message = `a process has ended while it read the configuration (${how})`;
        return { kind: 'failed', failure: { exitCode: EXIT.failed, message, hint: undefined } };
      }),
    ]).finally(() => this.#reloads.delete(id));
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
    if (mode === 'now' && this.#running) this.#endTimer ??= setTimeout(() => this.kill(), END_MS);
  }

  /** Ends it at once. */
  kill(): void {
    this.#process.kill('SIGKILL');
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
        this.clients -= 1;
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
