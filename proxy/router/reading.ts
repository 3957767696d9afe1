import type { Node } from 'libpg-query';
import type { Context } from './analysis.js';
import { Lexer } from './lexer.js';
import { parse } from './parse.js';
import { planStatement } from './plan.js';
import { LISTENS_ITSELF, type StatementPlan } from './route.js';

/** What parsing and planning make of a text: plain data, so that another thread can hand it over. */
export interface Reading {
  /** Of each statement. */
  readonly plans: readonly StatementPlan[];
  /** Byte offsets of each statement's start and end. */
  readonly places: Uint32Array;
  /** Names in it may not be what they seem: the text is in an encoding that is not UTF-8. */
  readonly garbledNames: boolean;
}

/** The view and the function under it, in a tree. */
const SHOWS_PREPARED = /"relname":"pg_prepared_statements"|"String":\{"sval":"pg_prepared_statement"\}/;

/**
 * More of these is not parsed: bytes of a text but for its literals, and 3 for each of them, which is what a digit and a comma make. 4 MiB
 * of rows take 0.5 GB of memory, but 4 MiB of one-letter columns 1.7 GB, most of it libpg-query's own. One large literal takes little.
 */
const MOST_PARSED = 4 * 1024 * 1024;

/** Whether parsing the text would take too much memory. One pass over it, for texts of more than that many bytes only. */
export function isTooLarge(text: Buffer): boolean {
  if (text.length <= MOST_PARSED) return false;
  const lexer = new Lexer();
  return !lexer.scan(text) || lexer.keyLength + 3 * lexer.literalCount > MOST_PARSED;
}

/** Parses a text and plans its statements; null if PostgreSQL's grammar refuses it. Takes about 20 ms for 64 KiB of VALUES. */
export function readText(text: Buffer, context: Omit<Context, 'literals'>): Reading | null {
  const parsed = parse(text);
  if (parsed === null) return null;
  const { statements, literals, garbledNames } = parsed;
  const mayShow = /pg_prepared_statement/i.test(text.toString('latin1'));
  return {
    plans: statements.map(({ node }) => {
      if (garbledNames) return garbled(node);
      const plan = planStatement(node, { ...context, literals });
      return mayShow && SHOWS_PREPARED.test(JSON.stringify(node)) ? { ...plan, showsPrepared: true as const } : plan;
    }),
    places: Uint32Array.from(statements.flatMap(({ start, end }) => [start, end])),
    garbledNames,
  };
}

const GARBLED: StatementPlan = {
  kind: 'write',
  command: 'SELECT',
  target: {
    kind: 'sole',
    refusal: {
      sqlstate: '0A000',
      message: 'table names outside ASCII in a client encoding other than UTF-8 are not supported on several shards',
      hint: 'SET client_encoding TO UTF8.',
    },
  },
  effect: null,
  pin: null,
};

/** A channel whose name is not known here can be listened to by the session's own connection only. */
function garbled(statement: Node): StatementPlan {
  return 'ListenStmt' in statement ? { ...GARBLED, kind: 'utility', pin: LISTENS_ITSELF } : GARBLED;
}
