import { setTimeout as passed } from 'node:timers/promises';
import { type Keyspace, type ShardName, shardsOf } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError, InternalStatementError } from '../backend/internal-statement.js';
import { PIN_HINT } from '../router/analysis.js';
import { isHalved, unfiltered } from '../router/gather-halves.js';
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
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { type Formed, plannedOf } from './brought.js';
import { agree } from './column-types.js';
import { acquireAll, cancelAll, lend, letGo, rollBack, type SentBatch } from './connections.js';
import { finished } from './finished.js';
import { AGAIN_MS, HalvesReading, stillTorn, TornError } from './halves.js';
import { Moments, Readers, type StageOn } from './moments.js';
import { notPassed, switchedOff, tooMuch, typesDiffer, wordsFor, writtenAtHome } from './refusals.js';
import { RewrittenError, stillRewritten } from './rewritten.js';
import { WorkspaceTables } from './workspace-tables.js';

/** What the client has sent. */
export type GatherStatement =
  | { readonly kind: 'simple' }
  | (SentBatch & { readonly kind: 'extended'; readonly bind: BindMessage });

const NO_PARAMETERS = { portal: '', statement: '', formats: [], values: [] };

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
  /** The columns of the query. */
  #shown: readonly FieldDescription[] = [];
  /** The query runs as it was sent, but for the names of its tables. */
  #fromItsText = false;
  readonly #tables: WorkspaceTables;
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
    this.#tables = new WorkspaceTables(this.#readers, {
      shards: placement.shards,
      bind: statement.kind === 'extended' ? statement.bind : null,
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
    this.#tables.parameters = decodeParameterDescription(described[0] as Buffer);
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
      this.#tables.copy.stop();
      this.#fail(error);
    }
    const outside = this.#block === null;
    await finished(session, this, { template: this.#analyzed.template, rows: this.#rows, since: started, outside });
  }

  /** From the rows of the query's tables. */
  async #fromRows(program: GatherProgram): Promise<void> {
    const passes = program.filtersByParameters && this.#mayPassParameters;
    this.#tables.passesParameters = passes;
    const filtered =
      (passes || !program.filtersByParameters) && program.tables.some((t) => t.filter !== null || isHalved(t));
    if (program.readsHome && this.#block?.writers.has(this.#placement.topology.home) === true) throw writtenAtHome();
    try {
      await this.#bringWhole(program, filtered);
    } catch (error) {
      const { isOver, differs } = this.#tables.copy;
      if (!filtered || !isOfValues(error) || isOver || differs || this.#abandoned) throw error;
      // A condition has failed, on rows that PostgreSQL may never have looked at: whether the query does, the query says.
      await Promise.all(this.#cancels.splice(0));
      await this.#moments.goBack();
      this.#tables.copy.again();
      this.#tables.passesParameters = false;
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
        ? new HalvesReading(tables, filtered, places, (on, sql) => this.#tables.textOf(on, sql))
        : null;
      try {
        return await this.#bring(program, filtered, halves);
      } catch (error) {
        if (!(error instanceof TornError || error instanceof RewrittenError)) throw error;
        last = error;
        await this.#moments.goBack();
        this.#tables.copy.again();
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
      const types = await this.#tables.columnsOf(form);
      if (types !== null && (await this.#tables.areOfTheirShard(types))) throw notPassed();
      await this.#tables.create(table.table, form);
      for (const part of parts) {
        const itself = part.name === table.table;
        all.push({ ...part, types: (itself ? types : await this.#tables.columnsOf(part.form)) ?? [] });
        if (!itself) await this.#tables.create(part.name, part.form);
      }
    }
    for (const stage of stages) await this.#tables.stage(stage, halves);
    if (looksLater) halves?.check();
    const others = this.#fetched.filter((reader) => !stages.some((stage) => stage.reader === reader));
    for (const brought of all) await this.#tables.fill(brought, brought.types, others);
    for (const { table, parts } of planned) if (isHalved(table)) await this.#tables.join(table, parts);
    this.#fromItsText = true;
    // It locks what is read at home, so that this can be looked at.
    if (program.readsHome)
      await this.#workspace.askInternal([
        { kind: 'parse', message: encodeParse('', program.text, this.#tables.parameters) },
      ]);
    await this.#moments.release(halves);
  }

  /** One moment for each shard. @param mayFail what is read may fail, and be asked for again @returns what comes at once: each statement of the block's own sees another moment */
  async #beginAll(mayFail: boolean, halves: HalvesReading | null, all: readonly Formed[]): Promise<readonly StageOn[]> {
    const of = (reader: Backend) => all.filter(({ texts }) => texts.has(reader.shard));
    if (halves !== null)
      return this.#moments.beginHalves(halves, of, (reader, text) => this.#tables.open(reader, text));
    await this.#moments.begin(mayFail);
    return this.#readers.lent
      .map((reader) => ({ reader, of: of(reader), asked: [] }))
      .filter((stage) => stage.of.length > 1);
  }

  /** From what the shards make of their rows. @returns false: that would not be exact, or cannot be told to be; nothing is begun */
  async #fromParts({ reduction }: GatherProgram): Promise<boolean> {
    if (reduction === null) return false;
    const form = reduction.partial('true');
    const usesParameters = PARAMETER.test(form);
    if (usesParameters && !this.#mayPassParameters) return false;
    const workspace = this.#workspace;
    const parts = await this.#moments.asInBlock(async () => {
      const columns = await this.#tables.columnsOf(form);
      return columns === null || (await this.#tables.areOfTheirShard(columns)) ? null : columns;
    });
    const text = parts && reduction.finish(parts.map((column) => column.typeOid));
    if (parts === null || text === null) return false;
    this.#tables.passesParameters = usesParameters;
    await this.#moments.begin(false);
    const made = await this.#tables.create(PARTS, form).catch((error: unknown) => {
      if (workspace.lost !== null || isNotAllowed(error)) throw error;
    });
    const shown = made === undefined ? null : await this.#tables.columnsOf(text);
    if (shown === null || !agree(shown, this.#shown)) {
      await this.#moments.endAll();
      return false;
    }
    await this.#tables.fill(
      { name: PARTS, texts: partials(reduction, this.#placement.topology), primaryKey: null },
      parts,
      this.#fetched,
    );
    try {
      await this.#moments.release();
    } catch (error) {
      if (!(error instanceof RewrittenError)) throw error;
      await this.#moments.endAll();
      this.#tables.copy.again();
      return false;
    }
    await this.#query(Buffer.from(text));
    return true;
  }

  get #mayPassParameters(): boolean {
    return this.#tables.parameters.every((oid) => oid < FIRST_NORMAL_OID);
  }

  /** Those whose rows come over the network. */
  get #fetched(): readonly Backend[] {
    return [...this.#readers.free, ...this.#readers.lent];
  }

  /** A cancel request may have come between two steps, when nothing was there to be canceled, and a limit may have been passed by the last rows of a step. */
  #checkGoing(): void {
    this.#signal?.throwIfAborted();
    if (this.#tables.copy.stopped) throw new Error('what still comes is of no use');
  }

  /** The query itself, as the workspace has its tables. */
  async #query(text: Buffer): Promise<void> {
    this.#checkGoing();
    this.#answering = true;
    return new Promise((resolve, reject) => {
      const workspace = this.#workspace;
      const describe = encodeDescribe('portal', '');
      workspace.send(
        [encodeParse('', text, this.#tables.parameters), encodeBind(this.#bind), describe, encodeExecute(''), SYNC],
        {
          kind: 'batch',
          internal: false,
          completed: (frame) => {
            this.#rows += rowsOfTag(decodeCommandComplete(frame)) ?? 0;
          },
          done: resolve,
          undo: () => reject(workspace.lost ?? new Error('server connection lost')),
        },
      );
    });
  }

  /** The client's Bind, of unnamed things. */
  get #bind(): BindMessage {
    const statement = this.#statement;
    return statement.kind === 'simple'
      ? { ...NO_PARAMETERS, resultFormats: [] }
      : { ...statement.bind, statement: '', portal: '' };
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
    this.#tables.copy.stop();
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
    if (backend === this.#workspace) this.#tables.copy.resume();
  }

  /** The query has failed before it was answered whole. */
  #fail(error: unknown): void {
    if (this.#failed || this.#abandoned) return;
    this.#failed = true;
    this.#tell(
      this.#tables.copy.isOver
        ? tooMuch(this.#session.services.gatherBytes)
        : wordsFor(this.#tables.copy.differs ? typesDiffer() : this.#signal?.aborted ? this.#signal.reason : error),
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
