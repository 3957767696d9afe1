import type { StatementError } from './connection.js';

/** Where in its life an operation met an error. */
export type Phase = 'login' | 'read' | 'in a transaction' | 'autocommit' | 'commit';

/** What a client may be told at any time, whatever happens to be going on. */
const ALWAYS = new Set(['40001']);
/** Of a transaction that a flip did not wait for, in the proxy's words. */
const ENDED = /^the transaction was ended/;
/** What is told of keys on several shards. */
const CROSSING = new Set(['0A000']);
/** What may be told while something is down, stopped, cut or slow, or has just been. */
const DISTURBED = [
  /^57P0[123]$/,
  /^08(000|001|003|004|006|007)$/,
  /^53300$/,
  /^28000$/,
  /^E[A-Z]+$/,
  /^Connection terminated/,
  /^Client /,
  /^timeout/,
];
/** A login that took too long, in a server's words. */
const LATE_LOGIN = /^57014$/;
/** The destination's disk was full. */
const DISK_FULL = /^53100$/;

/** After these nothing has been done, whoever says it, also of a statement that commits by itself and of COMMIT. */
const NOTHING_DONE = /^(0A|22|23|25|28|40|42|53|55)|^(57P03|08001|08004|08006)$/;

export interface Verdict {
  /** Whether it may have been done all the same. */
  readonly perhapsDone: boolean;
  /** Whether a client may be told this. */
  readonly allowed: boolean;
}

/** Whether a flip has ended its transaction. */
export function isEnded({ code, message }: StatementError): boolean {
  return code === '40001' && ENDED.test(message);
}

/**
 * What an error means.
 * @param crossing whether the operation may have had to do with several shards
 * @param halved whether it may have written both halves of a row, on two shards, for which the proxy makes a transaction that a flip may end
 * @param disturbed whether something had been disturbed when it was sent, or since; asked only when that matters
 */
export function judge(
  error: StatementError,
  phase: Phase,
  {
    crossing,
    halved,
    disturbed,
    diskFull,
  }: {
    readonly crossing: boolean;
    readonly halved: boolean;
    readonly disturbed: () => boolean;
    readonly diskFull: () => boolean;
  },
): Verdict {
  const { code } = error;
  const allowed =
    // A write that commits by itself is waited for, on one shard.
    (ALWAYS.has(code) && (halved || !(phase === 'autocommit' && isEnded(error)))) ||
    (crossing && CROSSING.has(code)) ||
    (DISTURBED.some((pattern) => pattern.test(code)) && disturbed()) ||
    (phase === 'login' && LATE_LOGIN.test(code) && disturbed()) ||
    (DISK_FULL.test(code) && diskFull());
  const commits = phase === 'autocommit' || phase === 'commit';
  return { allowed, perhapsDone: commits && !NOTHING_DONE.test(code) };
}
