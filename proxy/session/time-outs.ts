import { ForeshardError } from '../../topology/errors.js';

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

/** A client, as far as its time-outs are concerned. */
export interface TimedSession {
  readonly phase: 'active' | 'idle' | 'idle in transaction';
  /** Change whenever the client has been told that the proxy is ready for more, and whenever its transaction has ended. */
  readonly answers: number;
  readonly transactions: number;
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
 * second at most); never early, because time counts from the first look that sees a new phase.
 */
export class TimeoutSweep {
  readonly #sessions: () => Iterable<TimedSession>;
  #timeouts: Required<SessionTimeouts> = OFF;
  #timer: NodeJS.Timeout | null = null;

  constructor(sessions: () => Iterable<TimedSession>, timeouts: SessionTimeouts) {
    this.#sessions = sessions;
    this.reload(timeouts);
  }

  reload(timeouts: SessionTimeouts): void {
    this.close();
    this.#timeouts = { ...OFF, ...timeouts };
    const { queryTimeoutMs, idleTimeoutMs, idleInTransactionTimeoutMs, transactionTimeoutMs } = this.#timeouts;
    const set = [queryTimeoutMs, idleTimeoutMs, idleInTransactionTimeoutMs, transactionTimeoutMs].filter((t) => t > 0);
    if (set.length === 0) return;
    const pause = Math.min(COARSEST_MS, Math.max(FINEST_MS, Math.min(...set) / 4));
    this.#timer = setInterval(() => this.#look(performance.now()), pause);
    this.#timer.unref();
  }

  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #look(now: number): void {
    for (const session of [...this.#sessions()]) this.#lookAt(session, now);
  }

  #lookAt(session: TimedSession, now: number): void {
    const { watch } = session;
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
    const passed = (limit: number, time: number) => limit > 0 && time >= limit;
    const { phase, watch } = session;
    if (phase !== 'idle' && passed(transactionTimeoutMs, transactionMs))
      session.close(new ForeshardError('25P04', 'terminating connection due to transaction timeout'));
    else if (phase === 'idle' && passed(idleTimeoutMs, ms))
      session.close(new ForeshardError('57P05', 'terminating connection due to idle-session timeout'));
    else if (phase === 'idle in transaction' && passed(idleInTransactionTimeoutMs, ms))
      session.close(new ForeshardError('25P03', 'terminating connection due to idle-in-transaction timeout'));
    else if (phase === 'active' && !watch.overdue && passed(queryTimeoutMs, ms)) {
      watch.overdue = true;
      session.cancelOverdue();
    }
  }
}

const OFF = { queryTimeoutMs: 0, idleTimeoutMs: 0, idleInTransactionTimeoutMs: 0, transactionTimeoutMs: 0 } as const;
