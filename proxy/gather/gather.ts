import { setTimeout as passed } from 'node:timers/promises';
import { quoteIdent, quoteLiteral } from '../../topology/quote.js';
import { type Keyspace, type ShardName, shardsOf } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError, InternalStatementError } from '../backend/internal-statement.js';
import { PIN_HINT } from '../router/analysis.js';
import { type HalvedTable, isHalved, joinSql, unfiltered } from '../router/gather-halves.js';
import { type GatherProgram, PARAMETER, partials } from '../router/gather-program.js';
import { FIRST_NORMAL_OID } from '../router/metadata.js';
import { PARTS } from '../router/reduction.js';
import type { Analyzed } from '../router/route.js';
import type { ClientSession, SpreadRun } from '../session/client-session.js';
import type { Footprint } from '../session/footprint.js';
import type { Placement } from '../session/placement.js';
import { RefusedError } from '../session/refusals.js';
import { boundWorded, type SpreadBlock, spreadBlock } from '../session/spread-block.js';
import { SpreadWait } from '../session/spread-wait.js';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  decodeCommandComplete,
  decodeParameterDescription,
  decodeRowDescription,
  type FieldDescription,
  PARSE_COMPLETE,
  rowsOfTag,
} from '../wire/backend.js';
import {
  decodeErrorFields,
  type ErrorFields,
  encodeErrorResponse,
  isFatal,
  ServerError,
} from '../wire/error-response.js';
import {
  type BindMessage,
  encodeBind,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { type Brought, type Formed, fromStage, plannedOf, stageForm, stageText } from './brought.js';
import { agree, OBJECT_TYPES, objectsWithin } from './column-types.js';
import { acquireAll, cancelAll, lend, letGo, rollBack, type SentBatch } from './connections.js';
import { finished } from './finished.js';
import { AGAIN_MS, HalvesReading, stillTorn, TornError } from './halves.js';
import { Moments, Readers, type StageOn } from './moments.js';
import { notPassed, switchedOff, tooMuch, typesDiffer, wordsFor, writtenAtHome } from './refusals.js';
import { RewrittenError, stillRewritten } from './rewritten.js';
import { type Fetch, RowCopy } from './row-copy.js';

/** What the client has sent. */
export type GatherStatement =
  | { readonly kind: 'simple' }
  | (SentBatch & { readonly kind: 'extended'; readonly bind: BindMessage });

const NO_PARAMETERS = { portal: '', statement: '', formats: [], values: [] };

/** Of the home shard's rows so far; in a message of the server's: that there are too many of them. */
const OWN_SIZE = 'foreshard size of rows';

/** In the client's own transaction: what is bound to it sees the moment in which that was done. */
const PORTAL = 'foreshard rows';

/** From so many rows on, the planner is told what is in a table; without, it goes by its size. */
const ANALYZED_ROWS = 1_000;

/**
 * A query that is answered by the home shard, from copies of the rows of its sharded tables: temporary tables of one transaction there, the *workspace*, under the
 * names of the tables. Each shard sends the columns and rows that the query may use; they pass through here without being read.
 */
export class Gather implements BackendOwner, SpreadRun {
  readonly rowsAtStake = true;
  readonly footprint: Footprint;
  readonly #session: ClientSession;
  readonly #placement: Placement & { kind: 'gather' };
  readonly #analyzed: Analyzed;
  readonly #statement: GatherStatement;
  readonly #readers: Readers;
  #block: SpreadBlock | null = null;
  /** Null: deadlocks are not looked for. */
  #wait: SpreadWait | null = null;
  /** There from when the connections are. */
  #moments!: Moments;
  /** See SpreadRun. */
  failure: ErrorFields | null = null;
  readonly #cancels: Promise<void>[] = [];
  #program: GatherProgram | null = null;
  /** The types of the query's parameters. */
  #oids: readonly number[] = [];
  /** The shards get them, too. */
  #passesParameters = false;
  /** The columns of the query. */
  #shown: readonly FieldDescription[] = [];
  /** The query runs as it was sent, but for the names of its tables. */
  #fromItsText = false;
  /** Brings rows to the workspace. */
  readonly #copy: RowCopy;
  #rows = 0;
  #abandoned = false;
  /** The client is told rows. */
  #answering = false;
  /** It has been told an error. */
  #failed = false;
  /** The client's wish to go on. */
  #signal: AbortSignal | null = null;

  constructor(
    session: ClientSession,
    placement: Placement & { kind: 'gather' },
    analyzed: Analyzed,
    statement: GatherStatement,
  ) {
    this.#session = session;
    this.footprint = placement;
    this.#placement = placement;
    this.#readers = new Readers(placement.topology.home);
    this.#analyzed = analyzed;
    this.#statement = statement;
    this.#copy = new RowCopy({
      workspace: () => this.#workspace,
      mostBytes: session.services.gatherBytes,
      check: () => this.#checkGoing(),
      cancel: () => this.#cancels.push(...cancelAll(this.backends, session.services.logger)),
    });
  }

  get backends(): readonly Backend[] {
    return this.#readers.all;
  }

  get #workspace(): Backend {
    return this.#readers.workspace;
  }

  /**
   * @returns false when the topology, or what names mean, changed before anything was sent, or a connection was lost
   * @throws RefusedError when the query cannot be answered so; what a server says of its text and its parameters
   */
  async run(signal: AbortSignal): Promise<boolean> {
    const { services } = this.#session;
    const { shards, topology } = this.#placement;
    if (services.gatherBytes === 0) throw switchedOff();
    this.#signal = signal;
    const session = this.#session;
    const block = await spreadBlock(session);
    this.#block = block;
    const { own, lent } = this.#readers;
    try {
      const others = shards.filter((shard) => block?.writers.has(shard) !== true);
      const all = new Set([...others, topology.home]);
      if (!(await acquireAll(session, this, [...all], topology, own, signal, block))) return false;
      for (const [shard, backend] of block?.writers ?? []) if (shards.includes(shard)) lent.push(backend);
      lend(lent, this);
      this.#wait = SpreadWait.begin(session, block);
      this.#moments = new Moments(session, this.#readers, block, this.#wait);
      const program = services.router.gatherProgram(this.#analyzed, shards);
      if (program === null || !this.#reaches(program))
        throw new RefusedError('0A000', 'this query is not understood well enough to be exact on several shards', {
          hint: PIN_HINT,
        });
      this.#program = program;
      if (!(await acquireAll(session, this, this.#unwitnessed(program), topology, own, signal, block))) return false;
      await this.#moments
        .asInBlock(() => this.#describe())
        .catch((error: unknown) => {
          signal.throwIfAborted();
          const told = asServerError(error);
          throw block !== null && told instanceof ServerError ? new ServerError(boundWorded(block, told.fields)) : told;
        });
      await this.#answer(program);
      return true;
    } finally {
      await Promise.all(this.#cancels);
      await letGo(session, own, lent, block, this.#wait);
    }
  }

  /** Whether the query has been sent to where both halves of its rows are. */
  #reaches({ tables }: GatherProgram): boolean {
    const { touches } = this.#placement;
    return tables.every(({ halves }) => halves === null || touches.some((t) => t.keyspace === halves.keyspace));
  }

  /** Shards that have halves of its rows, and on which only the client's own transaction reads. */
  #unwitnessed({ tables }: GatherProgram): ShardName[] {
    const { keyspaces, home } = this.#placement.topology;
    const of = tables.filter(isHalved).flatMap((table) => [table.keyspace, table.halves.keyspace]);
    const shards = new Set(of.flatMap((name) => [...shardsOf(keyspaces.get(name) as Keyspace)]));
    return this.#readers.lent.map(({ shard }) => shard).filter((shard) => shard !== home && shards.has(shard));
  }

  /** Has the home shard read the query as it was sent, with its parameters: what is wrong with these, and what columns it has, is said as of the tables. */
  async #describe(): Promise<void> {
    const session = this.#session;
    const statement = this.#statement;
    const extended = statement.kind === 'extended' ? statement : null;
    const described: Buffer[] = [];
    const columns: Buffer[] = [];
    const workspace = this.#workspace;
    const { text } = this.#analyzed;
    const asked = workspace.askInternal([
      { kind: 'parse', message: encodeParse('', text, extended?.oids ?? []) },
      {
        kind: 'describe',
        message: encodeDescribe('statement', ''),
        replied: (_, frame) => described.push(kept(frame)),
      },
      { kind: 'bind', message: encodeBind(this.#bind) },
      { kind: 'describe', message: encodeDescribe('portal', ''), replied: (_, frame) => columns.push(kept(frame)) },
    ]);
    await asked.catch(async (error: unknown) => {
      // A Query that names parameters: PostgreSQL says that there are none.
      const [parameters] = described;
      if (extended === null && parameters !== undefined && decodeParameterDescription(parameters).length > 0) {
        await rollBack(workspace);
        await workspace.runInternal(encodeQuery(text));
      }
      throw error;
    });
    this.#oids = decodeParameterDescription(described[0] as Buffer);
    this.#shown = decodeRowDescription(columns[0] as Buffer);
    if (extended === null) {
      for (const frame of columns) session.write(frame);
      return;
    }
    if (extended.parsed) session.write(PARSE_COMPLETE);
    if (extended.describe === 'statement') for (const frame of described) session.write(frame);
    session.write(BIND_COMPLETE);
    if (extended.describe === 'portal') for (const frame of columns) session.write(frame);
  }

  async #answer(program: GatherProgram): Promise<void> {
    const started = performance.now();
    const session = this.#session;
    session.bytesForwarded = 0;
    session.listening.began();
    try {
      if (!(await this.#fromParts(program))) await this.#fromRows(program);
      if (!this.#failed) await this.#moments.end();
    } catch (error) {
      this.#copy.stop();
      this.#fail(error);
    }
    const outside = this.#block === null;
    await finished(session, this, { template: this.#analyzed.template, rows: this.#rows, since: started, outside });
  }

  /** From the rows of the query's tables. */
  async #fromRows(program: GatherProgram): Promise<void> {
    const passes = program.filtersByParameters && this.#mayPassParameters;
    this.#passesParameters = passes;
    const filtered =
      (passes || !program.filtersByParameters) && program.tables.some((t) => t.filter !== null || isHalved(t));
    if (program.readsHome && this.#block?.writers.has(this.#placement.topology.home) === true) throw writtenAtHome();
    try {
      await this.#bringWhole(program, filtered);
    } catch (error) {
      const { isOver, differs } = this.#copy;
      if (!filtered || !isOfValues(error) || isOver || differs || this.#abandoned) throw error;
      // A condition has failed, on rows that PostgreSQL may never have looked at: whether the query does, the query says.
      await Promise.all(this.#cancels.splice(0));
      await this.#moments.goBack();
      this.#copy.again();
      this.#passesParameters = false;
      await this.#bringWhole(program, false);
    }
    await this.#query(program.text);
  }

  /** Until both halves of rows that are on two shards have been read as of one moment, and no table has been rewritten meanwhile. @param filtered shards leave out what the query surely does not use */
  async #bringWhole(program: GatherProgram, filtered: boolean): Promise<void> {
    const { tables } = program;
    const { topology, shards } = this.#placement;
    const places = { topology, shards, lent: new Set(this.#readers.lent.map(({ shard }) => shard)) };
    let last: TornError | RewrittenError | null = null;
    for (const ms of AGAIN_MS) {
      const halves = tables.some(isHalved)
        ? new HalvesReading(tables, filtered, places, (on, sql) => this.#textOf(on, sql))
        : null;
      try {
        return await this.#bring(program, filtered, halves);
      } catch (error) {
        if (!(error instanceof TornError || error instanceof RewrittenError)) throw error;
        last = error;
        await this.#moments.goBack();
        this.#copy.again();
        await passed(ms, undefined, this.#signal === null ? {} : { signal: this.#signal });
        this.#checkGoing();
      }
    }
    throw last instanceof RewrittenError ? stillRewritten(last) : stillTorn();
  }

  async #bring(program: GatherProgram, filtered: boolean, halves: HalvesReading | null): Promise<void> {
    const { tables } = program;
    const { topology, shards } = this.#placement;
    this.#fromItsText = false;
    const planned = plannedOf(filtered ? tables : tables.map((table) => unfiltered(table)), topology, shards);
    const stages = await this.#beginAll(
      filtered && tables.some(({ filter }) => filter !== null),
      halves,
      planned.flatMap(({ parts }) => [...parts]),
    );
    const looksLater = stages.some(({ asked }) => asked.length > 0);
    if (!looksLater) halves?.check();
    const all: (Formed & { readonly types: readonly FieldDescription[] })[] = [];
    for (const { table, form, parts } of planned) {
      const types = await this.#columnsOf(form);
      if (types !== null && (await this.#areOfTheirShard(types))) throw notPassed();
      await this.#create(`pg_temp.${quoteIdent(table.table)}`, form);
      for (const part of parts) {
        const itself = part.name === table.table;
        all.push({ ...part, types: (itself ? types : await this.#columnsOf(part.form)) ?? [] });
        if (!itself) await this.#create(`pg_temp.${quoteIdent(part.name)}`, part.form);
      }
    }
    for (const stage of stages) await this.#stage(stage, halves);
    if (looksLater) halves?.check();
    const others = this.#fetched.filter((reader) => !stages.some((stage) => stage.reader === reader));
    for (const brought of all) await this.#fill(brought, brought.types, others);
    for (const { table, parts } of planned) if (isHalved(table)) await this.#join(table, parts);
    this.#fromItsText = true;
    // It locks what is read at home, so that this can be looked at.
    if (program.readsHome)
      await this.#workspace.askInternal([{ kind: 'parse', message: encodeParse('', program.text, this.#oids) }]);
    await this.#moments.release(halves);
  }

  /** One moment for each shard. @param mayFail what is read may fail, and be asked for again @returns what comes at once: each statement of the block's own sees another moment */
  async #beginAll(mayFail: boolean, halves: HalvesReading | null, all: readonly Formed[]): Promise<readonly StageOn[]> {
    const of = (reader: Backend) => all.filter(({ texts }) => texts.has(reader.shard));
    if (halves !== null) return this.#moments.beginHalves(halves, of, (reader, text) => this.#open(reader, text));
    await this.#moments.begin(mayFail);
    return this.#readers.lent
      .map((reader) => ({ reader, of: of(reader), asked: [] }))
      .filter((stage) => stage.of.length > 1);
  }

  /** Rows and values that one shard has given at once. */
  async #stage(stage: StageOn, halves: HalvesReading | null): Promise<void> {
    const { reader, of, asked } = stage;
    const workspace = this.#workspace;
    const name = `pg_temp.${quoteIdent(`foreshard rows of ${reader.shard}`)}`;
    const form = stageForm(stage);
    const types = (await this.#columnsOf(form)) ?? [];
    await this.#create(name, form);
    this.#checkGoing();
    const messages =
      halves === null
        ? this.#messages(stageText(stage, reader.shard))
        : [encodeDescribe('portal', PORTAL), encodeExecute(PORTAL), encodeClose('portal', PORTAL), SYNC];
    const fetched = this.#copy.fetch(reader, messages, types);
    await this.#copy.into(name, [fetched]).catch((error: unknown) => {
      this.#copy.stop();
      throw error;
    });
    for (const [i, brought] of of.entries())
      await workspace.runInternal(
        encodeQuery(`INSERT INTO pg_temp.${quoteIdent(brought.name)} ${fromStage(stage, i, name)}`),
      );
    const told: string[] = [];
    for (const i of asked.keys())
      told.push((await workspace.value(encodeQuery(fromStage(stage, of.length + i, name)))) ?? '');
    halves?.told(reader.shard, told);
  }

  /** Fills a table of the workspace from both halves of its rows, which are tables there, too. */
  async #join(table: HalvedTable, parts: readonly Formed[]): Promise<void> {
    const workspace = this.#workspace;
    const [base = '', hot = ''] = parts.map(({ name }) => name);
    this.#checkGoing();
    const joined = await workspace.runInternal(encodeQuery(joinSql(table, { base, hot })));
    const names = [base, hot].map((name) => `pg_temp.${quoteIdent(name)}`).join(', ');
    await workspace.runInternal(encodeQuery(`DROP TABLE ${names}`));
    await this.#finish(table.table, table.primaryKey, rowsOfTag(joined) ?? 0);
  }

  /** The one value of a query of ours, as text. */
  async #textOf(backend: Backend, sql: string): Promise<string> {
    this.#checkGoing();
    const rows: Buffer[] = [];
    await backend.runBatchInternal(this.#messages(sql), { rows: (slice) => rows.push(Buffer.from(slice)) });
    // A DataRow of one column, behind its header, the number of columns and the value's length.
    return Buffer.concat(rows).toString('utf8', 11);
  }

  /** From what the shards make of their rows. @returns false: that would not be exact, or cannot be told to be; nothing is begun */
  async #fromParts({ reduction }: GatherProgram): Promise<boolean> {
    if (reduction === null) return false;
    const form = reduction.partial('true');
    const usesParameters = PARAMETER.test(form);
    if (usesParameters && !this.#mayPassParameters) return false;
    const workspace = this.#workspace;
    const parts = await this.#moments.asInBlock(async () => {
      const columns = await this.#columnsOf(form);
      return columns === null || (await this.#areOfTheirShard(columns)) ? null : columns;
    });
    const text = parts && reduction.finish(parts.map((column) => column.typeOid));
    if (parts === null || text === null) return false;
    this.#passesParameters = usesParameters;
    await this.#moments.begin(false);
    const name = `pg_temp.${quoteIdent(PARTS)}`;
    const made = await this.#create(name, form).catch((error: unknown) => {
      if (workspace.lost !== null || isNotAllowed(error)) throw error;
    });
    const shown = made === undefined ? null : await this.#columnsOf(text);
    if (shown === null || !agree(shown, this.#shown)) {
      await this.#moments.endAll();
      return false;
    }
    await this.#fill(
      { name: PARTS, texts: partials(reduction, this.#placement.topology), primaryKey: null },
      parts,
      this.#fetched,
    );
    try {
      await this.#moments.release();
    } catch (error) {
      if (!(error instanceof RewrittenError)) throw error;
      await this.#moments.endAll();
      this.#copy.again();
      return false;
    }
    await this.#query(Buffer.from(text));
    return true;
  }

  get #mayPassParameters(): boolean {
    return this.#oids.every((oid) => oid < FIRST_NORMAL_OID);
  }

  /** The columns of a query of ours, as the home shard says; null: it does not take it. */
  async #columnsOf(text: string): Promise<readonly FieldDescription[] | null> {
    const workspace = this.#workspace;
    const found: Buffer[] = [];
    try {
      await workspace.askInternal([
        { kind: 'parse', message: encodeParse('', text, this.#oids) },
        {
          kind: 'describe',
          message: encodeDescribe('statement', ''),
          replied: (type, frame) => type === BACKEND.RowDescription && found.push(kept(frame)),
        },
      ]);
    } catch (error) {
      if (error instanceof InternalStatementError && workspace.lost === null) return null;
      throw error;
    }
    const [frame] = found;
    return frame === undefined ? null : decodeRowDescription(frame);
  }

  /** Whether values of some column mean something else on another shard: they name objects by OIDs. */
  async #areOfTheirShard(columns: readonly FieldDescription[]): Promise<boolean> {
    const oids = columns.map(({ typeOid }) => typeOid);
    if (oids.some((oid) => OBJECT_TYPES.has(oid))) return true;
    const own = oids.filter((oid) => oid >= FIRST_NORMAL_OID);
    if (own.length === 0) return false;
    return (await this.#workspace.value(encodeQuery(objectsWithin(own)))) === 't';
  }

  /** Those whose rows come over the network. */
  get #fetched(): readonly Backend[] {
    return [...this.#readers.free, ...this.#readers.lent];
  }

  /** Has the moment of a query be now. Its rows wait. */
  #open(reader: Backend, text: string): Promise<void> {
    return reader.askInternal([
      { kind: 'parse', message: this.#parse(text) },
      { kind: 'bind', message: this.#bindTo(PORTAL) },
    ]);
  }

  /** A cancel request may have come between two steps, when nothing was there to be canceled, and a limit may have been passed by the last rows of a step. */
  #checkGoing(): void {
    this.#signal?.throwIfAborted();
    if (this.#copy.stopped) throw new Error('what still comes is of no use');
  }

  /** With the columns of a query: names, types, collations. */
  #create(name: string, form: string): Promise<string> {
    return this.#workspace.runBatchInternal(
      this.#messages(`CREATE TEMPORARY TABLE ${name} USING heap ON COMMIT DROP AS ${form} WITH NO DATA`),
    );
  }

  /** Fills a table of the workspace, whose columns are of these types. */
  async #fill(
    { name, texts, primaryKey }: Brought,
    types: readonly FieldDescription[],
    readers: readonly Backend[],
  ): Promise<void> {
    this.#checkGoing();
    const table = `pg_temp.${quoteIdent(name)}`;
    const fetched = readers
      .filter((reader) => texts.has(reader.shard))
      .map((reader) => this.#copy.fetch(reader, this.#messages(texts.get(reader.shard) as string), types));
    const rows = await this.#take(table, texts, types, fetched).catch((error: unknown) => {
      this.#copy.stop();
      throw error;
    });
    await this.#finish(name, primaryKey, rows);
  }

  /** Of a table of the workspace that has all of its rows. */
  async #finish(name: string, primaryKey: readonly string[] | null, rows: number): Promise<void> {
    const workspace = this.#workspace;
    const table = `pg_temp.${quoteIdent(name)}`;
    if (primaryKey !== null) {
      const key = primaryKey.map(quoteIdent).join(', ');
      await workspace.runInternal(encodeQuery(`ALTER TABLE ${table} ADD PRIMARY KEY (${key})`));
    }
    if (rows >= ANALYZED_ROWS) await workspace.runInternal(encodeQuery(`ANALYZE ${table}`));
  }

  /** @returns the number of rows */
  async #take(
    table: string,
    texts: Brought['texts'],
    types: readonly FieldDescription[],
    fetched: readonly Fetch[],
  ): Promise<number> {
    const { shard } = this.#workspace;
    const isOwn = this.#placement.shards.includes(shard) && this.#block?.writers.has(shard) !== true;
    const own = isOwn ? texts.get(shard) : undefined;
    const rows = own === undefined ? 0 : await this.#takeOwn(table, own, types);
    if (fetched.length === 0) return rows;
    return rows + (await this.#copy.into(table, fetched));
  }

  /**
   * Rows of the home shard's own, in its own transaction: another one of the same query might wait for a lock that waits for this one. It stops where there are too
   * many bytes. @returns the number of rows
   */
  async #takeOwn(table: string, text: string, types: readonly FieldDescription[]): Promise<number> {
    const workspace = this.#workspace;
    // Names of columns are those of the text.
    const names = types.map(({ name }) => quoteIdent(Buffer.from(name, 'latin1').toString('utf8')));
    const size = names.map((name) => `coalesce(pg_catalog.pg_column_size(${name}), 0)`).join(' + ');
    const left = this.#session.services.gatherBytes - this.#copy.brought;
    const sized = `SELECT ${names.join(', ')}, pg_catalog.sum(${size}) OVER (ROWS UNBOUNDED PRECEDING) AS ${quoteIdent(OWN_SIZE)} FROM (${text}) o`;
    const checked = `CASE WHEN ${quoteIdent(OWN_SIZE)} > ${left} THEN CAST('${OWN_SIZE} ' || ${quoteIdent(OWN_SIZE)} AS bool) ELSE true END`;
    try {
      const tag = await workspace.runBatchInternal(
        this.#messages(`INSERT INTO ${table} SELECT ${names.join(', ')} FROM (${sized}) s WHERE ${checked}`),
      );
      this.#copy.brought += Number(
        await workspace.value(encodeQuery(`SELECT pg_catalog.pg_table_size(${quoteLiteral(table)})`)),
      );
      return rowsOfTag(tag) ?? 0;
    } catch (error) {
      if (error instanceof InternalStatementError && decodeErrorFields(error.frame).message.includes(OWN_SIZE))
        this.#copy.brought = Number.POSITIVE_INFINITY;
      throw error;
    }
  }

  /** The query itself, as the workspace has its tables. */
  async #query(text: Buffer): Promise<void> {
    this.#checkGoing();
    this.#answering = true;
    return new Promise((resolve, reject) => {
      const workspace = this.#workspace;
      const describe = encodeDescribe('portal', '');
      workspace.send([encodeParse('', text, this.#oids), encodeBind(this.#bind), describe, encodeExecute(''), SYNC], {
        kind: 'batch',
        internal: false,
        completed: (frame) => {
          this.#rows += rowsOfTag(decodeCommandComplete(frame)) ?? 0;
        },
        done: resolve,
        undo: () => reject(workspace.lost ?? new Error('server connection lost')),
      });
    });
  }

  /** The client's Bind, of unnamed things. */
  get #bind(): BindMessage {
    const statement = this.#statement;
    return statement.kind === 'simple'
      ? { ...NO_PARAMETERS, resultFormats: [] }
      : { ...statement.bind, statement: '', portal: '' };
  }

  /** Asks for all columns in binary form, with the client's parameters where filters have some. */
  #messages(text: string): Buffer[] {
    return [this.#parse(text), this.#bindTo(''), encodeDescribe('portal', ''), encodeExecute(''), SYNC];
  }

  #parse(text: string): Buffer {
    return encodeParse('', text, this.#passesParameters ? this.#oids : []);
  }

  #bindTo(portal: string): Buffer {
    const { kind } = this.#statement;
    const { formats, values } = kind === 'extended' && this.#passesParameters ? this.#statement.bind : NO_PARAMETERS;
    return encodeBind({ portal, statement: '', formats, values, resultFormats: [1] });
  }

  /** The client reads too slowly. */
  pause(): void {
    if (this.#answering) this.#workspace.connection.pause();
  }

  resume(): void {
    if (this.#answering) this.#workspace.connection.resume();
  }

  /** The client has gone: stop the shards. */
  abandon(): void {
    this.#abandoned = true;
    this.#copy.stop();
  }

  onReply(_backend: Backend, type: number, frame: Buffer): void {
    if (this.#failed || this.#abandoned) return;
    switch (type) {
      case BACKEND.ErrorResponse:
        if (isFatal(decodeErrorFields(frame))) return; // the loss of the connection follows
        this.#failed = true;
        this.#tell(decodeErrorFields(this.#session.worded(this.#asSent(frame))));
        return;
      case BACKEND.NotificationResponse:
      case BACKEND.ParseComplete:
      case BACKEND.BindComplete:
        return;
      case BACKEND.RowDescription:
        // The rows would be taken for others than they are.
        if (!agree(decodeRowDescription(frame), this.#shown)) this.#fail(typesDiffer());
        return;
      case BACKEND.CommandComplete:
        this.#session.write(frame);
        if (this.#statement.kind === 'extended' && this.#statement.closePortal) this.#session.write(CLOSE_COMPLETE);
        return;
      default:
        this.#session.write(frame);
    }
  }

  /** An error of the query, with its position where it is in the client's text. */
  #asSent(frame: Buffer): Buffer {
    const { position, ...fields } = decodeErrorFields(frame);
    if (position === undefined) return frame;
    const at = this.#fromItsText ? (this.#program as GatherProgram).positionAsSent(position) : undefined;
    return encodeErrorResponse(at === undefined ? fields : { ...fields, position: at });
  }

  onData(_backend: Backend, slice: Buffer): void {
    if (this.#failed || this.#abandoned) return;
    this.#wait?.heard();
    this.#session.bytesForwarded += slice.length;
    this.#session.write(slice);
  }

  onCopyIn(): void {
    throw new Error('a SELECT does not copy in');
  }

  onReady(): void {
    // each step waits for its own end
  }

  onLost(backend: Backend): void {
    // Half a row has gone to the client: whatever followed would be taken for the other half.
    if (this.#answering && backend === this.#workspace && backend.midMessage) this.#session.close();
  }

  onWritable(backend: Backend): void {
    if (backend === this.#workspace) this.#copy.resume();
  }

  /** The query has failed before it was answered whole. */
  #fail(error: unknown): void {
    if (this.#failed || this.#abandoned) return;
    this.#failed = true;
    this.#tell(
      this.#copy.isOver
        ? tooMuch(this.#session.services.gatherBytes)
        : wordsFor(this.#copy.differs ? typesDiffer() : this.#signal?.aborted ? this.#signal.reason : error),
    );
  }

  /** In a block the error is told when all of the block has failed. */
  #tell(fields: ErrorFields): void {
    if (this.#block === null) this.#session.writeError(fields);
    else this.failure = boundWorded(this.#block, fields);
  }
}

/** Class 22, what an expression says of its arguments ("PostgreSQL Error Codes"). */
function isOfValues(error: unknown): boolean {
  return error instanceof InternalStatementError && decodeErrorFields(error.frame).sqlstate.startsWith('22');
}

/** Not about the query. */
function isNotAllowed(error: unknown): boolean {
  return !(error instanceof InternalStatementError) || decodeErrorFields(error.frame).sqlstate === '42501';
}
