import type { Token } from './lexer.js';

const [OPEN, CLOSE, DOT, SEMICOLON] = ['(', ')', '.', ';'].map((c) => c.charCodeAt(0)) as [
  number,
  number,
  number,
  number,
];

/** Where a word stands that begins a clause. */
interface ClauseWord {
  readonly word: string;
  /** Its place among the tokens. */
  readonly at: number;
}

/** Keywords, in lower case, to be found where they begin clauses of one level of a query: outside of parentheses there, and not as names. */
export class ClauseWords {
  readonly #words: ReadonlySet<string>;
  readonly #shortest: number;
  readonly #longest: number;

  constructor(words: readonly string[]) {
    this.#words = new Set(words);
    const lengths = words.map((word) => word.length);
    this.#shortest = Math.min(...lengths);
    this.#longest = Math.max(...lengths);
  }

  /**
   * @param tokens of the text, as the lexer has recorded them @param first where to begin among them
   * @returns the words, in order, and the place of the parenthesis or semicolon that ends the level, or behind the last token
   */
  in(
    text: Buffer,
    tokens: readonly Token[],
    first: number,
  ): { readonly found: readonly ClauseWord[]; readonly end: number } {
    const found: ClauseWord[] = [];
    let depth = 0;
    let at = first;
    for (; at < tokens.length; at++) {
      const token = tokens[at] as Token;
      const length = token.end - token.start;
      const byte = length === 1 ? text[token.start] : null;
      if (depth === 0 && (byte === CLOSE || byte === SEMICOLON)) break;
      if (byte === OPEN) depth += 1;
      else if (byte === CLOSE) depth -= 1;
      // The text of others is not made.
      else if (depth === 0 && token.kind === 'word' && length >= this.#shortest && length <= this.#longest) {
        const word = wordOf(text, token);
        if (this.#words.has(word) && !isName(text, tokens, at)) found.push({ word, at });
      }
    }
    return { found, end: at };
  }
}

/** A token's text in lower case. */
export function wordOf(text: Buffer, { start, end }: Token): string {
  return text.toString('latin1', start, end).toLowerCase();
}

/** Whether a keyword is a column's name there: `AS where`, `t.limit`; but not behind `t.as`. */
function isName(text: Buffer, tokens: readonly Token[], at: number): boolean {
  const isDot = (token: Token | undefined) =>
    token !== undefined && token.end - token.start === 1 && text[token.start] === DOT;
  const prior = tokens[at - 1];
  return isDot(prior) || (prior !== undefined && wordOf(text, prior) === 'as' && !isDot(tokens[at - 2]));
}
