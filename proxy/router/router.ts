import type { RangeReplica, ShardName, Topology } from '../../topology/topology.js';
import type { Context } from './analysis.js';
import { AnalyzedText, NO_LITERALS, type Scope, type SessionNames, SomeLiterals } from './analyzed-text.js';
import { conforming } from './conforming.js';
import { type GatherProgram, gatherProgram, isAscii } from './gather-program.js';
import { type HotName, hotText, lockBaseText, withHotName } from './halves-text.js';
import { Lexer } from './lexer.js';
import type { Metadata } from './metadata.js';
import { isTooLarge, type Reading, readText } from './reading.js';
import { registryOf } from './registry.js';
import type { RenamedText } from './renamed-text.js';
import { routeExecution } from './resolve.js';
import type { Analyzed, AnalyzedStatement, BoundParams, Halves, LaneRoute, Route, StatementPlan } from './route.js';
import { reduced, repeatedBytes, unfolded } from './runs.js';
import { bytesOf, memoBytes, newTemplate, ordinalsOf, type Template } from './template.js';
import { TemplateCache } from './template-cache.js';
import type { TextReader } from './text-reader.js';
import { LONG_TEXT_BYTES, TextsAhead } from './texts-ahead.js';

export interface RouterOptions {
  /** The topology of now: which tables are sharded. */
  readonly topology: () => Topology;
  /** The metadata of now. */
  readonly metadata: () => Metadata;
  /** Templates kept. Default: 10,000. */
  readonly templates?: number;
  /** Bytes of all of them, about. Default: 32 MiB. */
  readonly templateBytes?: number;
  /** Longest template that is kept, in bytes; longer texts are parsed each time. Default: 16,384. */
  readonly longestTemplate?: number;
  /** Reads long texts in another thread, for {@link Router.readAhead}. Default: all are read where they are analysed. */
  readonly reader?: TextReader;
}

/** How often what happened since the start. `parses`: here, not in another thread. */
export interface RouterCounters {
  parses: number;
  hits: number;
  misses: number;
  syntaxErrors: number;
}

/** Scopes that are kept by name; those of sessions live as long as they do. */
const SCOPES = 1_000;
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
  /** Another object when all plans are out of date. */
  #world: object = {};
  #templates: TemplateCache<Scope, Template>;
  readonly #scopes = new Map<string, Scope>();
  readonly #scopeOfSession = new WeakMap<SessionNames, Scope>();
  #lastScope = 0;
  readonly #failures = new Set<string>();
  /** By what a plan, which all texts of a template share, says of halves: it goes with the template. */
  readonly #hotNames = new WeakMap<Halves, HotName>();
  readonly #ahead: TextsAhead;
  /** What was looked at last: as long as these are the same objects, nothing has changed. */
  #topology: Topology | null = null;
  #schema: Metadata | null = null;
  #signature = '';
  #metadata = '';

  constructor(options: RouterOptions) {
    this.#options = options;
    this.#ahead = new TextsAhead(options.reader ?? null);
    this.#templates = this.#newCache();
  }

  /**
   * Reads a long text in another thread, for `analyze` to find: meanwhile others are served. Null: there is no need.
   * Never rejects.
   */
  readAhead(text: Buffer, session: SessionNames): Promise<void> | null {
    if (!this.#ahead.isFor(text) || text.length > LONGEST_PARSED) return null;
    this.#forgetOutdated();
    if (this.#ahead.find(text, session, this.#world) !== undefined) return null;
    const scope = this.#scopeOf(session);
    const lexer = this.#lexer;
    if (text.length <= SCANNED_TWICE_BYTES && lexer.scan(text, false, scope.conforming)) {
      if (this.#cached(scope)?.plainStatements) return null;
      if (!lexer.sawAtomic && text.length - repeatedBytes(lexer.runs) <= LONG_TEXT_BYTES) return null;
    }
    const topology = this.#options.topology();
    const metadata = this.#options.metadata();
    const read = { topology, metadata, searchPath: pathOf(session) };
    return this.#ahead.read(text, scope.conforming ? text : conforming(text), read, session, this.#world);
  }

  /** Nothing is read ahead any more. */
  close(): void {
    this.#ahead.close();
  }

  /** Looks a query string up. `text` is kept by reference, so it must not change. */
  analyze(text: Buffer, session: SessionNames): Analyzed {
    this.#forgetOutdated();
    const scope = this.#scopeOf(session);
    if (text.length > LONGEST_PARSED) return this.#tooLong(text, scope);
    const lexer = this.#lexer;
    if (!lexer.scan(text, false, scope.conforming)) return this.#broken(text, scope);
    const template = this.#cached(scope);
    if (template?.plainStatements) {
      const found = this.#found(template, text, scope);
      if (found !== null) {
        this.counters.hits++;
        return found;
      }
    }
    this.counters.misses++;
    return this.#missed(template, text, scope, session);
  }

  /** A text whose template is known. Null: it has to be planned by itself. */
  #found(template: Template, text: Buffer, scope: Scope): AnalyzedText | null {
    const lexer = this.#lexer;
    if (lexer.runs.length > 0) return this.#unfolded(template, text, scope);
    if (lexer.sawConstantWord && template.ordinals.some((ordinal) => lexer.isConstantWord(ordinal))) return null;
    const { memo } = template;
    if (memo?.text.length === text.length && lexer.literalCount === 0 && memo.text.equals(text)) return memo;
    const { ordinals } = template;
    const literals =
      ordinals.length === 0
        ? NO_LITERALS
        : new SomeLiterals(
            ordinals,
            ordinals.map((ordinal) => lexer.literal(ordinal)),
          );
    // A memo outlives the message that the text came in.
    const remember = memo === null && lexer.literalCount === 0 && text.length <= memoBytes(template.text);
    const kept = remember ? Buffer.from(text) : text;
    const { pace } = template;
    const own = this.#statements(template);
    const analyzed = new AnalyzedText(template.text, kept, own, literals, scope, this.#world, false, pace);
    if (remember) template.memo = analyzed;
    return analyzed;
  }

  /** The same of a text in which items of lists are repeated. */
  #unfolded(template: Template, text: Buffer, scope: Scope): AnalyzedText | null {
    const lexer = this.#lexer;
    const plans: StatementPlan[] = [];
    for (const plan of template.plans) {
      const own = unfolded(plan, lexer.runs);
      if (own === null) return null;
      plans.push(own);
    }
    if (lexer.sawConstantWord && ordinalsOf(plans).some((ordinal) => lexer.isConstantWord(ordinal))) return null;
    const statements = this.#statements({ plans });
    const literals = template.ordinals.length === 0 ? NO_LITERALS : lexer.allLiterals();
    return new AnalyzedText(template.text, text, statements, literals, scope, this.#world, false, template.pace);
  }

  #missed(known: Template | undefined, text: Buffer, scope: Scope, session: SessionNames): AnalyzedText {
    const lexer = this.#lexer;
    const failureKey = text.length <= LONGEST_FAILURE ? `${scope.conforming}${text.toString('latin1')}` : null;
    if (failureKey !== null && this.#failures.has(failureKey)) return this.#broken(text, scope);
    const varies = lexer.runs.length > 0 || lexer.sawConstantWord;
    if (known === undefined && varies && !lexer.sawAtomic) {
      // Planned without the repetitions, which cost the parser most; the plan is for any number of them, and for any constants.
      const ahead = this.#ahead.find(text, session, this.#world) !== undefined;
      const source = scope.conforming ? text : conforming(text);
      const reading = ahead ? null : this.#read(reduced(source, lexer.runs), scope, session);
      const read = reading !== null && reading !== 'too large' && !reading.garbledNames;
      if (read && lexer.statementCount === reading.plans.length) {
        const template = newTemplate(this.#lexer.key(), reading.plans, true);
        const found = this.#found(template, text, scope);
        if (found !== null) {
          this.#keep(template, reading, scope);
          return found;
        }
      }
    }
    const reading = this.#read(text, scope, session);
    if (reading === 'too large') return this.#tooLong(text, scope);
    if (reading === null) {
      if (failureKey !== null) this.#remember(failureKey);
      return this.#broken(text, scope);
    }
    const plain = !lexer.sawAtomic && lexer.statementCount === reading.plans.length && !reading.garbledNames;
    const template = newTemplate(this.#lexer.key(), reading.plans, plain);
    if (known === undefined && !varies) this.#keep(template, reading, scope);
    const { places } = reading;
    const statements = plain
      ? this.#statements(template)
      : template.plans.map((plan, i) => ({
          plan,
          ...trimmed(text, places[2 * i] as number, places[2 * i + 1] as number),
        }));
    const literals = template.ordinals.length === 0 ? NO_LITERALS : lexer.allLiterals();
    return new AnalyzedText(template.text, text, statements, literals, scope, this.#world, false, template.pace);
  }

  /** Keeps the template of the lexer's last scan, if it is one to keep. */
  #keep(template: Template, { plans, garbledNames }: Reading, scope: Scope): void {
    if (!this.#isKept || garbledNames || plans.some((p) => p.ofLiterals)) return;
    this.#templates.set(this.#lexer, scope, template, bytesOf(template));
  }

  #remember(failure: string): void {
    for (const oldest of this.#failures) {
      if (this.#failures.size < FAILURES) break;
      this.#failures.delete(oldest);
    }
    this.#failures.add(failure);
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
    this.#world = {};
    this.#templates = this.#newCache();
    this.#signature = signature;
    this.#metadata = version;
  }

  /** Whether the template of the lexer's last scan is one to keep. */
  get #isKept(): boolean {
    return this.#lexer.keyLength <= (this.#options.longestTemplate ?? 16_384);
  }

  /** The template of the lexer's last scan, if it is known. */
  #cached(scope: Scope): Template | undefined {
    return this.#isKept ? this.#templates.get(this.#lexer, scope) : undefined;
  }

  /** Null: it does not parse. */
  #read(text: Buffer, scope: Scope, session: SessionNames): Reading | null | 'too large' {
    const before = this.#ahead.find(text, session, this.#world);
    if (before !== undefined) return before;
    if (isTooLarge(text)) return 'too large';
    this.counters.parses++;
    return readText(scope.conforming ? text : conforming(text), {
      registry: registryOf(this.#options.topology()),
      metadata: this.#options.metadata(),
      searchPath: pathOf(session),
    });
  }

  /** Whether the same tables are sharded, and the schema is the same, as when the text was analysed: else it is to be analysed again. */
  isCurrent(analyzed: Analyzed): boolean {
    this.#forgetOutdated();
    return !(analyzed instanceof AnalyzedText) || analyzed.world === this.#world;
  }

  /** If other tables are sharded now than when the text was analysed, or the schema is another one, it is analysed again. @returns as of now */
  refresh(analyzed: Analyzed): Analyzed {
    if (!(analyzed instanceof AnalyzedText) || this.isCurrent(analyzed)) return analyzed;
    if (analyzed.again === undefined || !this.isCurrent(analyzed.again))
      analyzed.again = this.analyze(analyzed.text, analyzed.scope.session);
    return analyzed.again;
  }

  /** Where one execution of a statement goes at this topology. The text is refreshed before. */
  route(analyzed: Analyzed, statementIndex: number, params: BoundParams | null, topology: Topology): Route {
    const from = this.refresh(analyzed);
    const statement = from.statements[statementIndex];
    if (!statement) throw new RangeError(`statement ${statementIndex} of ${from.statements.length}`);
    const values =
      from instanceof AnalyzedText
        ? from.values(params)
        : { text: from.text, params, literal: (ordinal: number) => from.literals[ordinal] };
    return routeExecution(statement.plan, values, topology);
  }

  /** How the home shard can answer a text whose route is `gather`. The text is refreshed before. Null: it is not understood well enough. */
  gatherProgram(analyzed: Analyzed, shards: readonly ShardName[]): GatherProgram | null {
    const reading = this.#rereading(this.refresh(analyzed));
    if (reading === null) return null;
    const { text, read, scope, context } = reading;
    // There and back again, a text in such an encoding may be another one.
    if (scope.foreign && !OF_ONE_BYTE.test(scope.session.encoding ?? '')) return null;
    const topology = this.#options.topology();
    const program = gatherProgram(text, read, scope.conforming, context, { topology, shards });
    // What is written here is in UTF-8.
    return program !== null && scope.foreign && !isAscii(program, topology, shards) ? null : program;
  }

  /**
   * The text with the hot table's name, for a route that is `hot`; its other statements are as they came. The text is refreshed before. Null: the table's
   * name is written in a way that is not known.
   */
  hotText(analyzed: Analyzed, index: number, halves: Halves): RenamedText | null {
    const from = this.refresh(analyzed);
    const made = this.#hotTextOf(from, index, halves);
    // What is written here is in UTF-8.
    return from instanceof AnalyzedText && from.scope.foreign && made !== null && !isPlain(made.text) ? null : made;
  }

  /** Parses only the first text of a template: what is hottest comes as fast as the lexer is. */
  #hotTextOf(from: Analyzed, index: number, halves: Halves): RenamedText | null {
    const target = from.statements[index]?.plan.target;
    // Else it belongs to another text, or to a plan that is out of date.
    const isOwn = target !== undefined && 'halves' in target && target.halves === halves;
    const name = isOwn ? this.#hotNames.get(halves) : undefined;
    if (name !== undefined) return withHotName(from.text, from.conforming, name);
    const reading = this.#rereading(from);
    if (reading === null) return null;
    const { text, read, scope, context } = reading;
    const found = hotText(text, read, index, scope.conforming, halves, context);
    if (found === null) return null;
    if (isOwn && found.name !== null) this.#hotNames.set(halves, found.name);
    return found.made;
  }

  /**
   * What locks the rows, where the base half is, of which a statement may read hot columns, and gives their primary keys in the order of the split. It may
   * have parameters of the statement. The text is refreshed before. Null: which rows these are cannot be told.
   */
  lockBaseText(analyzed: Analyzed, index: number): string | null {
    const reading = this.#rereading(this.refresh(analyzed));
    if (reading === null) return null;
    const { text, read, scope, context } = reading;
    if (scope.foreign && !isPlain(text)) return null;
    return lockBaseText(text, read, index, scope.conforming, context);
  }

  /** What is needed to read a text once more. */
  #rereading(from: Analyzed): {
    readonly text: Buffer;
    readonly read: Buffer;
    readonly scope: Scope;
    readonly context: Omit<Context, 'literals'>;
  } | null {
    if (!(from instanceof AnalyzedText)) return null;
    this.counters.parses++;
    const { text, scope } = from;
    const context = {
      registry: registryOf(this.#options.topology()),
      metadata: this.#options.metadata(),
      searchPath: pathOf(scope.session),
    };
    return { text, read: scope.conforming ? text : conforming(text), scope, context };
  }

  /**
   * Where a text goes that is one read of a known template which may share a server connection now; null: `analyze` it. Where its values
   * do not matter, the same object is given again. `text` is not kept.
   */
  laneRead(text: Buffer, session: SessionNames, topology: Topology): LaneRoute | null {
    const scope = this.#scopeOf(session);
    const template = this.#laneTemplate(text, scope);
    if (template === null) return null;
    this.counters.hits++;
    const known = template.laneRoute;
    if (known !== null && known.topology === topology) return known;
    const analyzed = this.#found(template, text, scope);
    const route = analyzed === null ? null : this.laneRoute(analyzed, null, topology);
    if (analyzed?.laneRoute === route) template.laneRoute = route;
    return route;
  }

  /** Whether a text is a read of a known template which may share a server connection now, as far as its values let it. `text` is not kept. */
  isLaneRead(text: Buffer, session: SessionNames): boolean {
    return this.#laneTemplate(text, this.#scopeOf(session)) !== null;
  }

  #laneTemplate(text: Buffer, scope: Scope): Template | null {
    this.#forgetOutdated();
    const lexer = this.#lexer;
    if (!lexer.scan(text, false, scope.conforming) || lexer.runs.length > 0) return null;
    const template = this.#cached(scope);
    return template?.laneSafe === true && template.pace.isFit ? template : null;
  }

  /** The same of what is analysed. Null: it has to go alone, or is not one to one shard. */
  laneRoute(analyzed: Analyzed, params: BoundParams | null, topology: Topology): LaneRoute | null {
    if (!(analyzed instanceof AnalyzedText)) return null;
    const { statements, template, pace } = analyzed;
    const plan = statements[0]?.plan;
    if (plan?.laneSafe !== true || statements.length !== 1 || !pace.isFit || !this.isCurrent(analyzed)) return null;
    const known = analyzed.laneRoute;
    if (known !== null && known.topology === topology) return known;
    const route = routeExecution(plan, analyzed.values(params), topology);
    if (route.kind !== 'shard' && route.kind !== 'any') return null;
    // It goes with another text than the client's.
    if (route.kind === 'shard' && route.hot !== undefined) return null;
    const shard = route.kind === 'shard' ? route.shard : (route.shards[0] as ShardName);
    const everything = plan.target.kind === 'sole';
    const found = {
      template,
      pace,
      topology,
      shard,
      touches: route.touches,
      everything,
      writesReference: false,
    } as const;
    if (everything || plan.target.kind === 'any') analyzed.laneRoute = found;
    return found;
  }

  /**
   * The same at a replica, be it fit to share a connection or not; null: it is not a read by keys of the shard that has the replica.
   * @param there the topology in which the replica is the owner
   */
  replicaRoute(
    analyzed: Analyzed,
    params: BoundParams | null,
    replica: RangeReplica,
    there: Topology,
    now: Topology,
  ): LaneRoute | null {
    if (!(analyzed instanceof AnalyzedText)) return null;
    const { statements, template, pace } = analyzed;
    const plan = statements[0]?.plan;
    if (plan?.laneSafe !== true || statements.length !== 1 || !this.isCurrent(analyzed)) return null;
    // What only the home shard has is of now, where that has the replica.
    if (plan.target.kind !== 'keys' || plan.target.home) return null;
    // A shard that follows one half of the rows has nothing of the other that counts.
    if (plan.target.halves !== undefined) return null;
    const route = routeExecution(plan, analyzed.values(params), there);
    if (route.kind !== 'shard' || route.shard !== replica.shard) return null;
    const { shard, touches } = route;
    return { template, pace, topology: now, shard, touches, everything: false, writesReference: false, replica };
  }

  /** Whether a DO block, given as its whole text, may change settings for longer than its transaction. */
  mayKeepSettings(block: string): boolean {
    return this.#options.metadata().mayKeepSettings(block);
  }

  /** Templates kept now. */
  get templates(): number {
    return this.#templates.size;
  }

  /** Bytes that they count for. */
  get templateBytes(): number {
    return this.#templates.bytes;
  }

  #newCache(): TemplateCache<Scope, Template> {
    const { templates = 10_000, templateBytes = 32 * 1024 * 1024 } = this.#options;
    return new TemplateCache({ entries: templates, bytes: templateBytes });
  }

  #tooLong(text: Buffer, scope: Scope): AnalyzedText {
    return new AnalyzedText('(too long)', text, wholeText(text), NO_LITERALS, scope, this.#world);
  }

  #broken(text: Buffer, scope: Scope): AnalyzedText {
    this.counters.syntaxErrors++;
    return new AnalyzedText('(syntax error)', text, [], NO_LITERALS, scope, this.#world, true);
  }

  #scopeOf(session: SessionNames): Scope {
    const known = this.#scopeOfSession.get(session);
    if (known !== undefined) return known;
    const { searchPath, user, encoding } = session;
    const foreign = isForeign(encoding);
    const conforming = session.conforming ?? true;
    const name = JSON.stringify([searchPath, searchPath.includes('$user') ? user : null, foreign, conforming]);
    let scope = this.#scopes.get(name);
    if (scope === undefined) {
      for (const oldest of this.#scopes.keys()) {
        if (this.#scopes.size < SCOPES) break;
        this.#scopes.delete(oldest);
      }
      scope = { id: ++this.#lastScope, session, foreign, conforming };
      this.#scopes.set(name, scope);
    }
    this.#scopeOfSession.set(session, scope);
    return scope;
  }

  /** From the lexer's last scan. */
  #statements({ plans }: Pick<Template, 'plans'>): AnalyzedStatement[] {
    const { statementStarts, statementEnds } = this.#lexer;
    return plans.map((plan, i) => ({
      plan,
      start: statementStarts[i] as number,
      end: statementEnds[i] as number,
    }));
  }
}

/** Longer texts are not looked up before they are read ahead: the lexer takes 5 ms for a megabyte. */
const SCANNED_TWICE_BYTES = 1024 * 1024;
/** Longer texts are not parsed, nor are those of more than 4 MiB that consist of more than a few large literals ({@link isTooLarge}). */
const LONGEST_PARSED = 16 * 1024 * 1024;

/** May be anything: it goes where all data is, and the session stays with what it has done there. */
const UNREAD: StatementPlan = {
  kind: 'ddl',
  command: '',
  target: {
    kind: 'sole',
    refusal: {
      sqlstate: '0A000',
      message: 'a statement as long as this is not supported on several shards',
      hint: 'Give large values as parameters, or use COPY or smaller statements.',
    },
  },
  effect: null,
  pin: 'a statement too long to be read',
};

/** search_path without `$user`. */
function pathOf(session: SessionNames): readonly string[] {
  return session.searchPath.map((s) => (s === '$user' ? session.user : s));
}

function wholeText(text: Buffer): AnalyzedStatement[] {
  return [{ plan: UNREAD, start: 0, end: text.length }];
}

/** The same in any encoding. */
function isPlain(text: Buffer): boolean {
  return !/[^\t\n\r -~]/.test(text.toString('latin1'));
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

/** Encodings of the client in which each byte is a character. */
const OF_ONE_BYTE = /^(latin|iso|win|koi|sql_ascii)/i;

function isForeign(encoding: string | undefined): boolean {
  return encoding !== undefined && !/^(utf-?8|unicode)$/i.test(encoding);
}
