import type { Logger } from 'pino';

/** What steps say to operators. */
export type StepLog = Pick<Logger, 'info' | 'warn' | 'error'>;

/** Of a dry run: nothing has happened. */
export const SILENT: StepLog = { info: () => undefined, warn: () => undefined, error: () => undefined };
