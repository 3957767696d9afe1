import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { AdminAnswer, Holds, ShutdownMode } from '../../proxy/admin/siblings.js';
import { PROCESS_SLOTS } from '../../proxy/clients.js';
import type { ListenOptions } from '../../proxy/listener/listener.js';
import { Listener } from '../../proxy/listener/listener.js';
import { ConflictError, UsageError } from '../../topology/errors.js';
import { EXIT, type Failure, failureOf } from '../failure.js';
import { createLogger } from '../logger.js';
import { PARTS, type Part } from '../parts.js';
import { Child } from './child.js';
import { Generation } from './generation.js';
import type { FromProxy, Plan, Role, ServeSettings } from './messages.js';
import { Spread } from './spread.js';

export interface ParentOptions {
  readonly settings: ServeSettings;
  /** The proxy is among them. */
  readonly parts: readonly Part[];
  /** File descriptors of listening sockets that the service manager has opened for us; empty: we open our own. */
  readonly inherited: readonly number[];
}

const TICKET_SECRET_BYTES = 32;

interface OpenListener {
  readonly wanted: ListenOptions;
  readonly listener: Listener;
}

/**
 * The process behind which those of `foreshard serve` come and go: it owns the listening sockets, gives each client to one of the
 * processes, replaces those that die, and passes on what they have for each other. It holds no client and reads no SQL.
 */
export class Parent {
  /** Resolves when a shutdown is over. */
  readonly ended: Promise<void>;
  readonly #options: ParentOptions;
  readonly #spread = new Spread();
  readonly #bySlot = new Map<number, Child>();
  #lastSlot = -1;
  /** What administrators have had paused or disabled: processes come and go, that stays. */
  #holds: Holds | null = null;
  #logger: Logger;
  #open: OpenListener | null = null;
  #current: Generation | null = null;
  /** Those that are being started, or whose clients have yet to leave. */
  readonly #others = new Set<Generation>();
  #inherited: readonly number[];
  #stopping = false;
  #restarting: Promise<void> | null = null;
  #reloading: Promise<unknown> = Promise.resolve();
  #isOver: () => void = () => undefined;

  /**
   * Starts listening and the first processes.
   * @throws what a process that cannot start says
   */
  static async start(options: ParentOptions): Promise<Parent> {
    const parent = new Parent(options);
    try {
      await parent.#renew();
    } catch (error) {
      for (const generation of parent.#others) generation.kill();
      parent.#closeListener();
      throw error;
    }
    return parent;
  }

  private constructor(options: ParentOptions) {
    this.#options = options;
    this.#inherited = options.inherited;
    this.#logger = createLogger(options.settings.verbose === true ? 'debug' : 'info');
    this.ended = new Promise((resolve) => {
      this.#isOver = resolve;
    });
  }

  /**
   * Puts new processes, of the code and the configuration that are installed now, in the place of those that run; their clients stay
   * until they leave. When the new ones cannot start, all stays as it is, and the log says why. Never rejects.
   */
  restart(): Promise<void> {
    if (this.#stopping) return Promise.resolve();
    this.#restarting ??= this.#renew()
      .catch((error: unknown) => {
        const { message, hint } = failureOf(error);
        this.#logger.error({ hint }, `the restart has failed, and nothing has changed: ${message}`);
      })
      .finally(() => {
        this.#restarting = null;
      });
    return this.#restarting;
  }

  /** Has all processes read the configuration again. @returns what is wrong with it: then nothing has changed */
  reload(): Promise<Failure | null> {
    const done = this.#reloading.then(() => this.#reload());
    this.#reloading = done;
    return done;
  }

  /** Ends everything; `ended` says when it has come to pass. May be called again, with another mode. */
  stop(mode: ShutdownMode): void {
    this.#closeListener();
    // Whoever reads this finds the port closed.
    if (!this.#stopping) this.#logger.info({ mode }, 'stopping');
    this.#stopping = true;
    this.#spread.close();
    const generations = this.#generations();
    for (const generation of generations) generation.stop(mode, 0);
    void Promise.all(generations.map((generation) => generation.ended())).then(() => this.#isOver());
  }

  /** Ends everything at once. */
  kill(): void {
    for (const generation of this.#generations()) generation.kill();
  }

  #generations(): Generation[] {
    return this.#current === null ? [...this.#others] : [this.#current, ...this.#others];
  }

  async #renew(): Promise<void> {
    const ticketSecret = randomBytes(TICKET_SECRET_BYTES);
    const generation: Generation = new Generation({
      shared: () => ({ ticketSecret, holds: this.#holds }),
      fork: (index) => this.#fork(index),
      others: this.#options.parts.some((part) => part !== 'proxy'),
      onChange: () => {
        if (this.#current === generation) this.#spread.to(generation.proxies);
      },
      logger: () => this.#logger,
    });
    this.#others.add(generation);
    const before = this.#open;
    let opened: OpenListener | null = null;
    try {
      const plan = await generation.begin();
      opened = await this.#listen(plan.listen);
      const { listener, wanted } = opened;
      await generation.start({ ...wanted, port: listener.port });
      if (this.#stopping) throw new ConflictError('foreshard serve is being stopped');
      // Nothing between here and the end fails, and no client sees a gap.
      this.#others.delete(generation);
      const old = this.#current;
      this.#current = generation;
      this.#open = opened;
      this.#adopt(plan);
      generation.keep();
      this.#spread.to(generation.proxies);
      if (opened !== before) void before?.listener.stop();
      if (old !== null) this.#retire(old, plan.drainTimeoutMs);
      this.#logger.info(
        {
          parts: PARTS.filter((part) => this.#options.parts.includes(part)),
          listen: listener.addresses.join(', '),
          workers: plan.workers,
        },
        old === null ? 'ready' : 'restarted',
      );
    } catch (error) {
      if (opened !== null && opened !== before) void opened.listener.stop();
      generation.kill();
      this.#others.delete(generation);
      throw error;
    }
  }

  /** The clients of `old` stay until they leave, or time is up. */
  #retire(old: Generation, patienceMs: number): void {
    this.#others.add(old);
    old.stop('wait_for_clients', patienceMs);
    void old.ended().then(() => {
      this.#others.delete(old);
      if (!this.#stopping) this.#logger.info('the processes from before the restart have ended');
    });
  }

  /** The listener that is open already when the address is the same, for its port never closes then. */
  async #listen(wanted: ListenOptions): Promise<OpenListener> {
    const open = this.#open;
    if (open !== null && JSON.stringify(open.wanted) === JSON.stringify(wanted)) return open;
    const listener = await this.#start(wanted);
    listener.open(({ socket }) => this.#spread.add(socket));
    return { wanted, listener };
  }

  async #start(wanted: ListenOptions): Promise<Listener> {
    const handles = this.#inherited.map((fd) => ({ fd }));
    // They are there once: an address that changes later is opened by us.
    this.#inherited = [];
    try {
      return await Listener.start(handles.length === 0 ? wanted : { ...wanted, handles });
    } catch (error) {
      const { message, hint } = failureOf(error);
      throw new UsageError(message, hint);
    }
  }

  #closeListener(): void {
    void this.#open?.listener.stop();
    this.#open = null;
  }

  #fork(index: number | null): Child {
    const role: Role =
      index === null
        ? { kind: 'others', parts: this.#options.parts.filter((part) => part !== 'proxy') }
        : { kind: 'proxy', slot: this.#freeSlot(), index };
    const child: Child = new Child(role, this.#options.settings, (message) => void this.#serve(child, message));
    if (role.kind === 'proxy') {
      this.#bySlot.set(role.slot, child);
      void child.ended.then(() => this.#bySlot.delete(role.slot));
    }
    return child;
  }

  /** A cancel key that comes late should find nobody rather than a process that has taken the place of its own. */
  #freeSlot(): number {
    for (let i = 1; i <= PROCESS_SLOTS; i++) {
      const slot = (this.#lastSlot + i) % PROCESS_SLOTS;
      if (this.#bySlot.has(slot)) continue;
      this.#lastSlot = slot;
      return slot;
    }
    throw new ConflictError(
      `there are ${PROCESS_SLOTS} processes already`,
      'Earlier restarts still wait for clients to leave: set proxy.limits.drainTimeoutMs.',
    );
  }

  async #reload(): Promise<Failure | null> {
    const generation = this.#current;
    const [first, ...rest] = generation?.proxies ?? [];
    if (generation === null || first === undefined || this.#stopping)
      return { exitCode: EXIT.conflict, message: 'no process serves at the moment', hint: undefined };
    // The first one tries it for all.
    const outcome = await first.reload();
    if (outcome.kind === 'failed') {
      const { message, hint } = outcome.failure;
      this.#logger.error({ hint }, `the configuration is as before: ${message}`);
      return outcome.failure;
    }
    for (const other of await Promise.all(rest.map((child) => child.reload())))
      if (other.kind === 'failed') this.#logger.error({ hint: other.failure.hint }, other.failure.message);
    const { workers, listen } = generation.plan;
    generation.plan = { ...outcome.plan, workers, listen };
    this.#adopt(outcome.plan);
    if (outcome.others) generation.replaceOthers();
    this.#logger.info('the configuration was read again');
    return null;
  }

  #adopt({ logLevel }: Plan): void {
    this.#logger.level = logLevel;
  }

  async #serve(child: Child, message: FromProxy): Promise<void> {
    switch (message.kind) {
      case 'cancel':
        this.#bySlot.get(message.slot)?.cancel(message.key);
        return;
      case 'askSiblings': {
        const others = [...this.#bySlot].filter(([, other]) => other !== child && other.serving);
        const answers = await Promise.all(
          others.map(
            async ([slot, other]): Promise<AdminAnswer> =>
              (await other.ask(message.request)) ?? { kind: 'silent', slot },
          ),
        );
        child.answers(message.id, answers);
        return;
      }
      case 'tellLogin':
        for (const other of this.#bySlot.values()) if (other !== child && other.serving) other.hearLogin(message.event);
        return;
      case 'remember':
        this.#holds = message.holds;
        // Those that are ready have been asked to do it themselves.
        for (const other of this.#bySlot.values()) if (!other.serving) other.hold(message.holds);
        return;
      case 'askReload':
        child.result(message.id, await this.reload());
        return;
      case 'askShutdown':
        this.stop(message.mode);
        return;
      default:
        // From newer code, that wants something we do not know.
        this.#logger.warn({ message: (message as { kind: string }).kind }, 'a process wants what its parent cannot do');
    }
  }
}
