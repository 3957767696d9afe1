import { Lexer, type Token } from './lexer.js';

/** Byte offsets in the text that was given. */
export interface Place {
  readonly start: number;
  readonly end: number;
}

const lexer = new Lexer();

/** Where the name stands in PREPARE, and where the statement to be prepared begins. Null if it is not written in the usual way. */
export function prepareParts(text: Buffer): { readonly name: Place; readonly query: number } | null {
  const tokens = tokensOf(text);
  const name = tokens[1];
  if (name === undefined || !isName(name)) return null;
  let i = 2;
  let depth = 0;
  for (; i < tokens.length; i++) {
    const token = tokens[i] as Token;
    const word = text.toString('latin1', token.start, token.end);
    if (word === '(') depth++;
    else if (word === ')') depth--;
    else if (depth === 0 && token.kind === 'word' && word.toLowerCase() === 'as') break;
  }
  const query = tokens[i + 1];
  return query === undefined ? null : { name, query: query.start };
}

/** Where the name stands in EXECUTE, alone or inside EXPLAIN or CREATE TABLE AS. */
export function executeName(text: Buffer): Place | null {
  const tokens = tokensOf(text);
  for (let i = tokens.length - 2; i >= 0; i--) {
    const token = tokens[i] as Token;
    const name = tokens[i + 1] as Token;
    if (token.kind === 'word' && isName(name) && /^execute$/i.test(text.toString('latin1', token.start, token.end)))
      return name;
  }
  return null;
}

/** Where the name stands in DEALLOCATE. */
export function deallocateName(text: Buffer): Place | null {
  const name = tokensOf(text).at(-1);
  return name !== undefined && isName(name) ? name : null;
}

function tokensOf(text: Buffer): Token[] {
  return lexer.scan(text, true) ? [...lexer.tokens] : [];
}

function isName(token: Token): boolean {
  return token.kind === 'word' || token.kind === 'quoted';
}
