import { Lexer, type Token } from './lexer.js';
import type { Analyzed } from './route.js';
import { applyEdits, type Edit, positionAsSent } from './text-edits.js';

/** What may stand behind the WHERE clause of a SELECT whose answer is a plain union (see `fan-out.ts`). */
const BEHIND_WHERE = new Set(['limit', 'offset', 'fetch']);

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

const [OPEN, CLOSE, DOT] = ['(', ')', '.'].map((c) => c.charCodeAt(0)) as [number, number, number];

function placesOf(text: Buffer, tokens: readonly Token[]): Place[] {
  const textOf = ({ start, end }: Token) => text.toString('latin1', start, end).toLowerCase();
  const is = ({ start, end }: Token, byte: number) => end - start === 1 && text[start] === byte;
  let first = 0;
  while (first < tokens.length && is(tokens[first] as Token, OPEN)) first += 1;
  const places: Place[] = [];
  const verb = tokens[first] as Token;
  // TABLE name
  if (textOf(verb) === 'table') places.push({ start: verb.start, end: verb.end, put: () => 'SELECT * FROM' });
  let depth = 0;
  let where: Token | null = null;
  let last = verb;
  for (let i = first + 1; i < tokens.length; i++) {
    const token = tokens[i] as Token;
    if (is(token, CLOSE) && depth === 0) break;
    if (is(token, OPEN)) depth += 1;
    else if (is(token, CLOSE)) depth -= 1;
    // Only words of these lengths matter; the text of others is not made.
    else if (depth === 0 && token.kind === 'word' && token.end - token.start >= 5 && token.end - token.start <= 6) {
      const word = textOf(token);
      // Behind these, a keyword is the name of a column: `AS where`, `t.limit`.
      const isName = is(last, DOT) || textOf(last) === 'as';
      if (word === 'where' && !isName) where ??= token;
      else if (BEHIND_WHERE.has(word) && !isName) break;
    }
    last = token;
  }
  const at = last.end;
  if (where === null) places.push({ start: at, end: at, put: (condition) => ` WHERE (${condition})` });
  else
    places.push(
      { start: where.end, end: where.end, put: (condition) => ` (${condition}) AND (` },
      { start: at, end: at, put: () => ')' },
    );
  return places;
}
