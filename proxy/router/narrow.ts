import { ClauseWords, wordOf } from './clause-words.js';
import { Lexer, type Token } from './lexer.js';
import type { Analyzed } from './route.js';
import { applyEdits, type Edit, positionAsSent } from './text-edits.js';

/** WHERE, and what may stand behind it in a SELECT whose answer is a plain union (see `fan-out.ts`). */
const CLAUSES = new ClauseWords(['where', 'limit', 'offset', 'fetch']);

/** Shared: it keeps nothing from one text to the next, and is not cheap to make. */
const lexer = new Lexer();

/** What is put there depends on the condition. */
type Place = Pick<Edit, 'start' | 'end'> & { readonly put: (condition: string) => string };

/**
 * The text of a SELECT that runs on several shards, to be narrowed to the rows that a shard owns: while ranges move, a shard has rows of others
 * as well, which their owner shows.
 */
export class Narrowable {
  readonly #text: Buffer;
  /** In order. */
  readonly #places: readonly Place[];

  constructor({ text, statements, conforming }: Analyzed) {
    const [statement] = statements;
    if (statement === undefined) throw new RangeError('no statement to be narrowed');
    this.#text = text;
    lexer.scan(text, true, conforming);
    const { start, end } = statement;
    this.#places = placesOf(
      text,
      lexer.tokens.filter((token) => token.start >= start && token.end <= end),
    );
  }

  /** The text as a shard gets it. @param condition on the rows of the outermost query */
  to(condition: string): Buffer {
    return applyEdits(this.#text, this.#edits(condition));
  }

  /** A position in the narrowed text, in characters from 1, as one in the client's own. */
  positionAsSent(condition: string, position: number): number {
    return positionAsSent(this.#text, this.#edits(condition), position);
  }

  #edits(condition: string): Edit[] {
    return this.#places.map(({ put, ...place }) => ({ ...place, put: put(condition) }));
  }
}

const OPEN = '('.charCodeAt(0);

function placesOf(text: Buffer, tokens: readonly Token[]): Place[] {
  const isOpen = ({ start, end }: Token) => end - start === 1 && text[start] === OPEN;
  let first = 0;
  while (first < tokens.length && isOpen(tokens[first] as Token)) first += 1;
  const places: Place[] = [];
  const verb = tokens[first] as Token;
  // TABLE name
  if (wordOf(text, verb) === 'table') places.push({ start: verb.start, end: verb.end, put: () => 'SELECT * FROM' });
  const { found, end } = CLAUSES.in(text, tokens, first + 1);
  const behind = found.find(({ word }) => word !== 'where');
  const at = (tokens[(behind?.at ?? end) - 1] as Token).end;
  const where = found.find(({ word }) => word === 'where');
  if (where === undefined) places.push({ start: at, end: at, put: (condition) => ` WHERE (${condition})` });
  else {
    const inside = (tokens[where.at] as Token).end;
    places.push(
      { start: inside, end: inside, put: (condition) => ` (${condition}) AND (` },
      { start: at, end: at, put: () => ')' },
    );
  }
  return places;
}
