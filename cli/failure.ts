import { errorCode, explainConnectError } from '../topology/connection.js';
import { CatalogUnavailableError, ConflictError, ForeshardError, UsageError } from '../topology/errors.js';

/** What the process ends with; described in docs/cli.md. */
export const EXIT = {
  ok: 0,
  /** It failed, or it found something (`check`, an aborted migration under `migrate watch`). */
  failed: 1,
  usage: 2,
  unavailable: 3,
  conflict: 4,
  /** Not over: a person has to do something first. */
  waiting: 5,
  interrupted: 130,
  terminated: 143,
} as const;

export const EXIT_CODES_HELP =
  'Exit codes: 0 ok · 1 failed, or findings · 2 usage or bad input · 3 catalog or shard unavailable · ' +
  '4 conflict: epoch or state moved · 5 waits for a person · 130, 143 ended by SIGINT, SIGTERM';

export interface Failure {
  readonly exitCode: number;
  readonly message: string;
  readonly hint: string | undefined;
}

/** What another process of ours has failed with. */
export class ReportedFailure extends Error {
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

const NETWORK = /^E(CONN|TIMEDOUT|HOSTUNREACH|NETUNREACH|NOTFOUND|AI_AGAIN|PIPE)/;

/** How an error ends the command: its exit code and what the person at the terminal reads. */
export function failureOf(error: unknown): Failure {
  if (error instanceof ReportedFailure) return error.failure;
  if (error instanceof ForeshardError)
    return { exitCode: exitCodeOf(error), message: withDetail(error), hint: error.hint };
  const code = errorCode(error);
  if (NETWORK.test(code) || isUnavailable(code)) {
    const { reason, hint } = explainConnectError(error);
    return { exitCode: EXIT.unavailable, message: reason, hint };
  }
  const { message, hint } = error instanceof Error ? (error as Error & { hint?: unknown }) : { message: String(error) };
  return {
    exitCode: EXIT.failed,
    message: message === '' ? code : message,
    hint: typeof hint === 'string' ? hint : undefined,
  };
}

function withDetail(error: ForeshardError): string {
  return error.detail === undefined ? error.message : `${error.message} (${error.detail})`;
}

function exitCodeOf(error: ForeshardError): number {
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof CatalogUnavailableError || isUnavailable(error.sqlstate)) return EXIT.unavailable;
  // Serialization failures; objects in use or not in the state that is needed.
  if (error instanceof ConflictError || error.sqlstate.startsWith('40') || error.sqlstate.startsWith('55'))
    return EXIT.conflict;
  // Data and definitions that do not fit, names that do not exist or exist already, what is not supported.
  if (/^(22|23|42|0A|3[DF])/.test(error.sqlstate)) return EXIT.usage;
  return EXIT.failed;
}

/** Connection exceptions, failed logins, too many connections, a server that starts or stops. */
function isUnavailable(sqlstate: string): boolean {
  return /^(08|28|53300|57P0)/.test(sqlstate);
}
