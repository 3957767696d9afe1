import type { Topology } from '../../topology/topology.js';
import { Lexer } from './lexer.js';
import type { Metadata } from './metadata.js';
import { type Reading, readText } from './reading.js';
import { registryOf } from './registry.js';
import { routeExecution } from './resolve.js';
import type {
  Analyzed,
  AnalyzedStatement,
  BoundParams,
  KeySource,
  LiteralToken,
  Route,
  StatementPlan,
} from './route.js';
import { TemplateCache } from './template-cache.js';
import type { TextReader } from './text-reader.js';

export interface RouterOptions {
  /** The topology of now: which tables are sharded. */
  readonly topology: () => Topology;
  /** The metadata of now. */
  readonly metadata: () => Metadata;
  /** Templates kept, per search path. Default: 5,000. */
  readonly templates?: number;
  /** Longest template that is kept, in bytes; longer texts are parsed each time. Default: 16,384. */
  readonly longestTemplate?: number;
  /** Reads long texts in another thread, for {@link Router.readAhead}. Default: all are read where they are analysed. */
  readonly reader?: TextReader;
}

/** What name lookup depends on. */
export interface SessionNames {
  /** search_path, unquoted; `$user` stands for the user's own schema. */
  readonly searchPath: readonly string[];
  readonly user: string;
  /** client_encoding, when it is not UTF8. */
  readonly encoding?: string;
}

/** How often what happened since the start. `parses`: here, not in another thread. */
export interface RouterCounters {
  parses: number;
  hits: number;
  misses: number;
  syntaxErrors: number;
}

interface Ahead {
  /** Where in its memory the text is. */
  readonly start: number;
  readonly length: number;
  /** What it was read for. */
  readonly session: SessionNames;
  readonly scope: unknown;
  readonly reading: Reading | null | 'too large';
}

interface Template {
  readonly text: string;
  readonly plans: readonly StatementPlan[];
  /** Literals that keys come from, in order. */
  readonly ordinals: readonly number[];
  /** The lexer's semicolons are the statements' ends. */
  readonly plainStatements: boolean;
}

/** Search paths that are kept; the application rarely has more than a few. */
const SCOPES = 64;
/** Texts that did not parse, by their exact bytes: whether a text parses may depend on the values in it. */
const FAILURES = 1_000;
const LONGEST_FAILURE = 4_096;

/**
 * Finds the plan of a text by its template, and the route of an execution by its plan. Parses only what was never seen.
 * `loadModule()` of libpg-query must have been awaited before.
 */
export class Router {
  readonly counters: RouterCounters = { parses: 0, hits: 0, misses: 0, syntaxErrors: 0 };
  readonly #options: RouterOptions;
  readonly #lexer = new Lexer();
  /** Another map when all plans are out of date. */
  #scopes = new Map<string, TemplateCache<Template>>();
  readonly #failures = new TemplateCache<true>(FAILURES);
  /** What was read ahead, by the memory that the text is in. */
  readonly #ahead = new WeakMap<ArrayBufferLike, Ahead>();
  /** What was looked at last: as long as these are the same objects, nothing has changed. */
  #topology: Topology | null = null;
  #schema: Metadata | null = null;
  #signature = '';
  #metadata = '';

  constructor(options: RouterOptions) {
    this.#options = options;
  }

  /**
   * Reads a long text in another thread, for `analyze` to find: meanwhile others are served. Null: there is no need.
   * Never rejects.
   */
  readAhead(text: Buffer, session: SessionNames): Promise<void> | null {
    const { reader } = this.#options;
    if (reader === undefined || text.length <= LONG_TEXT_BYTES || text.length > LONGEST_PARSED) return null;
    this.#forgetOutdated();
    if (this.#readBefore(text, session) !== undefined) return null;
    if (text.length <= SCANNED_TWICE_BYTES && this.#lexer.scan(text) && this.#cached(session)?.plainStatements)
      return null;
    const topology = this.#options.topology();
    const metadata = this.#options.metadata();
    const read = { topology, metadata, searchPath: pathOf(session) };
    const about = { start: text.byteOffset, length: text.length, session, scope: this.#scopes };
    return reader.read(text, read).then((reading) => {
      if (reading !== 'unable') this.#ahead.set(text.buffer, { ...about, reading });
    });
  }

  /** Nothing is read ahead any more. */
  close(): void {
    this.#options.reader?.close();
  }

  /** Looks a query string up. `text` is kept by reference, so it must not change. */
  analyze(text: Buffer, session: SessionNames): Analyzed {
    this.#forgetOutdated();
    if (text.length > LONGEST_PARSED) return this.#tooLong(text, session);
    const lexer = this.#lexer;
    if (!lexer.scan(text)) return this.#broken(text, session);
    let template = this.#cached(session);
    if (template?.plainStatements) {
      this.counters.hits++;
      return new AnalyzedText(
        template,
        text,
        this.#statements(template),
        this.#keyLiterals(template),
        session,
        this.#scopes,
      );
    }
    this.counters.misses++;
    const failureKey = text.length <= LONGEST_FAILURE ? text.toString('latin1') : null;
    if (failureKey !== null && this.#failures.get(failureKey)) return this.#broken(text, session);
    const reading = this.#read(text, session);
    if (reading === 'too large') return this.#tooLong(text, session);
    if (reading === null) {
      if (failureKey !== null) this.#failures.set(failureKey, true);
      return this.#broken(text, session);
    }
    const { plans, places, garbledNames } = reading;
    if (template === undefined) {
      template = {
        text: lexer.key(),
        plans,
        ordinals: ordinalsOf(plans),
        plainStatements: !lexer.sawAtomic && lexer.statementCount === plans.length && !garbledNames,
      };
      if (this.#isKept && !garbledNames && !plans.some((p) => p.ofLiterals))
        this.#scope(session).set(template.text, template);
    }
    const statements = template.plainStatements
      ? this.#statements(template)
      : template.plans.map((plan, i) => ({
          plan,
          ...trimmed(text, places[2 * i] as number, places[2 * i + 1] as number),
        }));
    return new AnalyzedText(template, text, statements, this.#keyLiterals(template), session, this.#scopes);
  }

  /** Plans depend on which tables are sharded and on the schema. */
  #forgetOutdated(): void {
    const topology = this.#options.topology();
    const metadata = this.#options.metadata();
    if (topology === this.#topology && metadata === this.#schema) return;
    this.#topology = topology;
    this.#schema = metadata;
    const { signature } = registryOf(topology);
    const { version } = metadata;
    if (signature === this.#signature && version === this.#metadata) return;
    this.#scopes = new Map();
    this.#signature = signature;
    this.#metadata = version;
  }

  /** Whether the template of the lexer's last scan is one to keep. */
  get #isKept(): boolean {
    return this.#lexer.keyLength <= (this.#options.longestTemplate ?? 16_384);
  }

  /** The template of the lexer's last scan, if it is known. */
  #cached(session: SessionNames): Template | undefined {
    return this.#isKept ? this.#scope(session).get(this.#lexer.key()) : undefined;
  }

  /** Null: it does not parse. */
  #read(text: Buffer, session: SessionNames): Reading | null | 'too large' {
    const before = this.#readBefore(text, session);
    if (before !== undefined) return before;
    this.counters.parses++;
    return readText(text, {
      registry: registryOf(this.#options.topology()),
      metadata: this.#options.metadata(),
      searchPath: pathOf(session),
    });
  }

  #readBefore(text: Buffer, session: SessionNames): Ahead['reading'] | undefined {
    if (text.length <= LONG_TEXT_BYTES) return undefined;
    const ahead = this.#ahead.get(text.buffer);
    if (ahead === undefined || ahead.start !== text.byteOffset || ahead.length !== text.length) return undefined;
    // Names may mean something else by now.
    return ahead.scope === this.#scopes && ahead.session === session ? ahead.reading : undefined;
  }

  /** Whether the same tables are sharded, and the schema is the same, as when the text was analysed: else it is to be analysed again. */
  isCurrent(analyzed: Analyzed): boolean {
    this.#forgetOutdated();
    return !(analyzed instanceof AnalyzedText) || analyzed.world === this.#scopes;
  }

  /**
   * Where one execution of a statement goes at this topology. Pure but for one case: if other tables are sharded now than when the
   * text was analysed, or the schema is another one, it is analysed again.
   */
  route(analyzed: Analyzed, statementIndex: number, params: BoundParams | null, topology: Topology): Route {
    let from = analyzed;
    if (analyzed instanceof AnalyzedText && !this.isCurrent(analyzed)) {
      if (analyzed.again === undefined || !this.isCurrent(analyzed.again))
        analyzed.again = this.analyze(analyzed.text, analyzed.session);
      from = analyzed.again;
    }
    const statement = from.statements[statementIndex];
    if (!statement) throw new RangeError(`statement ${statementIndex} of ${from.statements.length}`);
    const literal =
      from instanceof AnalyzedText
        ? (ordinal: number) => (from as AnalyzedText).keyLiteral(ordinal)
        : (ordinal: number) => from.literals[ordinal];
    return routeExecution(
      statement.plan,
      {
        text: from.text,
        literal,
        params,
        foreignEncoding: from instanceof AnalyzedText && isForeign(from.session.encoding),
      },
      topology,
    );
  }

  /** Whether a DO block, given as its whole text, may change settings for longer than its transaction. */
  mayKeepSettings(block: string): boolean {
    return this.#options.metadata().mayKeepSettings(block);
  }

  /** Templates kept now. */
  get templates(): number {
    let n = 0;
    for (const scope of this.#scopes.values()) n += scope.size;
    return n;
  }

  #tooLong(text: Buffer, session: SessionNames): Analyzed {
    return new AnalyzedText(TOO_LONG, text, wholeText(text), [], session, this.#scopes);
  }

  #broken(text: Buffer, session: SessionNames): Analyzed {
    this.counters.syntaxErrors++;
    return new AnalyzedText(BROKEN, text, [], [], session, this.#scopes);
  }

  #scope(session: SessionNames): TemplateCache<Template> {
    const name = session.searchPath.includes('$user')
      ? `${session.user}\0${session.searchPath.join('\0')}`
      : session.searchPath.join('\0');
    let scope = this.#scopes.get(name);
    if (scope) return scope;
    for (const oldest of this.#scopes.keys()) {
      if (this.#scopes.size < SCOPES) break;
      this.#scopes.delete(oldest);
    }
    scope = new TemplateCache(this.#options.templates ?? 5_000);
    this.#scopes.set(name, scope);
    return scope;
  }

  /** From the lexer's last scan. */
  #statements(template: Template): AnalyzedStatement[] {
    const { statementStarts, statementEnds } = this.#lexer;
    return template.plans.map((plan, i) => ({
      plan,
      start: statementStarts[i] as number,
      end: statementEnds[i] as number,
    }));
  }

  #keyLiterals(template: Template): LiteralToken[] {
    return template.ordinals.map((ordinal) => this.#lexer.literal(ordinal));
  }
}

/** One text, with its plans. Keeps only the literals that keys come from; the others are found again when asked for. */
class AnalyzedText implements Analyzed {
  readonly template: string;
  readonly syntaxError: boolean;
  /** The same text, analysed after the world changed. */
  again: Analyzed | undefined;
  readonly #template: Template;
  readonly #keyLiterals: readonly LiteralToken[];
  #literals: readonly LiteralToken[] | undefined;

  constructor(
    template: Template,
    readonly text: Buffer,
    readonly statements: readonly AnalyzedStatement[],
    keyLiterals: readonly LiteralToken[],
    readonly session: SessionNames,
    /** Another object when plans made before are out of date. */
    readonly world: object,
  ) {
    this.#template = template;
    this.template = template.text;
    this.syntaxError = template === BROKEN;
    this.#keyLiterals = keyLiterals;
  }

  keyLiteral(ordinal: number): LiteralToken | undefined {
    const { ordinals } = this.#template;
    // Few, and in order: the first one nearly always.
    return this.#keyLiterals[ordinals.length > 8 ? binarySearch(ordinals, ordinal) : ordinals.indexOf(ordinal)];
  }

  get literals(): readonly LiteralToken[] {
    if (this.#literals === undefined) {
      const lexer = new Lexer();
      lexer.scan(this.text);
      this.#literals = Array.from({ length: lexer.literalCount }, (_, i) => lexer.literal(i));
    }
    return this.#literals;
  }
}

const BROKEN: Template = { text: '(syntax error)', plans: [], ordinals: [], plainStatements: true };

/** Longer texts are read in another thread: this many bytes of VALUES take some 20 ms. A message of more than this has memory of its own. */
export const LONG_TEXT_BYTES = 64 * 1024;
/** Longer texts are not looked up before they are read ahead: the lexer takes 5 ms for a megabyte. */
const SCANNED_TWICE_BYTES = 1024 * 1024;
/** Longer texts are not parsed: 16 MiB of VALUES take libpg-query 5 s and 500 MB. */
const LONGEST_PARSED = 16 * 1024 * 1024;

/** May be anything: it goes where all data is, and the session stays with what it has done there. */
const UNREAD: StatementPlan = {
  kind: 'ddl',
  command: '',
  target: {
    kind: 'sole',
    refusal: {
      sqlstate: '0A000',
      message: `a statement of more than ${LONGEST_PARSED} bytes is not supported on several shards`,
      hint: 'Give large values as parameters, or use COPY or smaller statements.',
    },
  },
  effect: null,
  pin: 'a statement too long to be read',
};

const TOO_LONG: Template = { text: '(too long)', plans: [UNREAD], ordinals: [], plainStatements: true };

/** search_path without `$user`. */
function pathOf(session: SessionNames): readonly string[] {
  return session.searchPath.map((s) => (s === '$user' ? session.user : s));
}

function wholeText(text: Buffer): AnalyzedStatement[] {
  return [{ plan: UNREAD, start: 0, end: text.length }];
}

function ordinalsOf(plans: readonly StatementPlan[]): number[] {
  const ordinals = new Set<number>();
  const add = (keys: readonly KeySource[]) => {
    for (const key of keys) for (const source of key) if (source.kind === 'literal') ordinals.add(source.ordinal);
  };
  for (const { target } of plans) {
    if (target.kind === 'keys') {
      add(target.keys);
      for (const other of target.also ?? []) add(other.keys);
    }
    if ((target.kind === 'keys' || target.kind === 'unpinned') && target.spread.kind === 'fanout') {
      const { limit = null, offset = null } = target.spread.uncut ?? {};
      add([[limit, offset].filter((s) => s !== null)]);
    }
  }
  return [...ordinals].sort((x, y) => x - y);
}

function binarySearch(sorted: readonly number[], wanted: number): number {
  let lo = 0;
  let hi = sorted.length - 1;
  while (lo <= hi) {
    const mid = (lo + hi) >>> 1;
    const at = sorted[mid] as number;
    if (at === wanted) return mid;
    if (at < wanted) lo = mid + 1;
    else hi = mid - 1;
  }
  return -1;
}

/** Without white space at both ends; what the parser gives begins right behind the last semicolon. */
function trimmed(text: Buffer, start: number, end: number): { start: number; end: number } {
  const space = (c: number | undefined) => c !== undefined && (c === 32 || (c >= 9 && c <= 13));
  let from = start;
  let to = end;
  while (from < to && space(text[from])) from++;
  while (to > from && space(text[to - 1])) to--;
  return { start: from, end: to };
}

function isForeign(encoding: string | undefined): boolean {
  return encoding !== undefined && !/^(utf-?8|unicode)$/i.test(encoding);
}
