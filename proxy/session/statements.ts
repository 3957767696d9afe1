import { ForeshardError } from '../../topology/errors.js';
import type { Analyzed, Halves } from '../router/route.js';
import type { SessionServices } from './client-session.js';
import { type HotStatement, hotTextOf } from './hot-statement.js';
import type { NameLookup } from './name-lookup.js';
import { BACKSLASH, type ClientStatement } from './prepared.js';

/** What those have prepared who have prepared nothing. */
const NONE: ReadonlyMap<string, ClientStatement> = new Map();

/** The statements that the client has prepared, by protocol or by PREPARE; `''` is the unnamed one. Names are byte strings, as in messages. */
export class ClientStatements {
  readonly #services: SessionServices;
  readonly #lookup: NameLookup;
  #byName: ReadonlyMap<string, ClientStatement> = NONE;
  /** The same; null: it has prepared none yet. */
  #own: Map<string, ClientStatement> | null = null;
  #closed = false;

  constructor(services: SessionServices, lookup: NameLookup) {
    this.#services = services;
    this.#lookup = lookup;
  }

  get size(): number {
    return this.#byName.size;
  }

  /** Grows when the schema has changed. */
  get schemaVersion(): number {
    return this.#services.contents.version;
  }

  /** Looks a text up as names are looked up now. */
  analyze(sql: Buffer): Analyzed {
    return this.#services.router.analyze(sql, this.#lookup.current.names);
  }

  /** Reads a long text in another thread, so that `analyze` has less to do. Null: there is no need. */
  readAhead(sql: Buffer): Promise<void> | null {
    return this.#services.router.readAhead(sql, this.#lookup.current.names);
  }

  /** A Parse. @throws ForeshardError as PostgreSQL says it, if the name is taken or the text cannot be prepared */
  add(name: string, sql: Buffer, oids: readonly number[]): ClientStatement {
    if (name !== '' && this.#byName.has(name))
      throw new ForeshardError('42P05', `prepared statement "${shown(name)}" already exists`);
    const analyzed = this.analyze(sql);
    if (analyzed.statements.length > 1 && !analyzed.syntaxError)
      throw new ForeshardError('42601', 'cannot insert multiple commands into a prepared statement');
    // The unnamed one comes back if this Parse is skipped.
    const replaced = this.take(name);
    const { current } = this.#lookup;
    const content = this.#services.contents.acquire(sql, oids, null, current.names.conforming);
    const statement: ClientStatement = {
      content,
      analyzed,
      lookup: current,
      told: null,
      source: null,
      made: false,
      replaced,
      undone: false,
      released: false,
      hot: null,
    };
    this.#put(name, statement);
    return statement;
  }

  /**
   * What PREPARE makes, not yet under its name: `define` or `release` follows. `text`: of the PREPARE, `sql`: the statement in it,
   * `nameEnd`: where what stands behind the name begins.
   */
  make(
    written: { readonly text: Buffer; readonly before: number },
    text: Buffer,
    sql: Buffer,
    nameEnd: number,
    oids: readonly number[],
  ): ClientStatement {
    const { current } = this.#lookup;
    const content = this.#services.contents.acquire(sql, oids, text.subarray(nameEnd), current.names.conforming);
    const source = { text: Buffer.from(written.text), before: written.before };
    return {
      content,
      analyzed: this.analyze(content.sql),
      lookup: current,
      told: null,
      source,
      made: true,
      replaced: null,
      undone: false,
      released: false,
      hot: null,
    };
  }

  /** Those that servers have been told of, but the unnamed one. */
  *made(): Generator<readonly [name: string, ClientStatement]> {
    for (const [name, statement] of this.#byName) if (name !== '' && statement.made) yield [name, statement];
  }

  /** Whether any was prepared by PREPARE. */
  get anyBySql(): boolean {
    for (const { source } of this.#byName.values()) if (source !== null) return true;
    return false;
  }

  /** A server has taken what `make` made. */
  define(name: string, statement: ClientStatement): void {
    this.forget(name);
    this.#put(name, statement);
  }

  /** What the name stands for, as names are looked up now; null: nothing. */
  find(name: string): ClientStatement | null {
    const statement = this.#byName.get(name);
    if (statement === undefined || this.#isMisread(statement)) return null;
    this.#refresh(statement);
    return statement;
  }

  /** What the name stands for, as it was looked at last; null: nothing. */
  peek(name: string): ClientStatement | null {
    return this.#byName.get(name) ?? null;
  }

  /** Whether `statement` is what this name stands for now. */
  is(name: string, statement: ClientStatement): boolean {
    return this.#byName.get(name) === statement;
  }

  /** @throws ForeshardError 26000, or 0A000 when it would not mean the same any more */
  get(name: string): ClientStatement {
    const statement = this.#byName.get(name);
    if (statement === undefined)
      throw new ForeshardError(
        '26000',
        name === ''
          ? 'unnamed prepared statement does not exist'
          : `prepared statement "${shown(name)}" does not exist`,
      );
    if (this.#isMisread(statement))
      throw new ForeshardError(
        '0A000',
        'a prepared statement with a backslash in it cannot be used after standard_conforming_strings was changed',
        { hint: "Prepare it again, or write E'…' for strings with backslashes." },
      );
    this.#refresh(statement);
    return statement;
  }

  /** Whether another server connection, on which it has to be prepared anew, would read it in another way than it was meant. */
  #isMisread({ lookup, content }: ClientStatement): boolean {
    return lookup.names.conforming !== this.#lookup.current.names.conforming && content.sql.includes(BACKSLASH);
  }

  /** Analyses the statement again if names mean something else by now, as PostgreSQL will, or the schema or the registry has changed. */
  #refresh(statement: ClientStatement): void {
    const { current } = this.#lookup;
    if (statement.lookup === current && this.#services.router.isCurrent(statement.analyzed)) return;
    // The text stays in the encoding that it was sent in.
    const encoding = statement.lookup.names.encoding ?? current.names.encoding;
    const names = { ...current.names, ...(encoding === undefined ? {} : { encoding }) };
    statement.analyzed = this.#services.router.analyze(statement.content.sql, names);
    statement.lookup = current;
  }

  /** The Parse of the statement has been done: what was there before it is gone. */
  parsed(statement: ClientStatement): void {
    const { replaced } = statement;
    statement.replaced = null;
    if (replaced !== null) this.release(replaced);
  }

  /** The Parse of `statement` has not been done. `failed`: the server has begun with it, and so given up the unnamed one before. */
  undo(name: string, statement: ClientStatement, failed: boolean): void {
    if (failed) this.parsed(statement);
    if (statement.undone) return;
    statement.undone = true;
    if (statement.released) this.parsed(statement);
    if (!this.is(name, statement)) return; // whatever took its place looks behind it
    let before = statement.replaced;
    statement.replaced = null;
    this.forget(name);
    while (before?.undone) {
      const undone = before;
      before = undone.replaced;
      undone.replaced = null;
      this.release(undone);
    }
    this.restore(name, before);
  }

  /** DEALLOCATE. @returns whether there was such a statement. */
  forget(name: string): boolean {
    const statement = this.take(name);
    if (statement === null) return false;
    this.release(statement);
    return true;
  }

  /** Takes it away from the client; `release` or `restore` follows. */
  take(name: string): ClientStatement | null {
    const statement = this.#byName.get(name) ?? null;
    this.#own?.delete(name);
    return statement;
  }

  #put(name: string, statement: ClientStatement): void {
    if (this.#own === null) {
      this.#own = new Map();
      this.#byName = this.#own;
    }
    this.#own.set(name, statement);
  }

  /** Nobody uses it any more. */
  release(statement: ClientStatement): void {
    this.#services.contents.release(statement.content);
    if (statement.hot !== null) this.#services.contents.release(statement.hot.content);
    statement.hot = null;
    statement.released = true;
    if (statement.undone) this.parsed(statement);
  }

  /** A Close was not carried out: an error came before it. */
  restore(name: string, statement: ClientStatement | null): void {
    if (statement === null) return;
    if (this.#closed || this.#byName.has(name)) this.release(statement);
    else this.#put(name, statement);
  }

  forgetAll(): void {
    for (const name of [...this.#byName.keys()]) this.forget(name);
  }

  /** The statement as it is said where the hot half of its rows is. @throws RefusedError when it cannot be */
  hotOf(statement: ClientStatement, analyzed: Analyzed, halves: Halves): HotStatement {
    const known = statement.hot;
    if (known !== null && known.analyzed === analyzed && known.halves === halves) return known;
    const { contents, router } = this.#services;
    const text = hotTextOf(router, analyzed, halves);
    const content = contents.acquire(text.text, statement.content.oids, null, analyzed.conforming);
    if (known !== null) contents.release(known.content);
    statement.hot = { analyzed, halves, text, content };
    // Nobody gives it up any more.
    if (statement.released) contents.release(content);
    return statement.hot;
  }

  /** Whether the client prepared a statement of this name, given as SQL has it. */
  knows(name: string): boolean {
    return this.#byName.has(protocolName(name));
  }

  /** The client has gone. */
  close(): void {
    this.#closed = true;
    this.forgetAll();
  }
}

/** A name from SQL as the protocol's messages have it: a byte string. */
export function protocolName(name: string): string {
  return Buffer.from(name).toString('latin1');
}

/** Names are byte strings; in messages they are text. */
function shown(name: string): string {
  return Buffer.from(name, 'latin1').toString('utf8');
}
