import type { AnalyzedText } from './analyzed-text.js';
import { Pace } from './pace.js';
import type { KeySource, LaneRoute, StatementPlan } from './route.js';

/** What is known of all texts with one key, in one scope. */
export interface Template {
  /** The key, for people. */
  readonly text: string;
  readonly plans: readonly StatementPlan[];
  /** Literals that keys come from, in order. */
  readonly ordinals: readonly number[];
  /** The lexer's semicolons are the statements' ends. */
  readonly plainStatements: boolean;
  /** A text without literals, analysed: the same bytes are the same again. */
  memo: AnalyzedText | null;
  /** How fast executions were. */
  readonly pace: Pace;
  /** It is one statement that may share a server connection. */
  readonly laneSafe: boolean;
  /** Where it goes then, whatever its values are. */
  laneRoute: LaneRoute | null;
}

/** @param key as the lexer has it */
export function newTemplate(key: string, plans: readonly StatementPlan[], plainStatements: boolean): Template {
  return {
    laneSafe: plainStatements && plans.length === 1 && plans[0]?.laneSafe === true,
    laneRoute: null,
    text: shown(key),
    plans,
    ordinals: ordinalsOf(plans),
    plainStatements,
    memo: null,
    pace: new Pace(),
  };
}

/** What it takes in memory, about. */
export function bytesOf({ text, plans }: Template): number {
  return text.length + memoBytes(text) + 2 * JSON.stringify(plans).length + OBJECTS_BYTES;
}

/** Literals that keys of the plans come from, in order. */
export function ordinalsOf(plans: readonly StatementPlan[]): number[] {
  const ordinals = new Set<number>();
  const add = (keys: readonly KeySource[]) => {
    for (const key of keys) for (const source of key) if (source.kind === 'literal') ordinals.add(source.ordinal);
  };
  for (const { target } of plans) {
    if (target.kind === 'keys') {
      add(target.keys);
      for (const other of target.also ?? []) add(other.keys);
    }
    if ((target.kind === 'keys' || target.kind === 'unpinned') && target.spread.kind === 'fanout') {
      const { limit = null, offset = null } = target.spread.uncut ?? {};
      add([[limit, offset].filter((s) => s !== null)]);
    }
  }
  return [...ordinals].sort((x, y) => x - y);
}

/** Longest text without literals that is kept with a template of this length. */
export function memoBytes(template: string): number {
  return template.length + 64;
}

/** What a template takes besides its key and its plans, about. */
const OBJECTS_BYTES = 400;

/** A key for people: with the numbers of parameters. */
function shown(key: string): string {
  let number = 0;
  // "$+" may also stand in a quoted name, or in the string behind UESCAPE.
  return key.replace(/"(?:[^"]|"")*"|'(?:[^']|'')*'|\$\+/g, (found) => {
    if (found !== '$+') return found;
    number += 1;
    return `$${number}`;
  });
}
