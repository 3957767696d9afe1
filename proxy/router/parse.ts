import { isUtf8 } from 'node:buffer';
import { type Node, parseSync, SqlError } from 'libpg-query';
import { Literals, walk } from './ast.js';
import { Lexer } from './lexer.js';

export interface Parsed {
  readonly statements: readonly {
    readonly node: Node /** Byte offsets in the text that was given. */;
    readonly start: number;
    readonly end: number;
  }[];
  readonly literals: Literals;
  /** Names in it may not be what they seem: the text is in an encoding that is not UTF-8. */
  readonly garbledNames: boolean;
}

const lexer = new Lexer();

/**
 * Parses a text with libpg-query (`loadModule` must have been awaited), or null if PostgreSQL's grammar refuses it.
 * libpg-query has two ways of its own that are smoothed here: it takes UTF-8 only, and comments for tokens, which may not stand inside a continued string,
 * nor behind words that mean something else before some others (NOT IN, WITH TIME ZONE, NULLS FIRST, UESCAPE).
 */
export function parse(text: Buffer): Parsed | null {
  const utf8 = isUtf8(text);
  // Bytes of another encoding become characters of two bytes each; tokens keep their order, so literals keep their ordinals.
  const source = utf8 ? Buffer.from(text) : Buffer.from(text.toString('latin1'), 'utf8');
  if (!lexer.scan(source)) return null;
  // libpg-query refuses what has nothing in it; PostgreSQL answers EmptyQueryResponse.
  if (lexer.keyLength === 0) return { statements: [], literals: new Literals(source, []), garbledNames: false };
  const { gaps, comments } = lexer;
  for (let i = 0; i < gaps.length; i += 2) blank(source, (gaps[i] as number) + 1, (gaps[i + 1] as number) - 1);
  for (let i = 0; i < comments.length; i += 2) blank(source, comments[i] as number, comments[i + 1] as number);
  const tokens = Array.from({ length: lexer.literalCount }, (_, i) => lexer.literal(i));
  let result: ReturnType<typeof parseSync>;
  try {
    result = parseSync(source.toString('utf8'));
  } catch (error) {
    if (error instanceof SqlError) return null;
    throw error;
  }
  const back = utf8
    ? (offset: number) => offset
    : (offset: number) => Buffer.from(source.subarray(0, offset).toString('utf8'), 'latin1').length;
  const statements = (result.stmts ?? []).flatMap((raw) => {
    if (!raw.stmt) return [];
    const from = raw.stmt_location ?? 0;
    const to = raw.stmt_len ? from + raw.stmt_len : source.length;
    return [{ node: raw.stmt, start: back(from), end: back(to) }];
  });
  let garbledNames = false;
  if (!utf8) {
    for (const { node } of statements) {
      const channel = 'ListenStmt' in node ? node.ListenStmt : 'UnlistenStmt' in node ? node.UnlistenStmt : null;
      if (Buffer.from(channel?.conditionname ?? '').some((byte) => byte > 0x7f)) garbledNames = true;
    }
    walk(result.stmts, {
      rangeVar: (t) => {
        if (Buffer.from(`${t.schemaname ?? ''}${t.relname ?? ''}`, 'utf8').some((byte) => byte > 0x7f))
          garbledNames = true;
      },
    });
  }
  return { statements, literals: new Literals(source, tokens), garbledNames };
}

/** Everything but ends of lines becomes spaces. */
function blank(text: Buffer, start: number, end: number): void {
  for (let i = start; i < end; i++) if (text[i] !== 10 && text[i] !== 13) text[i] = 32;
}
