import { Lexer } from './lexer.js';

/** A function, or all of a name in one schema, as far as its text is concerned. */
export interface FunctionText {
  readonly name: string;
  /** The text has words of SET, RESET or set_config somewhere, or that of a function it calls. */
  readonly keepsSettings?: boolean;
  /** The text has EXECUTE, among others. */
  readonly stateful?: boolean;
  readonly native: boolean;
  readonly opaque?: boolean;
  readonly body?: string;
}

/** SET or RESET where a statement begins, in a text that is executed; SET in an UPDATE stands elsewhere. The same in the query for the metadata. */
const SETS = /(^|[;$'"(]|\b(begin|then|else|loop)\b|\*\/|--[^\n]*\n)\s*(set|reset)\s+(?!local\b)/i;
/** So in code, as the lexer gives it: comments gone, literals replaced, words folded. */
const SETS_IN_CODE =
  /(^|;|>>|\b(?:begin|then|else|loop|atomic))\s*(set\s+(?!local\b|transaction\b|constraints\b)|reset\s)/;
const EXECUTES = /\bexecute\b|(^|;|\b(?:begin|then|else|loop))\s*do\s/;
const SET_CONFIG = /\bset_config"?\s*\(/gi;

const lexer = new Lexer();

/** Whether a text, or one that is in it as a literal, may change settings for longer than the transaction when it is executed. */
export function saysSettings(text: string): boolean {
  return SETS.test(text) || callsSetConfig(text);
}

/** Whether set_config is called, and not with a plain `true` as its last argument. */
function callsSetConfig(text: string): boolean {
  for (const m of text.matchAll(SET_CONFIG)) {
    let depth = 1;
    let last = m.index + m[0].length;
    let i = last;
    for (; i < text.length && depth > 0; i++) {
      const c = text[i];
      if (c === '(') depth += 1;
      else if (c === ')') depth -= 1;
      else if (c === ',' && depth === 1) last = i + 1;
    }
    if (
      depth > 0 ||
      text
        .slice(last, i - 1)
        .trim()
        .toLowerCase() !== 'true'
    )
      return true;
  }
  // Written as no call: an alias, or in pieces.
  return /\bset_config\b(?!"?\s*\()/i.test(text);
}

/** What a body does to settings itself; `says`: a literal in it would; `executes`: it executes texts. */
interface Doings {
  readonly sets: boolean;
  readonly says: boolean;
  readonly executes: boolean;
}

/** A body in SQL or PL/pgSQL, read as PostgreSQL's scanner does: comments count for nothing, literals only where texts are executed. */
function doingsOf(body: string): Doings {
  const bytes = Buffer.from(body);
  if (!lexer.scan(bytes)) return { sets: true, says: true, executes: true };
  const code = lexer.key();
  let says = false;
  for (let i = 0; i < lexer.literalCount && !says; i++) {
    const { kind, start, end } = lexer.literal(i);
    const text = bytes.toString('utf8', start, end);
    if (kind === 'string' || kind === 'dollar') says = saysSettings(text);
    // Escapes may hide a word.
    else if (kind === 'estring' || kind === 'ustring') says = text.includes('\\') || saysSettings(text);
  }
  return { sets: SETS_IN_CODE.test(code) || callsSetConfig(code), says, executes: EXECUTES.test(code) };
}

/** Whether a function with this body may change settings for longer than its transaction, itself or by a text that is in it. */
export function changesSettings(body: string): boolean {
  if (!/\b((set|reset)\s|set_config\b)/i.test(body)) return false;
  const { sets, says } = doingsOf(body);
  return sets || says;
}

/** Which functions may change settings for longer than their transaction. Errs towards yes. */
export class SettingFunctions {
  readonly #byName = new Map<string, FunctionText[]>();
  /** Texts that have the words at all; and that execute texts, perhaps. */
  readonly #suspects: readonly string[];
  readonly #executing: readonly string[];
  readonly #keeps = new Map<string, boolean>();
  readonly #executes = new Map<string, boolean>();

  constructor(functions: readonly FunctionText[]) {
    for (const f of functions) this.#byName.set(f.name, [...(this.#byName.get(f.name) ?? []), f]);
    this.#suspects = [...new Set(functions.filter((f) => f.keepsSettings).map((f) => f.name))];
    this.#executing = [...new Set(functions.filter((f) => f.stateful || isClosed(f)).map((f) => f.name))];
  }

  /** Whether some function of this name does. */
  keeps(name: string): boolean {
    return this.#judge(name, this.#keeps, (f) => {
      if (f.keepsSettings !== true) return false;
      if (f.opaque !== false) return true;
      const { sets, says, executes } = doingsOf(f.body ?? '');
      return (
        sets || (says && (executes || this.#leadsToText(f))) || this.#mentions(f, this.#suspects, (n) => this.keeps(n))
      );
    });
  }

  /** Whether some function of this name executes texts, or one that it calls does. */
  executes(name: string): boolean {
    return this.#judge(name, this.#executes, (f) => {
      if (isClosed(f)) return true;
      return f.stateful === true && (doingsOf(f.body ?? '').executes || this.#leadsToText(f));
    });
  }

  /** Whether a DO block, given as its whole text, may. */
  block(text: string): boolean {
    const lower = text.toLowerCase();
    const calls = (names: readonly string[], found: (name: string) => boolean) =>
      names.some((n) => lower.includes(n.toLowerCase()) && found(n));
    if (calls(this.#suspects, (n) => this.keeps(n))) return true;
    if (!saysSettings(text)) return false;
    const bytes = Buffer.from(text);
    if (!lexer.scan(bytes) || /\blanguage (?!plpgsql\b|:)/.test(lexer.key())) return true;
    const literals = Array.from({ length: lexer.literalCount }, (_, i) => lexer.literal(i));
    return literals.some(({ kind, start, end }) => {
      const inner = innerOf(kind, bytes.toString('utf8', start, end));
      if (inner === null) return kind === 'estring' || kind === 'ustring';
      const { sets, says, executes } = doingsOf(inner);
      return sets || (says && (executes || calls(this.#executing, (n) => this.executes(n))));
    });
  }

  /** While a name is being judged it counts as one that does: functions may call one another in a circle. */
  #judge(name: string, known: Map<string, boolean>, one: (f: FunctionText) => boolean): boolean {
    const before = known.get(name);
    if (before !== undefined) return before;
    known.set(name, true);
    const found = (this.#byName.get(name) ?? []).some(one);
    known.set(name, found);
    return found;
  }

  #leadsToText(f: FunctionText): boolean {
    return this.#mentions(f, this.#executing, (n) => this.executes(n));
  }

  #mentions(f: FunctionText, names: readonly string[], found: (name: string) => boolean): boolean {
    const lower = (f.body ?? '').toLowerCase();
    return names.some((n) => n !== f.name && lower.includes(n.toLowerCase()) && found(n));
  }
}

/** In a language that is not read here, which may execute anything. */
function isClosed(f: FunctionText): boolean {
  return f.opaque !== false && !f.native;
}

/** What is in a plain or dollar-quoted literal. */
function innerOf(kind: string, literal: string): string | null {
  if (kind === 'string') return literal.slice(literal.indexOf("'") + 1, -1).replaceAll("''", "'");
  if (kind !== 'dollar') return null;
  const tag = literal.indexOf('$', 1) + 1;
  return literal.slice(tag, -tag);
}
