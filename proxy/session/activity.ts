import { FRONTEND } from '../wire/message-types.js';

/** What one client has done and is waiting for, for whoever looks: plain numbers, changed where things happen. */
export class Activity {
  /** Bytes from and to the client. */
  received = 0;
  sent = 0;
  /** Queries, function calls and executions of portals that it asked for. */
  queries = 0;
  /** Parse and Bind messages that it sent, and Parse messages that the proxy sent to servers for it. */
  parses = 0;
  binds = 0;
  serverParses = 0;
  /** Times that it got a server connection. */
  assignments = 0;
  /** Statements of its that shared a server connection with others'. */
  laneReads = 0;
  /** How long it has waited for server connections and for ranges on the move, ms. */
  waitMs = 0;
  /** When it asked for something, and when it was told that the proxy is ready for more; ms since 1970. */
  requestAt = Date.now();
  answeredAt = Date.now();
  /** Since when it has been waiting, on `performance.now()`'s clock; 0: it is not. */
  waitingSince = 0;

  /** A message of the client is looked at. */
  message(type: number): void {
    if (type === FRONTEND.Bind) this.binds += 1;
    else if (type === FRONTEND.Parse) this.parses += 1;
    else if (type === FRONTEND.Query || type === FRONTEND.Execute || type === FRONTEND.FunctionCall) {
      this.queries += 1;
      this.requestAt = Date.now();
    }
  }

  waitBegins(): void {
    this.waitingSince = performance.now();
  }

  waitEnds(): void {
    if (this.waitingSince === 0) return;
    this.waitMs += performance.now() - this.waitingSince;
    this.waitingSince = 0;
  }

  /** What `work` gives; until then it waits. */
  async waitFor<T>(work: Promise<T>): Promise<T> {
    this.waitBegins();
    try {
      return await work;
    } finally {
      this.waitEnds();
    }
  }

  /** Adds what another has counted. */
  add(other: Readonly<Activity>): void {
    for (const key of SUMS) this[key] += other[key];
  }
}

const SUMS = [
  'received',
  'sent',
  'queries',
  'parses',
  'binds',
  'serverParses',
  'assignments',
  'laneReads',
  'waitMs',
] as const satisfies readonly (keyof Activity)[];
