import { pino } from 'pino';

/** Structured log, one event a line, on stderr: stdout belongs to what a command prints. */
export function createLogger(level: string): pino.Logger {
  return pino({ level, base: { pid: process.pid } }, pino.destination({ fd: 2, sync: true }));
}
