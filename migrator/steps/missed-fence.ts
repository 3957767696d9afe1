import { assertGateSql } from '../guards.js';
import type { Move } from '../move.js';
import { GATE_OPEN } from '../names.js';
import { dropHolds } from '../undo.js';

/** The owner takes writes again, and the proxies let them pass. Also what a driver that died between fence and flip has left is undone by this. */
export async function letGoOn(m: Move): Promise<void> {
  await m.source.query(assertGateSql(m.names, GATE_OPEN));
  m.exec.at('after:reopen-gate');
  await dropHolds(m);
  m.exec.at('after:drop-hold');
}

/** What becomes of a flip, in either direction, whose fence was missed. */
interface Next {
  /** There may be another one. @param tries how many there have been */
  again(tries: number): Promise<void>;
  /** There have been `maxFenceTries`. */
  enough(error: string): Promise<void>;
}

/** A fence was missed: all goes on as before it, and it is counted. @param tries the fact that says how many were before */
export async function missed(m: Move, tries: 'fenceTries' | 'backTries', why: string, next: Next): Promise<void> {
  await letGoOn(m);
  const count = Number(m.row.facts[tries] ?? 0) + 1;
  if (count < m.options.maxFenceTries) return next.again(count);
  return next.enough(`${count} fences were missed; the last one because ${why}`);
}
