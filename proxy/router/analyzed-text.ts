import type { Values } from './keys.js';
import { Lexer } from './lexer.js';
import { Pace } from './pace.js';
import type { Analyzed, AnalyzedStatement, BoundParams, LaneRoute, LiteralToken } from './route.js';

/** Literals of a text by ordinal, of which not all need be there. */
export interface KnownLiterals {
  at(ordinal: number): LiteralToken | undefined;
}

/** What a text was analysed for: names mean the same to all sessions that share one. */
export interface Scope {
  readonly id: number;
  /** One of those sessions' names. */
  readonly session: SessionNames;
  /** The text is in another encoding than UTF-8. */
  readonly foreign: boolean;
  /** standard_conforming_strings. */
  readonly conforming: boolean;
}

/** What name lookup, and reading a text, depends on. */
export interface SessionNames {
  /** search_path, unquoted; `$user` stands for the user's own schema. */
  readonly searchPath: readonly string[];
  readonly user: string;
  /** client_encoding, when it is not UTF8. */
  readonly encoding?: string;
  /** standard_conforming_strings is off: backslashes in plain strings are escapes. */
  readonly conforming?: false;
}

/** One text, with its plans. Keeps only the literals that keys come from; the others are found again when asked for. */
export class AnalyzedText implements Analyzed {
  readonly template: string;
  readonly text: Buffer;
  readonly statements: readonly AnalyzedStatement[];
  readonly syntaxError: boolean;
  readonly pace: Pace;
  readonly scope: Scope;
  /** Another object when plans made before are out of date. */
  readonly world: object;
  again: Analyzed | undefined;
  /** Where it goes whatever its values are, as a read that shares a server connection. */
  laneRoute: LaneRoute | null = null;
  readonly #known: KnownLiterals;
  #literals: readonly LiteralToken[] | undefined;

  constructor(
    template: string,
    text: Buffer,
    statements: readonly AnalyzedStatement[],
    known: KnownLiterals,
    scope: Scope,
    world: object,
    syntaxError = false,
    pace: Pace = new Pace(),
  ) {
    this.template = template;
    this.text = text;
    this.statements = statements;
    this.#known = known;
    this.scope = scope;
    this.world = world;
    this.syntaxError = syntaxError;
    this.pace = pace;
  }

  /** A literal that a key comes from. */
  literal(ordinal: number): LiteralToken | undefined {
    return this.#known.at(ordinal);
  }

  /** The values of one execution. */
  values(params: BoundParams | null): Values {
    return new TextValues(this, params);
  }

  get conforming(): boolean {
    return this.scope.conforming;
  }

  get literals(): readonly LiteralToken[] {
    if (this.#literals === undefined) {
      const lexer = new Lexer();
      lexer.scan(this.text, false, this.scope.conforming);
      this.#literals = Array.from({ length: lexer.literalCount }, (_, i) => lexer.literal(i));
    }
    return this.#literals;
  }
}

class TextValues implements Values {
  readonly text: Buffer;
  readonly params: BoundParams | null;
  readonly foreignEncoding: boolean;
  readonly #from: AnalyzedText;

  constructor(from: AnalyzedText, params: BoundParams | null) {
    this.text = from.text;
    this.params = params;
    this.foreignEncoding = from.scope.foreign;
    this.#from = from;
  }

  literal(ordinal: number): LiteralToken | undefined {
    return this.#from.literal(ordinal);
  }
}

export const NO_LITERALS: KnownLiterals = { at: () => undefined };

/** The literals with these ordinals, which are in order; nearly always there is one. */
export class SomeLiterals implements KnownLiterals {
  readonly #ordinals: readonly number[];
  readonly #tokens: readonly LiteralToken[];

  constructor(ordinals: readonly number[], tokens: readonly LiteralToken[]) {
    this.#ordinals = ordinals;
    this.#tokens = tokens;
  }

  at(ordinal: number): LiteralToken | undefined {
    const ordinals = this.#ordinals;
    if (ordinals[0] === ordinal) return this.#tokens[0];
    let lo = 0;
    let hi = ordinals.length - 1;
    while (lo <= hi) {
      const mid = (lo + hi) >>> 1;
      const found = ordinals[mid] as number;
      if (found === ordinal) return this.#tokens[mid];
      if (found < ordinal) lo = mid + 1;
      else hi = mid - 1;
    }
    return undefined;
  }
}
