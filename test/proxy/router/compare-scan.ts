import { scanSync } from 'libpg-query';
import { Lexer, type TokenKind } from '../../../proxy/router/lexer.js';

/** Boundaries and coarse kinds of every token, as text; null when the scanner rejects the input. */
export type Scan = string | null;

const lexer = new Lexer();

export function ours(text: Buffer): Scan {
  if (!lexer.scan(text, true)) return null;
  return lexer.tokens.map((t) => `${t.start}-${t.end} ${COARSE[t.kind]}`).join('\n');
}

const COARSE: Record<TokenKind, string> = {
  string: 'string',
  estring: 'string',
  ustring: 'ustring',
  dollar: 'string',
  integer: 'integer',
  float: 'float',
  bit: 'bit',
  hex: 'hex',
  backslash: 'string',
  null: 'word',
  boolean: 'word',
  word: 'word',
  quoted: 'quoted',
  param: 'param',
  operator: 'operator',
  other: 'other',
};

/**
 * libpg-query's scanner, which is PostgreSQL's with two changes: it gives comments as tokens, and so does not let a line
 * comment stand inside a continued string, and it accepts an identifier glued to a parameter. 'unusable' when its JSON is broken.
 */
export function theirs(text: Buffer): Scan | 'unusable' {
  let tokens: ReturnType<typeof scanSync>['tokens'];
  try {
    tokens = scanSync(text.toString('utf8')).tokens;
  } catch (error) {
    // Whether escapes make valid characters depends on the encoding: ours leaves that to the server.
    if (error instanceof SyntaxError && /"invalid by/.test(error.message)) return 'unusable';
    if (error instanceof SyntaxError)
      return /^Unexpected token '[a-z]', "[a-z]/.test(error.message) ? null : 'unusable';
    throw error;
  }
  return tokens
    .filter((t) => t.tokenName !== 'SQL_COMMENT' && t.tokenName !== 'C_COMMENT')
    .map((t) => `${t.start}-${t.end} ${kindOf(text.toString('latin1', t.start, t.end), t.tokenName)}`)
    .join('\n');
}

function kindOf(text: string, name: string): string {
  if (name === 'SCONST') return 'string';
  if (name === 'ICONST') return 'integer';
  if (name === 'FCONST') return 'float';
  if (name === 'PARAM') return 'param';
  if (/^b'/i.test(text)) return 'bit';
  if (/^x'/i.test(text)) return 'hex';
  if (/^u&'/i.test(text)) return 'ustring';
  if (/^"|^u&"/i.test(text)) return 'quoted';
  if (/^[a-z_\x80-\xff]/i.test(text)) return 'word';
  if (/^(::|:=|\.\.|:)$/.test(text) || /^[~!@#^&|`?+\-*/%<>=]+$/.test(text)) return 'operator';
  return 'other';
}
