import { quoteIdent, quoteLiteral } from '../../topology/quote.js';
import type { ShardName } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { InternalStatementError } from '../backend/internal-statement.js';
import type { HalvedTable } from '../router/gather-halves.js';
import { joinSql } from '../router/gather-halves.js';
import { FIRST_NORMAL_OID } from '../router/metadata.js';
import { decodeRowDescription, type FieldDescription, rowsOfTag } from '../wire/backend.js';
import { decodeErrorFields } from '../wire/error-response.js';
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
import { type Brought, type Formed, fromStage, stageForm, stageText } from './brought.js';
import { OBJECT_TYPES, objectsWithin } from './column-types.js';
import type { HalvesReading } from './halves.js';
import type { Readers, StageOn } from './moments.js';
import { type Copying, type Fetch, RowCopy } from './row-copy.js';

/** Of the home shard's rows so far; in a message of the server's: that there are too many of them. */
const OWN_SIZE = 'foreshard size of rows';

/** In the client's own transaction: what is bound to it sees the moment in which that was done. */
const PORTAL = 'foreshard rows';

/** From so many rows on, the planner is told what is in a table; without, it goes by its size. */
const ANALYZED_ROWS = 1_000;

const NO_PARAMETERS = { formats: [], values: [] };

/** For which query, and for whom. */
export interface WorkspaceUse extends Omit<Copying, 'workspace'> {
  /** Shards that the query goes to. */
  readonly shards: readonly ShardName[];
  /** The client's parameters; null: there can be none. */
  readonly bind: Pick<BindMessage, 'formats' | 'values'> | null;
}

/** The tables of a gathered query's workspace: temporary ones of one transaction on the home shard. How they are made, and how rows come into them. */
export class WorkspaceTables {
  readonly copy: RowCopy;
  /** The types of the query's parameters. */
  parameters: readonly number[] = [];
  /** The shards get them, too. */
  passesParameters = false;
  readonly #readers: Readers;
  readonly #use: WorkspaceUse;

  constructor(readers: Readers, use: WorkspaceUse) {
    this.#readers = readers;
    this.#use = use;
    this.copy = new RowCopy({
      workspace: () => this.#workspace,
      mostBytes: use.mostBytes,
      check: () => use.check(),
      cancel: () => use.cancel(),
    });
  }

  get #workspace(): Backend {
    return this.#readers.workspace;
  }

  /** Rows and values that one shard has given at once. */
  async stage(stage: StageOn, halves: HalvesReading | null): Promise<void> {
    const { reader, of, asked } = stage;
    const workspace = this.#workspace;
    const staged = `foreshard rows of ${reader.shard}`;
    const name = temporary(staged);
    const form = stageForm(stage);
    const types = (await this.columnsOf(form)) ?? [];
    await this.create(staged, form);
    this.#use.check();
    const messages =
      halves === null
        ? this.#messages(stageText(stage, reader.shard))
        : [encodeDescribe('portal', PORTAL), encodeExecute(PORTAL), encodeClose('portal', PORTAL), SYNC];
    const fetched = this.copy.fetch(reader, messages, types);
    await this.copy.into(name, [fetched]).catch((error: unknown) => {
      this.copy.stop();
      throw error;
    });
    for (const [i, brought] of of.entries())
      await workspace.runInternal(encodeQuery(`INSERT INTO ${temporary(brought.name)} ${fromStage(stage, i, name)}`));
    const told: string[] = [];
    for (const i of asked.keys())
      told.push((await workspace.value(encodeQuery(fromStage(stage, of.length + i, name)))) ?? '');
    halves?.told(reader.shard, told);
  }

  /** Fills a table of the workspace from both halves of its rows, which are tables there, too. */
  async join(table: HalvedTable, parts: readonly Formed[]): Promise<void> {
    const workspace = this.#workspace;
    const [base = '', hot = ''] = parts.map(({ name }) => name);
    this.#use.check();
    const joined = await workspace.runInternal(encodeQuery(joinSql(table, { base, hot })));
    const names = [base, hot].map(temporary).join(', ');
    await workspace.runInternal(encodeQuery(`DROP TABLE ${names}`));
    await this.#finish(table.table, table.primaryKey, rowsOfTag(joined) ?? 0);
  }

  /** The one value of a query of ours, as text. */
  async textOf(backend: Backend, sql: string): Promise<string> {
    this.#use.check();
    const rows: Buffer[] = [];
    await backend.runBatchInternal(this.#messages(sql), { rows: (slice) => rows.push(Buffer.from(slice)) });
    // A DataRow of one column, behind its header, the number of columns and the value's length.
    return Buffer.concat(rows).toString('utf8', 11);
  }

  /** The columns of a query of ours, as the home shard says; null: it does not take it. */
  async columnsOf(text: string): Promise<readonly FieldDescription[] | null> {
    const workspace = this.#workspace;
    const found: Buffer[] = [];
    try {
      await workspace.askInternal([
        { kind: 'parse', message: encodeParse('', text, this.parameters) },
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
  async areOfTheirShard(columns: readonly FieldDescription[]): Promise<boolean> {
    const oids = columns.map(({ typeOid }) => typeOid);
    if (oids.some((oid) => OBJECT_TYPES.has(oid))) return true;
    const own = oids.filter((oid) => oid >= FIRST_NORMAL_OID);
    if (own.length === 0) return false;
    return (await this.#workspace.value(encodeQuery(objectsWithin(own)))) === 't';
  }

  /** Has the moment of a query be now. Its rows wait. */
  open(reader: Backend, text: string): Promise<void> {
    return reader.askInternal([
      { kind: 'parse', message: this.#parse(text) },
      { kind: 'bind', message: this.#bindTo(PORTAL) },
    ]);
  }

  /** With the columns of a query: names, types, collations. */
  create(name: string, form: string): Promise<string> {
    return this.#workspace.runBatchInternal(
      this.#messages(`CREATE TEMPORARY TABLE ${temporary(name)} USING heap ON COMMIT DROP AS ${form} WITH NO DATA`),
    );
  }

  /** Fills a table of the workspace, whose columns are of these types. */
  async fill(
    { name, texts, primaryKey }: Brought,
    types: readonly FieldDescription[],
    readers: readonly Backend[],
  ): Promise<void> {
    this.#use.check();
    const table = temporary(name);
    const fetched = readers
      .filter((reader) => texts.has(reader.shard))
      .map((reader) => this.copy.fetch(reader, this.#messages(texts.get(reader.shard) as string), types));
    const rows = await this.#take(table, texts, types, fetched).catch((error: unknown) => {
      this.copy.stop();
      throw error;
    });
    await this.#finish(name, primaryKey, rows);
  }

  /** Of a table of the workspace that has all of its rows. */
  async #finish(name: string, primaryKey: readonly string[] | null, rows: number): Promise<void> {
    const workspace = this.#workspace;
    const table = temporary(name);
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
    const isOwn = this.#use.shards.includes(shard) && !this.#readers.isLent(this.#workspace);
    const own = isOwn ? texts.get(shard) : undefined;
    const rows = own === undefined ? 0 : await this.#takeOwn(table, own, types);
    if (fetched.length === 0) return rows;
    return rows + (await this.copy.into(table, fetched));
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
    const left = this.#use.mostBytes - this.copy.brought;
    const sized = `SELECT ${names.join(', ')}, pg_catalog.sum(${size}) OVER (ROWS UNBOUNDED PRECEDING) AS ${quoteIdent(OWN_SIZE)} FROM (${text}) o`;
    const checked = `CASE WHEN ${quoteIdent(OWN_SIZE)} > ${left} THEN CAST('${OWN_SIZE} ' || ${quoteIdent(OWN_SIZE)} AS bool) ELSE true END`;
    try {
      const tag = await workspace.runBatchInternal(
        this.#messages(`INSERT INTO ${table} SELECT ${names.join(', ')} FROM (${sized}) s WHERE ${checked}`),
      );
      this.copy.brought += Number(
        await workspace.value(encodeQuery(`SELECT pg_catalog.pg_table_size(${quoteLiteral(table)})`)),
      );
      return rowsOfTag(tag) ?? 0;
    } catch (error) {
      if (error instanceof InternalStatementError && decodeErrorFields(error.frame).message.includes(OWN_SIZE))
        this.copy.brought = Number.POSITIVE_INFINITY;
      throw error;
    }
  }

  /** Asks for all columns in binary form, with the client's parameters where filters have some. */
  #messages(text: string): Buffer[] {
    return [this.#parse(text), this.#bindTo(''), encodeDescribe('portal', ''), encodeExecute(''), SYNC];
  }

  #parse(text: string): Buffer {
    return encodeParse('', text, this.passesParameters ? this.parameters : []);
  }

  #bindTo(portal: string): Buffer {
    const { formats, values } = (this.passesParameters ? this.#use.bind : null) ?? NO_PARAMETERS;
    return encodeBind({ portal, statement: '', formats, values, resultFormats: [1] });
  }
}

function temporary(name: string): string {
  return `pg_temp.${quoteIdent(name)}`;
}
