import type { LiteralToken } from './route.js';

/** Kinds of literals, by their code in {@link Lexer.literalKinds}. */
const LITERAL_KINDS = [
  'string',
  'estring',
  'ustring',
  'dollar',
  'integer',
  'float',
  'bit',
  'hex',
  'backslash',
  'null',
  'boolean',
] as const;
const STRING = 0;
const ESTRING = 1;
const USTRING = 2;
const DOLLAR = 3;
const INTEGER = 4;
const FLOAT = 5;
const BIT = 6;
const HEX = 7;
const BACKSLASH_STRING = 8;
const NULL_WORD = 9;
const BOOLEAN = 10;

/** What a recorded token is; only for tests and tools (see {@link Lexer.scan}). */
export type TokenKind = LiteralToken['kind'] | 'word' | 'quoted' | 'param' | 'operator' | 'other';
export interface Token {
  readonly kind: TokenKind;
  readonly start: number;
  readonly end: number;
}

/** Neighbours in a list, IN (…) or the rows of VALUES, that are the same but for their values: a template has the first one only. */
export interface Run {
  /** Rows of VALUES; else items of IN. */
  readonly rows: boolean;
  /** The first literal, and how many each item has. */
  readonly literal: number;
  readonly literalStride: number;
  /** The number of the first parameter that the items bring, and how many each does. */
  readonly param: number;
  readonly paramStride: number;
  /** Items, the first included. */
  count: number;
  /** What of the text the template does not have: from behind the first item to behind the last. */
  readonly start: number;
  end: number;
}

/** More runs than this in one text stay as they are: every parameter looks through them. */
const MAX_RUNS = 64;

// Character classes of scan.l, one bit each, looked up by byte.
const SPACE = 1;
const IDENT_START = 2;
const IDENT_CONT = 4;
const DIGIT = 8;
const OPERATOR = 16;
const HEXDIGIT = 32;
/** Characters that allow a multi-character operator to end in + or -. */
const UNUSUAL = 64;
const SELF = 128;

const CLASS = new Uint8Array(256);
for (let c = 0; c < 256; c++) {
  const s = String.fromCharCode(c);
  let bits = 0;
  if (/[ \t\n\r\f\v]/.test(s)) bits |= SPACE;
  if (/[A-Za-z_]/.test(s) || c >= 0x80) bits |= IDENT_START | IDENT_CONT;
  if (/[0-9$]/.test(s)) bits |= IDENT_CONT;
  if (/[0-9]/.test(s)) bits |= DIGIT;
  if (/[0-9A-Fa-f]/.test(s)) bits |= HEXDIGIT;
  if (/[~!@#^&|`?+\-*/%<>=]/.test(s)) bits |= OPERATOR;
  if (/[~!@#^&|`?%]/.test(s)) bits |= UNUSUAL;
  if (/[,()[\].;:+\-*/%^<>=]/.test(s)) bits |= SELF;
  CLASS[c] = bits;
}
// 0xA0 matches JavaScript's idea of nothing here, but a byte above 0x7F is never a space to scan.l.
for (let c = 0x80; c < 256; c++) CLASS[c] = IDENT_START | IDENT_CONT;

const LOWER = new Uint8Array(256);
for (let c = 0; c < 256; c++) LOWER[c] = c >= 65 && c <= 90 ? c + 32 : c;

/** What stands in the template for each kind of literal: one word per *grammar token*, so that a template fixes the parse tree's shape. */
const PLACEHOLDERS = [':str', ':str', ':str', ':str', ':int', ':num', ':bit', ':hex', ':str'].map((s) =>
  Buffer.from(s),
);

const ANY = Buffer.from(':any');

const NEWLINE = 10;
const RETURN = 13;
const QUOTE = 39;
const DQUOTE = 34;
const DASH = 45;
const DOT = 46;
const SLASH = 47;
const STAR = 42;
const DOLLAR_SIGN = 36;
const BACKSLASH = 92;
const UNDERSCORE = 95;

// What the last token was, for spacing and for UESCAPE.
const LAST_NONE = 0;
const LAST_WORD = 1;
const LAST_UNICODE = 2;
const LAST_UESCAPE = 3;
/** No space after it: ( [ . and the N of N'…'. */
const LAST_OPEN = 4;
const LAST_OTHER = 5;
/** The words that lists stand behind. */
const LAST_IN = 6;
const LAST_VALUES = 7;
/** The parenthesis that ends a row of VALUES, and the comma behind it. */
const LAST_ROW = 8;
const LAST_ROW_COMMA = 9;

/** NAMEDATALEN in PostgreSQL's pg_config_manual.h: an operator of this length is an error. */
const NAMEDATALEN = 64;

/**
 * PostgreSQL 18's scan.l by hand, in one pass over the bytes of a statement in UTF-8 or any other ASCII superset. It makes two
 * things and no garbage: the *template key* (tokens one after the other; literals replaced by a word for their kind; comments
 * dropped; unquoted words folded) and the places of the literals. Two texts have the same key only if their tokens are the same but
 * for the literals' values and the lengths of lists.
 *
 * Lists are those of IN (…) and the rows of VALUES: of neighbours that are the same but for values only the first is in the key, the
 * others are a {@link Run}. So that the numbers of parameters do not tell how long a list is, a parameter that has the next number
 * is `$+`, and others count as if each run had one item only. Where that is not possible (numbers out of order, or a parameter of
 * a list that is used elsewhere too) lists of parameters stay as they are.
 *
 * In the rows of INSERT … VALUES a constant that is all of its column, be it a number, a string, NULL, true or false, is `:any`, and a
 * literal: which of them a row has does not make another template. Where it is a key, and none of the three words can be one, the text has
 * to be planned by itself.
 *
 * The arrays are reused: whoever wants to keep something copies it before the next scan.
 */
export class Lexer {
  literalCount = 0;
  literalKinds = new Uint8Array(64);
  literalStarts = new Int32Array(64);
  literalEnds = new Int32Array(64);
  /** Statements: pieces between semicolons outside parentheses that hold at least one token, from first to last token. */
  statementCount = 0;
  statementStarts = new Int32Array(16);
  statementEnds = new Int32Array(16);
  /** The word ATOMIC occurs: semicolons may be inside a function's body, and only the parser knows. */
  sawAtomic = false;
  /** Where strings go on behind white space and line comments: from the closing quote to behind the next opening one, in pairs. */
  readonly gaps: number[] = [];
  /** Where other comments begin and end, in pairs. */
  readonly comments: number[] = [];
  /** A byte above 0x7F occurs. */
  sawHighByte = false;
  /** With standard_conforming_strings off: a plain string has a backslash in it. */
  sawBackslash = false;
  /** Items of lists that the key does not have, in the order of the text. */
  readonly runs: Run[] = [];
  /** NULL, true or false is among the literals. */
  sawConstantWord = false;
  /** Filled only when asked for. */
  readonly tokens: Token[] = [];

  #words = new Int32Array(1024);
  #out = Buffer.from(this.#words.buffer);
  #length = 0;
  #last = LAST_NONE;
  #record = false;
  #conforming = true;

  /** The highest number of a parameter so far. */
  #param = 0;
  /** Numbers of parameters stay as they are from here on. */
  #absolute = false;
  /** They should have from the start. */
  #conflict = false;

  /** Depth of parentheses inside of which the items of the list at hand are; 0: there is none. */
  #listDepth = 0;
  #ofRows = false;
  /** They are rows of an INSERT, whose columns may have any constants. */
  #ofInsert = false;
  /** Where the column at hand begins in the key, and where the statement does. */
  #columnStart = 0;
  #statementStart = 0;
  /** Of an array, inside of which a comma ends no column. */
  #brackets = 0;
  /** Parameters seen before the list. */
  #listParam = 0;
  /** The item at hand: where it begins in the key, literals and parameters seen before it. */
  #itemStart = 0;
  #itemLiteral = 0;
  #itemParam = 0;
  /** It uses a parameter of the list again. */
  #itemEntangled = false;
  /** The item before it, as it is in the key; no length: there is none. */
  #priorStart = 0;
  #priorEnd = 0;
  #priorLiteral = 0;
  #priorParam = 0;
  #priorTextEnd = 0;
  #priorInRun = false;

  /**
   * Scans a text. False if PostgreSQL's scanner would reject it (unterminated quote, junk after a number …).
   * `record` also fills {@link tokens}, slowly. `conforming`: standard_conforming_strings.
   */
  scan(text: Uint8Array, record = false, conforming = true): boolean {
    this.#conforming = conforming;
    this.#absolute = false;
    this.#begin(record);
    if (this.#run(text)) return true;
    if (!this.#conflict) return false;
    this.#absolute = true;
    this.#begin(record);
    return this.#run(text);
  }

  #begin(record: boolean): void {
    this.#conflict = false;
    this.#param = 0;
    this.#listDepth = 0;
    this.runs.length = 0;
    this.#statementStart = 0;
    this.sawBackslash = false;
    this.sawConstantWord = false;
    this.literalCount = 0;
    this.statementCount = 0;
    this.sawAtomic = false;
    this.sawHighByte = false;
    this.gaps.length = 0;
    this.comments.length = 0;
    this.#length = 0;
    this.#last = LAST_NONE;
    this.#record = record;
    if (record) this.tokens.length = 0;
  }

  /** The key of the text last scanned. */
  key(): string {
    return this.#out.toString('latin1', 0, this.#length);
  }

  /** The length of {@link key} without making it. */
  get keyLength(): number {
    return this.#length;
  }

  /** A hash of {@link key} (MurmurHash3, 32 bits). */
  hash(seed: number): number {
    const length = this.#length;
    const words = this.#words;
    const n = (length + 3) >> 2;
    for (let i = length; i < n << 2; i++) this.#out[i] = 0;
    let h = seed;
    for (let i = 0; i < n; i++) {
      let k = Math.imul(words[i] as number, 0xcc9e2d51);
      k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
      h ^= k;
      h = (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0;
    }
    h ^= length;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return h ^ (h >>> 16);
  }

  /** The bytes of {@link key} in whole words, the last one filled up with zeros. To be asked behind {@link hash}. */
  keyWords(): Int32Array {
    return this.#words.slice(0, (this.#length + 3) >> 2);
  }

  /** Whether the key is the one of `length` bytes that `words` were of. To be asked behind {@link hash}. */
  keyIs(words: Int32Array, length: number): boolean {
    if (length !== this.#length) return false;
    const mine = this.#words;
    for (let i = 0; i < words.length; i++) if (words[i] !== mine[i]) return false;
    return true;
  }

  literal(i: number): LiteralToken {
    return tokenOf(this.literalKinds, this.literalStarts, this.literalEnds, i);
  }

  /** Whether it is NULL, true or false. */
  isConstantWord(i: number): boolean {
    return (this.literalKinds[i] as number) >= NULL_WORD;
  }

  /** All literals, to be kept. */
  allLiterals(): { at(ordinal: number): LiteralToken | undefined } {
    const n = this.literalCount;
    const kinds = this.literalKinds.slice(0, n);
    const starts = this.literalStarts.slice(0, n);
    const ends = this.literalEnds.slice(0, n);
    return { at: (i) => (i < n ? tokenOf(kinds, starts, ends, i) : undefined) };
  }

  #run(text: Uint8Array): boolean {
    const n = text.length;
    let i = 0;
    let depth = 0;
    let first = -1; // start of the statement's first token
    let lastEnd = 0;
    while (i < n) {
      const c = text[i] as number;
      const bits = CLASS[c] as number;
      if (bits & SPACE) {
        i++;
        continue;
      }
      const next = i + 1 < n ? (text[i + 1] as number) : 0;
      if (c === DASH && next === DASH) {
        const end = lineEnd(text, i + 2);
        this.comments.push(i, end);
        i = end;
        continue;
      }
      if (c === SLASH && next === STAR) {
        const end = commentEnd(text, i + 2);
        if (end < 0) return false;
        this.comments.push(i, end);
        i = end;
        continue;
      }
      const start = i;
      // One token's bytes in the key are at most its length, a space and a placeholder.
      if (this.#length + 8 > this.#out.length) this.#grow(8);

      if (bits & IDENT_START) {
        if (next === QUOTE && isPrefix(c)) {
          i = this.#prefixedString(text, c, i);
        } else if ((c === 117 || c === 85) && next === 38 && i + 2 < n && text[i + 2] === QUOTE) {
          i = this.#quoted(text, i + 3, i, USTRING);
          this.#last = LAST_UNICODE;
        } else if ((c === 117 || c === 85) && next === 38 && i + 2 < n && text[i + 2] === DQUOTE) {
          i = this.#quotedIdentifier(text, i, i + 3);
          this.#last = LAST_UNICODE;
        } else i = this.#word(text, i);
      } else if (bits & DIGIT || (c === DOT && (CLASS[next] as number) & DIGIT)) {
        i = this.#number(text, i);
      } else if (c === QUOTE) {
        i = this.#quoted(text, i + 1, i, STRING);
      } else if (c === DQUOTE) {
        i = this.#quotedIdentifier(text, i, i + 1);
      } else if (c === DOLLAR_SIGN) {
        i = this.#dollar(text, i);
      } else if (bits & OPERATOR) {
        i = this.#operator(text, i);
      } else {
        // One character of punctuation, or :: := .., or a character that no rule knows (the grammar refuses it).
        if (c === 0) return false;
        let end = i + 1;
        if (c === 58 && (next === 58 || next === 61)) end++;
        else if (c === DOT && next === DOT) end++;
        if (c === 59 && depth <= 0) {
          if (first >= 0) this.#statement(first, lastEnd);
          first = -1;
        }
        if (c === 40) {
          depth++;
          this.#opens(depth);
        } else if (c === 41) {
          this.#closes(depth, lastEnd, end);
          depth--;
        } else if (c === 44) this.#comma(depth, lastEnd);
        else {
          // What is in brackets or behind a semicolon is not looked through for items.
          if ((c === 91 && !this.#ofRows) || c === 59) this.#listDepth = 0;
          this.#punctuation(c, end - i, next);
          if (c === 91) this.#brackets += 1;
          else if (c === 93) this.#brackets -= 1;
          else if (c === 59) this.#statementStart = this.#length + 1; // behind the space
        }
        if (this.#record) this.#recordToken(end - i > 1 || c === 58 ? 'operator' : 'other', i, end);
        i = end;
        if (c !== 59 || depth > 0) {
          if (first < 0) first = start;
          lastEnd = i;
        }
        continue;
      }
      if (i < 0) return false;
      if (first < 0) first = start;
      lastEnd = i;
    }
    if (first >= 0) this.#statement(first, lastEnd);
    return true;
  }

  /** B'…' X'…' E'…' N'…' */
  #prefixedString(text: Uint8Array, prefix: number, start: number): number {
    switch (prefix | 32) {
      case 98: // b
        return this.#quoted(text, start + 2, start, BIT);
      case 120: // x
        return this.#quoted(text, start + 2, start, HEX);
      case 101: // e
        return this.#quoted(text, start + 2, start, ESTRING);
      default:
        // N'…' is the keyword NCHAR and a string. Without the space it cannot be taken for the type n and a string.
        this.#space();
        this.#out[this.#length++] = 110;
        if (this.#record) this.#recordToken('word', start, start + 1);
        this.#last = LAST_OPEN;
        return this.#quoted(text, start + 2, start + 1, STRING);
    }
  }

  /** The rest of a quoted literal from `i`, behind its opening quote. Its end, or -1. */
  #quoted(text: Uint8Array, i: number, start: number, kind: number): number {
    const n = text.length;
    // With standard_conforming_strings off, plain strings are as E'…' (xqstart in scan.l).
    const escapes = kind === ESTRING || (kind === STRING && !this.#conforming);
    let surrogate = false; // the first half of a \u surrogate pair stands just before
    for (;;) {
      if (i >= n) return -1;
      const c = text[i] as number;
      if (c === QUOTE) {
        // Doubled: xqdouble; x'…' and b'…' have no such rule, there a second quote ends up as a new string.
        if (kind !== BIT && kind !== HEX && i + 1 < n && text[i + 1] === QUOTE) {
          if (surrogate) return -1;
          i += 2;
          continue;
        }
        if (surrogate) return -1;
        const continued = continuation(text, i + 1);
        if (continued < 0) break;
        this.gaps.push(i, continued);
        i = continued;
        continue;
      }
      if (c >= 0x80) this.sawHighByte = true;
      if (escapes && c === BACKSLASH && i + 1 < n) {
        if (kind === STRING || kind === BACKSLASH_STRING) {
          kind = BACKSLASH_STRING;
          this.sawBackslash = true;
        }
        const unicode = text[i + 1] === 117 ? 4 : text[i + 1] === 85 ? 8 : 0;
        if (unicode > 0) {
          const code = hex(text, i + 2, unicode);
          if (code < 0) return -1;
          const second = code >= 0xdc00 && code <= 0xdfff;
          if (second !== surrogate) return -1;
          surrogate = code >= 0xd800 && code <= 0xdbff;
          if (code === 0 || code > 0x10ffff) return -1;
          i += 2 + unicode;
          continue;
        }
        if (surrogate) return -1;
        if ((text[i + 1] as number) >= 0x80) this.sawHighByte = true;
        // A NUL is invalid in every encoding. Other bytes may be or not: that is for the server to say.
        if (isNulEscape(text, i + 1)) return -1;
        i += 2;
        continue;
      }
      if (surrogate) return -1;
      i++;
    }
    i++;
    if (this.#last === LAST_UESCAPE) {
      // The escape character changes what the name or string before it means: it stays in the key.
      this.#raw(text, start, i);
      this.#last = LAST_OTHER;
      if (this.#record) this.#recordToken(LITERAL_KINDS[kind] as TokenKind, start, i);
    } else this.#literal(kind, start, i);
    return i;
  }

  /** "…" and U&"…", kept as they are. */
  #quotedIdentifier(text: Uint8Array, start: number, from: number): number {
    const n = text.length;
    let i = from;
    for (;;) {
      if (i >= n) return -1;
      const c = text[i] as number;
      if (c === DQUOTE) {
        if (i + 1 >= n || text[i + 1] !== DQUOTE) break;
        i++;
      } else if (c >= 0x80) this.sawHighByte = true;
      i++;
    }
    if (i === from) return -1; // zero-length delimited identifier
    i++;
    this.#raw(text, start, i);
    this.#last = LAST_WORD;
    if (this.#record) this.#recordToken('quoted', start, i);
    return i;
  }

  #word(text: Uint8Array, start: number): number {
    const n = text.length;
    let i = start + 1;
    while (i < n && (CLASS[text[i] as number] as number) & IDENT_CONT) i++;
    const length = i - start;
    if (this.#length + length + 1 > this.#out.length) this.#grow(length + 1);
    const unicode = this.#last === LAST_UNICODE;
    this.#space();
    const out = this.#out;
    let o = this.#length;
    let high = 0;
    for (let j = start; j < i; j++) {
      const c = text[j] as number;
      high |= c;
      out[o++] = LOWER[c] as number;
    }
    if (high >= 0x80) this.sawHighByte = true;
    this.#last = LAST_WORD;
    if (length === 2) {
      if (out[o - 2] === 105 && out[o - 1] === 110 && out[o - 3] !== DOT) this.#last = LAST_IN;
    } else if (length === 6 && isWord(out, o - 6, VALUES)) {
      if (out[o - 7] !== DOT) this.#last = LAST_VALUES;
      this.#listDepth = 0;
    } else if (
      this.#listDepth > 0 &&
      ((length === 6 && isWord(out, o - 6, SELECT)) ||
        (length === 5 && isWord(out, o - 5, TABLE)) ||
        (length === 4 && isWord(out, o - 4, WITH)))
    ) {
      // A query in a list: how often it is there may matter.
      this.#listDepth = 0;
    } else if (length === 6 && out[o - 6] === 97 && out.toString('latin1', o - 6, o) === 'atomic')
      this.sawAtomic = true;
    else if (unicode && length === 7 && out.toString('latin1', o - 7, o) === 'uescape') this.#last = LAST_UESCAPE;
    this.#length = o;
    if (this.#record) this.#recordToken('word', start, i);
    return i;
  }

  #number(text: Uint8Array, start: number): number {
    const n = text.length;
    let i = start;
    let kind = INTEGER;
    let radix = 10;
    if (text[i] === 48 && i + 1 < n) {
      const p = (text[i + 1] as number) | 32;
      radix = p === 120 ? 16 : p === 111 ? 8 : p === 98 ? 2 : 10;
    }
    if (radix !== 10) {
      i = digits(text, i + 2, radix, true);
      if (i < 0) return -1;
    } else {
      if (text[i] !== DOT) i = digits(text, i, 10, false);
      // "1..10" is an integer and the two dots.
      if (i < n && text[i] === DOT && !(i > start && i + 1 < n && text[i + 1] === DOT)) {
        kind = FLOAT;
        i++;
        if (i < n && (CLASS[text[i] as number] as number) & DIGIT) i = digits(text, i, 10, false);
      }
      if (i < n && ((text[i] as number) | 32) === 101) {
        let j = i + 1;
        if (j < n && (text[j] === 43 || text[j] === DASH)) j++;
        if (j >= n || !((CLASS[text[j] as number] as number) & DIGIT)) return -1;
        kind = FLOAT;
        i = digits(text, j, 10, false);
      }
    }
    if (i < n && (CLASS[text[i] as number] as number) & IDENT_CONT && isJunk(text, start, i)) return -1;
    if (kind === INTEGER && !fitsInt4(text, start, i, radix)) kind = FLOAT; // process_integer_literal
    this.#literal(kind, start, i);
    return i;
  }

  /** $n, $tag$…$tag$ or a lone $. */
  #dollar(text: Uint8Array, start: number): number {
    const n = text.length;
    let i = start + 1;
    if (i < n && (CLASS[text[i] as number] as number) & DIGIT) {
      let value = 0;
      while (i < n && (CLASS[text[i] as number] as number) & DIGIT) {
        value = value * 10 + (text[i] as number) - 48;
        if (value > 0x7fffffff) return -1; // parameter number too large
        i++;
      }
      if (i < n && (CLASS[text[i] as number] as number) & IDENT_START) return -1; // trailing junk after parameter
      if (!this.#parameter(text, start, i, value)) return -1;
      this.#last = LAST_OTHER;
      if (this.#record) this.#recordToken('param', start, i);
      return i;
    }
    if (i < n && (CLASS[text[i] as number] as number) & IDENT_START) {
      i++;
      while (i < n && text[i] !== DOLLAR_SIGN && (CLASS[text[i] as number] as number) & IDENT_CONT) i++;
    }
    if (i >= n || text[i] !== DOLLAR_SIGN) {
      this.#raw(text, start, start + 1);
      this.#last = LAST_OTHER;
      if (this.#record) this.#recordToken('other', start, start + 1);
      return start + 1;
    }
    const tagLength = i + 1 - start;
    i++;
    // The end is the next place where the whole delimiter stands. A $ can begin a new candidate, so advance by one.
    for (; i + tagLength <= n; i++) {
      const c = text[i] as number;
      if (c >= 0x80) this.sawHighByte = true;
      if (c !== DOLLAR_SIGN) continue;
      let k = 1;
      while (k < tagLength && text[i + k] === text[start + k]) k++;
      if (k === tagLength) {
        this.#literal(DOLLAR, start, i + tagLength);
        return i + tagLength;
      }
    }
    return -1;
  }

  /** $n in the key. False: the numbers have to stay as they are. */
  #parameter(text: Uint8Array, start: number, end: number, number: number): boolean {
    if (!this.#absolute && number === this.#param + 1) {
      this.#param = number;
      if (this.#length + 3 > this.#out.length) this.#grow(3);
      this.#space();
      this.#out[this.#length++] = DOLLAR_SIGN;
      this.#out[this.#length++] = 43;
      return true;
    }
    let canonical = number;
    if (!this.#absolute) {
      for (const run of this.runs) {
        if (run.paramStride === 0 || number < run.param) continue;
        if (number > this.#param || number < run.param + run.count * run.paramStride) {
          this.#conflict = true;
          return false;
        }
        canonical -= (run.count - 1) * run.paramStride;
      }
      if (number > this.#param) this.#absolute = true;
    }
    if (number > this.#listParam) this.#itemEntangled = true;
    if (canonical === number) this.#raw(text, start, end);
    else {
      const digits = Buffer.from(`$${canonical}`);
      this.#raw(digits, 0, digits.length);
    }
    return true;
  }

  #operator(text: Uint8Array, start: number): number {
    const n = text.length;
    let end = start + 1;
    let unusual = (CLASS[text[start] as number] as number) & UNUSUAL;
    // Up to the first comment start: "--" and "/*" end an operator wherever they stand in it.
    while (end < n && (CLASS[text[end] as number] as number) & OPERATOR) {
      const c = text[end] as number;
      if (end + 1 < n && ((c === DASH && text[end + 1] === DASH) || (c === SLASH && text[end + 1] === STAR))) break;
      unusual |= (CLASS[c] as number) & UNUSUAL;
      end++;
    }
    // A + or - at the end belongs to what follows, unless a character that SQL's own operators lack stands before it.
    if (!unusual) while (end - start > 1 && (text[end - 1] === 43 || text[end - 1] === DASH)) end--;
    if (end - start >= NAMEDATALEN) return -1;
    this.#raw(text, start, end);
    this.#last = LAST_OTHER;
    if (this.#record) this.#recordToken('operator', start, end);
    return end;
  }

  /** ( */
  #opens(depth: number): void {
    const last = this.#last;
    this.#punctuation(40, 1, 0);
    if (this.#listDepth > 0 || depth <= 0) return;
    if (last !== LAST_IN && last !== LAST_VALUES && last !== LAST_ROW_COMMA) return;
    this.#listDepth = depth;
    if (last !== LAST_ROW_COMMA) {
      this.#ofRows = last === LAST_VALUES;
      this.#ofInsert = this.#ofRows && depth === 1 && isWord(this.#out, this.#statementStart, INSERT);
      this.#listParam = this.#param;
      this.#brackets = 0;
      this.#priorEnd = this.#priorStart = 0;
    }
    this.#columnStart = this.#length;
    this.#beginItem(this.#ofRows ? this.#length - 1 : this.#length);
  }

  /** ) */
  #closes(depth: number, lastEnd: number, end: number): void {
    const ends = this.#listDepth > 0 && depth === this.#listDepth;
    if (ends) {
      if (!this.#ofRows) this.#endItem(lastEnd);
      else if (this.#ofInsert) this.#endColumn(lastEnd);
    }
    this.#punctuation(41, 1, 0);
    if (!ends) return;
    this.#listDepth = 0;
    if (!this.#ofRows) return;
    this.#endItem(end);
    this.#last = LAST_ROW;
  }

  #comma(depth: number, lastEnd: number): void {
    const last = this.#last;
    const inList = this.#listDepth > 0 && depth === this.#listDepth;
    const ends = inList && !this.#ofRows;
    const endsColumn = inList && this.#ofInsert && this.#brackets === 0;
    if (ends) this.#endItem(lastEnd);
    else if (endsColumn) this.#endColumn(lastEnd);
    this.#punctuation(44, 1, 0);
    if (endsColumn) this.#columnStart = this.#length;
    if (last !== LAST_ROW && !ends) return;
    // The item begins with its first token: the space before it is not its own.
    this.#out[this.#length++] = 32;
    this.#last = last === LAST_ROW ? LAST_ROW_COMMA : LAST_OPEN;
    if (ends) this.#beginItem(this.#length);
  }

  /** A constant that is all of its column becomes `:any`. `textEnd`: its end in the text. */
  #endColumn(textEnd: number): void {
    const out = this.#out;
    let at = this.#columnStart;
    if (out[at] === 32) at++;
    const length = this.#length - at;
    if (length === 4) {
      if (out[at] === 58) {
        const kind = this.literalKinds[this.literalCount - 1];
        if (kind === BIT || kind === HEX) return;
      } else if (isWord(out, at, NULL)) this.#constantWord(NULL_WORD, textEnd - 4, textEnd);
      else if (isWord(out, at, TRUE)) this.#constantWord(BOOLEAN, textEnd - 4, textEnd);
      else return;
    } else if (length === 5 && isWord(out, at, FALSE)) this.#constantWord(BOOLEAN, textEnd - 5, textEnd);
    else return;
    this.#length = at;
    this.#placeholder(ANY);
  }

  #constantWord(kind: number, start: number, end: number): void {
    this.sawConstantWord = true;
    this.#addLiteral(kind, start, end);
  }

  #beginItem(start: number): void {
    this.#itemStart = start;
    this.#itemLiteral = this.literalCount;
    this.#itemParam = this.#param;
    this.#itemEntangled = false;
  }

  /** Takes the item at hand out of the key if the one before it is the same. `textEnd`: its end in the text. */
  #endItem(textEnd: number): void {
    const start = this.#itemStart;
    const length = this.#length - start;
    const literals = this.literalCount - this.#itemLiteral;
    const params = this.#param - this.#itemParam;
    if (this.#repeats(start, length, literals + params)) {
      this.#length = this.#priorEnd;
      const open = this.#priorInRun ? this.runs[this.runs.length - 1] : undefined;
      if (open) {
        open.count += 1;
        open.end = textEnd;
      } else
        this.runs.push({
          rows: this.#ofRows,
          literal: this.#priorLiteral,
          literalStride: literals,
          param: this.#priorParam + 1,
          paramStride: params,
          count: 2,
          start: this.#priorTextEnd,
          end: textEnd,
        });
      this.#priorInRun = true;
      return;
    }
    this.#priorStart = start;
    this.#priorEnd = this.#itemEntangled ? start : this.#length;
    this.#priorLiteral = this.#itemLiteral;
    this.#priorParam = this.#itemParam;
    this.#priorTextEnd = textEnd;
    this.#priorInRun = false;
  }

  /** Whether the item at hand is the same as the one before it, and a run. */
  #repeats(start: number, length: number, values: number): boolean {
    const prior = this.#priorStart;
    if (length === 0 || length !== this.#priorEnd - prior || values === 0 || this.#itemEntangled) return false;
    if (!this.#priorInRun && this.runs.length >= MAX_RUNS) return false;
    const out = this.#out;
    for (let i = 0; i < length; i++) if (out[prior + i] !== out[start + i]) return false;
    return true;
  }

  #punctuation(c: number, length: number, next: number): void {
    const out = this.#out;
    // ( ) [ ] , ; . stand without spaces; .. with them, else ". ." would look the same.
    const tight = length === 1 && (c === 44 || c === 59 || c === 41 || c === 93 || c === DOT || c === 91);
    const last = this.#last;
    const word = last === LAST_WORD || last === LAST_IN || last === LAST_VALUES;
    if (!tight && !(c === 40 && word)) this.#space();
    out[this.#length++] = c;
    if (length === 2) out[this.#length++] = next;
    this.#last = length === 1 && (c === 40 || c === 91 || c === DOT) ? LAST_OPEN : LAST_OTHER;
  }

  #space(): void {
    const last = this.#last;
    if (last !== LAST_OPEN && last !== LAST_NONE && last !== LAST_ROW_COMMA) this.#out[this.#length++] = 32;
  }

  #raw(text: Uint8Array, start: number, end: number): void {
    if (this.#length + end - start + 1 > this.#out.length) this.#grow(end - start + 1);
    this.#space();
    const out = this.#out;
    let o = this.#length;
    for (let j = start; j < end; j++) out[o++] = text[j] as number;
    this.#length = o;
  }

  #literal(kind: number, start: number, end: number): void {
    this.#addLiteral(kind, start, end);
    this.#space();
    this.#placeholder(PLACEHOLDERS[kind] as Buffer);
    this.#last = LAST_OTHER;
    if (this.#record) this.#recordToken(LITERAL_KINDS[kind] as TokenKind, start, end);
  }

  #addLiteral(kind: number, start: number, end: number): void {
    const k = this.literalCount++;
    if (k === this.literalStarts.length) this.#growLiterals();
    this.literalKinds[k] = kind;
    this.literalStarts[k] = start;
    this.literalEnds[k] = end;
  }

  #placeholder(word: Buffer): void {
    const out = this.#out;
    let o = this.#length;
    out[o++] = word[0] as number;
    out[o++] = word[1] as number;
    out[o++] = word[2] as number;
    out[o++] = word[3] as number;
    this.#length = o;
  }

  #statement(start: number, end: number): void {
    const k = this.statementCount++;
    if (k === this.statementStarts.length) {
      this.statementStarts = grown(this.statementStarts);
      this.statementEnds = grown(this.statementEnds);
    }
    this.statementStarts[k] = start;
    this.statementEnds[k] = end;
  }

  #recordToken(kind: TokenKind, start: number, end: number): void {
    this.tokens.push({ kind, start, end });
  }

  #grow(need: number): void {
    const words = new Int32Array(Math.max(this.#words.length * 2, (this.#length + need + 4096) >> 2));
    const bigger = Buffer.from(words.buffer);
    this.#out.copy(bigger, 0, 0, this.#length);
    this.#words = words;
    this.#out = bigger;
  }

  #growLiterals(): void {
    this.literalStarts = grown(this.literalStarts);
    this.literalEnds = grown(this.literalEnds);
    const kinds = new Uint8Array(this.literalKinds.length * 2);
    kinds.set(this.literalKinds);
    this.literalKinds = kinds;
  }
}

function tokenOf(kinds: Uint8Array, starts: Int32Array, ends: Int32Array, i: number): LiteralToken {
  return {
    kind: LITERAL_KINDS[kinds[i] as number] as LiteralToken['kind'],
    start: starts[i] as number,
    end: ends[i] as number,
  };
}

function grown(a: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const b = new Int32Array(a.length * 2);
  b.set(a);
  return b;
}

const INSERT = Buffer.from('insert');
const VALUES = Buffer.from('values');
const SELECT = Buffer.from('select');
const TABLE = Buffer.from('table');
const WITH = Buffer.from('with');
const NULL = Buffer.from('null');
const TRUE = Buffer.from('true');
const FALSE = Buffer.from('false');

function isWord(out: Uint8Array, at: number, word: Uint8Array): boolean {
  for (let i = 0; i < word.length; i++) if (out[at + i] !== word[i]) return false;
  return true;
}

/** Letters that make a string's opening quote their own: b e n x. */
function isPrefix(c: number): boolean {
  const l = c | 32;
  return l === 101 || l === 98 || l === 120 || l === 110;
}

function lineEnd(text: Uint8Array, i: number): number {
  const n = text.length;
  while (i < n && text[i] !== NEWLINE && text[i] !== RETURN) i++;
  return i;
}

/** Behind the end of a block comment whose inside starts at `i`; comments nest. -1 if it does not end. */
function commentEnd(text: Uint8Array, i: number): number {
  const n = text.length;
  let depth = 1;
  while (i + 1 < n) {
    const c = text[i] as number;
    if (c === STAR && text[i + 1] === SLASH) {
      i += 2;
      if (--depth === 0) return i;
    } else if (c === SLASH && text[i + 1] === STAR) {
      i += 2;
      depth++;
    } else i++;
  }
  return -1;
}

/**
 * A string goes on behind white space with at least one newline (`quotecontinue` in scan.l): the place behind the new
 * opening quote, or -1. Line comments count as white space there, block comments do not.
 */
function continuation(text: Uint8Array, i: number): number {
  const n = text.length;
  let newline = false;
  while (i < n) {
    const c = text[i] as number;
    if (c === NEWLINE || c === RETURN) newline = true;
    else if (c === DASH && i + 1 < n && text[i + 1] === DASH) {
      i = lineEnd(text, i + 2);
      if (i >= n) return -1;
      continue; // at the newline that the comment needs behind it
    } else if (c === QUOTE) return newline ? i + 1 : -1;
    else if (!((CLASS[c] as number) & SPACE)) return -1;
    i++;
  }
  return -1;
}

/** Behind a run of digits with single underscores between them. `leading`: an underscore may come first, and there must be a digit (-1 if not). */
function digits(text: Uint8Array, i: number, radix: number, leading: boolean): number {
  const n = text.length;
  const from = i;
  if (!leading) i++; // the caller saw a digit
  while (i < n) {
    const c = text[i] as number;
    if (isDigit(c, radix)) i++;
    else if (c === UNDERSCORE && i + 1 < n && isDigit(text[i + 1] as number, radix)) i += 2;
    else break;
  }
  return i === from ? -1 : i;
}

function isDigit(c: number, radix: number): boolean {
  if (radix === 16) return ((CLASS[c] as number) & HEXDIGIT) !== 0;
  return c >= 48 && c < 48 + radix;
}

/** pg_strtoint32_safe: whether the integer literal is an int4 (without a sign, which is an operator). */
function fitsInt4(text: Uint8Array, start: number, end: number, radix: number): boolean {
  if (end - start <= 9 && radix === 10) return true;
  let value = 0;
  for (let i = radix === 10 ? start : start + 2; i < end; i++) {
    const c = text[i] as number;
    if (c === UNDERSCORE) continue;
    value = value * radix + (c <= 57 ? c - 48 : (c | 32) - 87);
    if (value > 0x7fffffff) return false;
  }
  return true;
}

/** `count` hexadecimal digits as a number, or -1. */
function hex(text: Uint8Array, i: number, count: number): number {
  if (i + count > text.length) return -1;
  let value = 0;
  for (let k = 0; k < count; k++) {
    const c = text[i + k] as number;
    if (!((CLASS[c] as number) & HEXDIGIT)) return -1;
    value = value * 16 + (c <= 57 ? c - 48 : (c | 32) - 87);
  }
  return value;
}

/** Whether the octal or hexadecimal escape that follows a backslash makes a zero byte (of three octal digits the low 8 bits count). */
function isNulEscape(text: Uint8Array, i: number): boolean {
  let radix = 8;
  let most = 3;
  if (text[i] === 120) {
    radix = 16;
    most = 2;
    i++;
  }
  let value = 0;
  let count = 0;
  for (; count < most && i < text.length && isDigit(text[i] as number, radix); count++, i++) {
    const c = text[i] as number;
    value = value * radix + (c <= 57 ? c - 48 : (c | 32) - 87);
  }
  return count > 0 && (value & 255) === 0;
}

/**
 * Whether the identifier character behind a number makes it "trailing junk": a letter does; so does a digit or $ if the
 * number's last run has a letter or underscore, because then "0" and the name "b12", or "1" and "_0$", are the longer match.
 */
function isJunk(text: Uint8Array, start: number, end: number): boolean {
  for (let i = end; i >= start; i--) {
    const bits = CLASS[text[i] as number] as number;
    if (bits & IDENT_START) return true;
    if (!(bits & IDENT_CONT)) return false;
  }
  return false;
}
