import { Lexer } from './lexer.js';

const BACKSLASH = 0x5c;
const QUOTE = 0x27;
const FILLER = 0x78;

const lexer = new Lexer();

/**
 * A text as it was meant while standard_conforming_strings was off, put so that it is read in the same way while it is on, which the parser
 * takes for granted: in plain strings, backslashes and what they escape become other characters. Every token stays where it is; the
 * values of these strings are lost, and nothing may depend on them.
 */
export function conforming(text: Buffer): Buffer {
  if (!text.includes(BACKSLASH) || !lexer.scan(text, false, false) || !lexer.sawBackslash) return text;
  const copy = Buffer.from(text);
  for (let i = 0; i < lexer.literalCount; i++) {
    const { kind, start, end } = lexer.literal(i);
    if (kind !== 'backslash') continue;
    for (let at = start; at < end; at++) {
      if (copy[at] !== BACKSLASH) continue;
      copy[at] = FILLER;
      const escaped = copy[at + 1];
      if (escaped === QUOTE || escaped === BACKSLASH) copy[at + 1] = FILLER;
    }
  }
  return copy;
}
