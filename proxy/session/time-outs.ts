import { ForeshardError } from '../../topology/errors.js';
import type { SessionSettings, TIMEOUTS } from './settings.js';

/** How long clients may take for what. ms; 0: for ever. */
export interface SessionTimeouts {
  /** A Query, or a batch up to its Sync, waiting included. Canceled with 57014; the session goes on. */
  readonly queryTimeoutMs?: number;
  /** Without a transaction and without asking for anything. Ends the session with 57P05. */
  readonly idleTimeoutMs?: number;
  /** In a transaction without asking for anything. Ends the session with 25P03. */
  readonly idleInTransactionTimeoutMs?: number;
  /** A transaction, or a statement of its own, as a whole. Ends the session with 25P04. */
  readonly transactionTimeoutMs?: number;
}

/**
 * What the client has set for itself (idle_session_timeout and the like). ms; 0: nothing. The server has them in force too while
 * it works for the client, but it does not know of a client that is idle without a server connection.
 */
export interface Bounds {
  readonly idleMs: number;
  readonly idleInTransactionMs: number;
  readonly transactionMs: number;
}

const NO_BOUNDS: Bounds = { idleMs: 0, idleInTransactionMs: 0, transactionMs: 0 };

/** The time-outs among a client's settings. */
export function boundsOf(settings: SessionSettings): Bounds {
  if (settings.current.size === 0) return NO_BOUNDS;
  const ms = (name: (typeof TIMEOUTS)[number]) => millisecondsOf(settings.value(name) ?? '0');
  return {
    idleMs: ms('idle_session_timeout'),
    idleInTransactionMs: ms('idle_in_transaction_session_timeout'),
    transactionMs: ms('transaction_timeout'),
  };
}

const UNITS: Readonly<Record<string, number>> = { us: 0.001, '': 1, ms: 1, s: 1e3, min: 6e4, h: 36e5, d: 864e5 };

/** A time-out in PostgreSQL's notation; 0 for what is none. */
function millisecondsOf(value: string): number {
  const [, number, unit = ''] = /^\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*$/.exec(value) ?? [];
  return number === undefined ? 0 : Math.round(Number(number) * (UNITS[unit] as number));
}

/** A client, as far as its time-outs are concerned. */
export interface TimedSession {
  readonly phase: 'active' | 'idle' | 'idle in transaction';
  /** Change whenever the client has been told that the proxy is ready for more, and whenever its transaction has ended. */
  readonly answers: number;
  readonly transactions: number;
  readonly bounds: Bounds;
  readonly watch: Watch;
  /** Ends the session with a FATAL error. */
  close(error: ForeshardError): void;
  /** Cancels what the client waits for. */
  cancelOverdue(): void;
}

/** What the last look at a session has seen, and when that began, as far as looks can tell. */
export class Watch {
  phase = '';
  answers = -1;
  transactions = -1;
  since = 0;
  transactionSince = 0;
  overdue = false;
}

/** The shortest and the longest pause between two looks. */
const FINEST_MS = 10;
const COARSEST_MS = 1_000;

/**
 * Carries out the time-outs of all sessions of a process with one timer: nothing is read from a clock or armed when a
 * statement begins or ends. A time-out comes late by up to two looks, a quarter of the shortest time-out each (at least 10 ms, a
 * second at most); never early, because time counts from the first look that sees a new phase, and a time in which this process
 * did not come to look does not count: what clients have sent in it has not been read yet.
 */
export class TimeoutSweep {
  readonly #sessions: () => Iterable<TimedSession>;
  #timeouts: Required<SessionTimeouts> = OFF;
  #timer: NodeJS.Timeout | null = null;
  #pause = 0;
  #lastLook = 0;
  /** The shortest that some client has set for itself; 0: none has. */
  #shortest = 0;

  constructor(sessions: () => Iterable<TimedSession>, timeouts: SessionTimeouts) {
    this.#sessions = sessions;
    this.reload(timeouts);
  }

  reload(timeouts: SessionTimeouts): void {
    this.#timeouts = { ...OFF, ...timeouts };
    this.#start();
  }

  /** A client has set a time-out for itself. ms */
  note(ms: number): void {
    if (this.#shortest > 0 && this.#shortest <= ms) return;
    this.#shortest = ms;
    this.#start();
  }

  #start(): void {
    this.close();
    const { queryTimeoutMs, idleTimeoutMs, idleInTransactionTimeoutMs, transactionTimeoutMs } = this.#timeouts;
    const all = [queryTimeoutMs, idleTimeoutMs, idleInTransactionTimeoutMs, transactionTimeoutMs, this.#shortest];
    const set = all.filter((t) => t > 0);
    if (set.length === 0) return;
    const pause = Math.min(COARSEST_MS, Math.max(FINEST_MS, Math.min(...set) / 4));
    this.#pause = pause;
    this.#lastLook = performance.now();
    this.#timer = setInterval(() => this.#look(performance.now()), pause);
    this.#timer.unref();
  }

  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #look(now: number): void {
    const passed = now - this.#lastLook;
    this.#lastLook = now;
    const asleep = passed > 2 * this.#pause ? passed - this.#pause : 0;
    for (const session of [...this.#sessions()]) this.#lookAt(session, now, asleep);
  }

  /** @param asleep of the time since the last look, so much does not count. ms */
  #lookAt(session: TimedSession, now: number, asleep: number): void {
    const { watch } = session;
    watch.since += asleep;
    watch.transactionSince += asleep;
    const { phase, answers, transactions } = session;
    const fresh = watch.transactions !== transactions || (phase !== 'idle' && watch.phase === 'idle');
    if (fresh) watch.transactionSince = now;
    if (watch.phase !== phase || watch.answers !== answers) {
      watch.since = now;
      watch.overdue = false;
    }
    watch.phase = phase;
    watch.answers = answers;
    watch.transactions = transactions;
    this.#act(session, now - watch.since, now - watch.transactionSince);
  }

  #act(session: TimedSession, ms: number, transactionMs: number): void {
    const { queryTimeoutMs, idleTimeoutMs, idleInTransactionTimeoutMs, transactionTimeoutMs } = this.#timeouts;
    const own = this.#shortest > 0 ? session.bounds : NO_BOUNDS;
    const passed = (time: number, limit: number, ofClient = 0) =>
      (limit > 0 && time >= limit) || (ofClient > 0 && time >= ofClient);
    const { phase, watch } = session;
    const waits = phase === 'idle in transaction';
    // What a client has set for a transaction bounds its statements on the server.
    if (phase !== 'idle' && passed(transactionMs, transactionTimeoutMs, waits ? own.transactionMs : 0))
      session.close(new ForeshardError('25P04', 'terminating connection due to transaction timeout'));
    else if (phase === 'idle' && passed(ms, idleTimeoutMs, own.idleMs))
      session.close(new ForeshardError('57P05', 'terminating connection due to idle-session timeout'));
    else if (waits && passed(ms, idleInTransactionTimeoutMs, own.idleInTransactionMs))
      session.close(new ForeshardError('25P03', 'terminating connection due to idle-in-transaction timeout'));
    else if (phase === 'active' && !watch.overdue && passed(ms, queryTimeoutMs)) {
      watch.overdue = true;
      session.cancelOverdue();
    }
  }
}

const OFF = { queryTimeoutMs: 0, idleTimeoutMs: 0, idleInTransactionTimeoutMs: 0, transactionTimeoutMs: 0 } as const;
