import { parseDuration } from '../../topology/duration.js';
import { quoteLiteral } from '../../topology/quote.js';
import { soleShard } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { type CodeChange, codeChange } from '../router/code-change.js';
import { readText } from '../router/keys.js';
import type { Analyzed, SetConfigCall, StatementPlan } from '../router/route.js';
import { tellsTransaction } from '../router/telling.js';
import { encodeCommandComplete } from '../wire/backend.js';
import { type ErrorFields, encodeErrorResponse, encodeNoticeResponse, fieldsOfError } from '../wire/error-response.js';
import { encodeQuery } from '../wire/frontend.js';
import { FAILED, IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { ClientSession } from './client-session.js';
import { FAILING_QUERY } from './failing-query.js';
import type { Execution } from './placement.js';
import { RefusedError, transactionEnded } from './refusals.js';
import { isAsked, MAX_STALENESS, NO_SETTINGS, TIMEOUTS } from './settings.js';
import type { ClientStatements } from './statements.js';
import type { Transaction } from './transaction.js';

/** What has met a closed gate tries again at least this often, ms. */
const MAX_BACK_OFF_MS = 64;

/** What both protocols do with a unit (a Query, or a batch up to its Sync): effects of its statements, failures made real, retries. */
export class Units {
  /** An error was answered in the current Query or batch. */
  unitFailed = false;
  readonly #session: ClientSession;
  readonly #statements: ClientStatements;
  #lastTag = '';
  /** Of the unit under way: it began outside of a transaction block, all in it only reads, something in it writes, something commits. */
  #autocommit = false;
  #onlyReads = false;
  #writes = false;
  #commits = false;
  #settingsTouched = false;
  #discarded = false;
  /** The schema was changed in the transaction under way, for other sessions too. */
  #ddl = false;
  /** So was what runs behind statements and leaves something on a connection. */
  #code: CodeChange[] = [];
  /** Resolves when the router knows what DDL has made; it is told at the end of its transaction. */
  #schema: Promise<void> | null = null;
  /** Settings given a value that is not known here; null: none. */
  #toAsk: Set<string> | null = null;
  /** What was last refused by a closed gate though it went by the newest map, and how often. */
  #refused = { since: Number.NaN, tries: 0 };

  constructor(session: ClientSession, statements: ClientStatements) {
    this.#session = session;
    this.#statements = statements;
  }

  /** To be called before the first message of a Query or batch is sent. */
  beginUnit(backend: Backend): void {
    this.unitFailed = false;
    this.#autocommit = backend.status === IDLE;
    this.#onlyReads = true;
    this.#writes = false;
    this.#commits = false;
    this.#session.bytesForwarded = 0;
    if (backend.status === IDLE) this.#session.settings.begin();
  }

  /**
   * Holds the replies back until the end of the unit and runs it again if the shard says that the range is not its own.
   * `since`: when the client sent it; the retries end `holdTimeoutMs` later.
   */
  closeGate(prelude: readonly Buffer[], since: number, again: () => Promise<void>): void {
    const session = this.#session;
    const { live } = session.services;
    const saved = [...prelude];
    session.gate.close(async () => {
      try {
        const placedBy = session.lease.transaction?.since?.epoch ?? live.current.epoch;
        await session.lease.abandon(saved);
        await this.untilMoved(since, placedBy);
      } catch (error) {
        await this.fail(error);
        return;
      }
      await again();
    });
  }

  /**
   * A shard has said that it does not own the range of what was placed by the map of this epoch. Resolves when it may be placed again.
   * @param since when the client sent it, on performance.now()'s clock @throws RefusedError when that was too long ago
   */
  async untilMoved(since: number, placedBy: bigint): Promise<void> {
    const { holdTimeoutMs, live } = this.#session.services;
    if (performance.now() - since > holdTimeoutMs)
      throw new RefusedError('57P03', 'the range is being moved and did not become writable in time', {
        hint: 'Try again; see "foreshard migrate list".',
      });
    if (live.current.epoch === placedBy) await live.reload();
    // By the newest map: its new owner opens in a moment, or when another migrator has taken over.
    if (live.current.epoch === placedBy) await pause(this.#backOff(since));
  }

  /** How long what the client sent at `since` waits before it is tried again, ms: longer each time. */
  #backOff(since: number): number {
    const tries = this.#refused.since === since ? this.#refused.tries + 1 : 0;
    this.#refused = { since, tries };
    return Math.min(2 ** tries, MAX_BACK_OFF_MS);
  }

  /**
   * BEGIN, until it is known where, and the end of a transaction that no server has heard of need no server: done here.
   * To be called while the session has none. @returns the reply: CommandComplete, or what a COMMIT is told that comes too late; null: a server must do it
   */
  answerAlone(analyzed: Analyzed): Buffer | null {
    const { lease, settings, lookup } = this.#session;
    const statement = analyzed.statements.length === 1 ? analyzed.statements[0] : undefined;
    const effect = statement?.plan.effect;
    if (statement === undefined || !effect) return null;
    if (effect.kind === 'begin' && lease.transaction === null && !lease.untold) {
      lease.begin(analyzed.text.subarray(statement.start, statement.end));
      settings.begin();
      return encodeCommandComplete(statement.plan.command);
    }
    if (effect.kind !== 'commit' && effect.kind !== 'rollback') return null;
    const tooLate = lease.untold && effect.kind === 'commit';
    if (lease.transaction?.deferred !== true || (effect.chain && !tooLate)) return null;
    lease.untold = false;
    lease.transaction = null;
    settings.end(effect.kind === 'commit' && !tooLate);
    lookup.ready(IDLE);
    // A COMMIT that fails ends its transaction all the same.
    if (tooLate) return encodeErrorResponse(fieldsOfError(transactionEnded()));
    return encodeCommandComplete(effect.kind === 'commit' ? 'COMMIT' : 'ROLLBACK');
  }

  /** Whether this is the COMMIT of a transaction on several shards, and nothing else. */
  commitsSpan({ statements, syntaxError }: Analyzed): boolean {
    const { lease } = this.#session;
    if (lease.span === null || lease.unsynced || syntaxError || statements.length !== 1) return false;
    const effect = statements[0]?.plan.effect;
    return effect?.kind === 'commit' && !effect.chain && lease.backend?.status === IN_TRANSACTION;
  }

  /**
   * Commits it. @param tell is given the reply: `completion`, or an ErrorResponse; the client is in no transaction any more
   * @param completion CommandComplete of what commits it
   */
  async commitSpan(tell: (reply: Buffer) => void, completion = encodeCommandComplete('COMMIT')): Promise<void> {
    const session = this.#session;
    const { lease } = session;
    const backend = lease.backend as Backend;
    // Whoever ends the session meanwhile cannot tell what becomes of it.
    this.beginUnit(backend);
    this.#commits = true;
    this.#writes = true;
    let failure: unknown = null;
    try {
      await lease.commitSpan(session.wait);
    } catch (error) {
      failure = error;
    }
    tell(failure === null ? completion : session.worded(encodeErrorResponse(this.fieldsOf(failure))));
    await session.transactionEnded(backend, failure === null);
    // What was set for the transaction alone is over.
    if (lease.backend !== null) lease.serverSettings.tellParameters(lease.backend);
    lease.releaseIfIdle();
    session.answerReady();
  }

  /** To be called for each statement of the unit that is sent; null: nothing is known of it. */
  sent(plan: StatementPlan | null): void {
    if (plan?.kind !== 'read' || plan.effect !== null) this.#onlyReads = false;
    if (plan === null) {
      this.#writes = true;
      return;
    }
    const { effect } = plan;
    if (effect?.kind === 'commit' || plan.command.startsWith('PREPARE TRANSACTION')) this.#commits = true;
    else if (plan.kind !== 'read' && (effect === null || effect.kind === 'execute') && plan.command !== 'SHOW')
      this.#writes = true;
    else if (effect?.kind === 'rollback') this.#writes = false;
  }

  /** The unit began outside of a transaction block. */
  get autocommit(): boolean {
    return this.#autocommit;
  }

  /** What was sent has a COMMIT in it. */
  get commits(): boolean {
    return this.#commits;
  }

  /** What was sent writes, and commits that by itself when it is done. */
  get writesAlone(): boolean {
    return this.#autocommit && this.#writes;
  }

  /** Nothing but reads in a transaction of their own: without its server nothing is lost but the answer. */
  get readsAlone(): boolean {
    return this.#autocommit && this.#onlyReads;
  }

  /**
   * Whether a server that dies now may or may not have committed something: a write of its own transaction, or a COMMIT. What
   * an open transaction has written without one is rolled back for certain.
   */
  get outcomeUnknown(): boolean {
    if (this.writesAlone) return true;
    return this.#commits && (this.#writes || this.#session.lease.transaction?.clean === false);
  }

  /** A statement has been done by the server: follow what it did to the session. */
  completed(execution: Execution, tag: string): void {
    const { settings, lease, services } = this.#session;
    const { analyzed, index, params } = execution;
    const statement = analyzed.statements[index];
    if (statement === undefined) return; // an empty one
    const { plan, start, end } = statement;
    // With parameters it cannot be said again as text.
    const text = (params?.values.length ?? 0) === 0 ? analyzed.text.subarray(start, end) : null;
    this.#lastTag = tag;
    const { effect } = plan;
    if (plan.kind === 'ddl') {
      services.contents.schemaChanged();
      if (plan.temporary !== true) this.#noteDdl(plan, analyzed.text.subarray(start, end));
    }
    lease.transaction?.note(effect, text, this.#harmless(plan, analyzed.text, lease.transaction));
    if (effect !== null) lease.span?.echo(effect, text);
    if (plan.command === 'DISCARD SEQUENCES') lease.sequences.discarded(lease.backend);
    if (effect === null) return;
    this.#session.listening.completed(effect);
    switch (effect.kind) {
      case 'begin':
        settings.begin();
        return;
      case 'commit':
      case 'rollback':
        settings.end(effect.kind === 'commit' && tag.startsWith('COMMIT'));
        this.#session.listening.ended(effect.kind === 'commit' && tag.startsWith('COMMIT'));
        settings.begin();
        return;
      case 'savepoint':
        settings.savepoint(effect.name);
        return;
      case 'release':
        settings.release(effect.name);
        return;
      case 'rollback-to':
        settings.rollbackTo(effect.name);
        return;
      case 'set':
        if (effect.local) return;
        this.#settingsTouched = true;
        if (!effect.reset && text !== null && effect.name !== null) settings.set(effect.name, text.toString('latin1'));
        else if (effect.name === null) settings.resetAll();
        else settings.reset(effect.name);
        if (!effect.reset && effect.name !== null) this.#askIfNeeded(effect.name);
        return;
      case 'set-many':
        this.#settingsTouched = true;
        for (const { name, value } of effect.settings) {
          settings.setValue(name, value);
          this.#askIfNeeded(name);
        }
        return;
      case 'set-config':
        this.#settingsTouched = true;
        for (const call of effect.calls) this.#setByCall(call, execution);
        return;
      case 'discard-all':
        settings.discard();
        this.#statements.forgetAll();
        lease.backend?.prepared.clear();
        lease.backend?.shapes.clear();
        if (lease.backend) {
          lease.backend.unnamed = null;
          lease.backend.byName = false;
        }
        lease.pinning.clear();
        lease.sequences.discarded(lease.backend);
        this.#discarded = true;
        return;
      case 'deallocate':
        if (effect.name !== null) return;
        this.#statements.forgetAll();
        lease.backend?.prepared.clear();
        lease.backend?.shapes.clear();
        return;
    }
  }

  #noteDdl({ command }: StatementPlan, text: Buffer): void {
    const { lease, services } = this.#session;
    const { live, schema } = services;
    this.#ddl = true;
    if (lease.transaction !== null) lease.transaction.changedSchema = true;
    // On several, nothing at all goes on before the schema is read.
    if (soleShard(live.current) === null) return;
    const change = codeChange(text, command, schema.current, (t) => this.#code.length > 0 || schema.namesUnread(t));
    if (change === null) return;
    this.#code.push(change);
    if (lease.transaction !== null) lease.transaction.madeCode = true;
  }

  #askIfNeeded(name: string): void {
    if (isAsked(name)) this.#ask(name);
  }

  #ask(name: string): void {
    this.#toAsk ??= new Set();
    this.#toAsk.add(name);
  }

  /** The transaction was committed by other means than a statement of the client's. */
  committed(): void {
    this.#lastTag = 'COMMIT';
    this.unitFailed = false;
  }

  /** The server is ready for the next Query or batch. */
  transactionStatus(backend: Backend, status: number): void {
    const { settings } = this.#session;
    const failed = this.unitFailed;
    this.unitFailed = false;
    if (status !== IDLE) return;
    // Now others see it too.
    if (this.#ddl) {
      this.#session.services.contents.schemaChanged();
      this.#schema = this.#session.services.schema.changed(this.#code);
    }
    this.#ddl = false;
    this.#code = [];
    const committed = !failed && !this.#lastTag.startsWith('ROLLBACK');
    settings.end(committed);
    this.#session.listening.ended(committed);
    this.#session.lease.pinning.ended(committed);
    if (this.#discarded) backend.settings = NO_SETTINGS;
    else if (this.#settingsTouched) backend.settings = failed ? null : settings.current;
    this.#settingsTouched = false;
    this.#lastTag = '';
  }

  /**
   * What has to be done on the connection before the client is told that it is ready: DISCARD ALL brings the values of its login
   * back, not the server's; and what a setting has become may have to be asked. Null: nothing.
   * @param pathUnsure search_path may have changed, and the server does not report it
   */
  settle(backend: Backend, status: number, pathUnsure: boolean): Promise<void> | null {
    const { span } = this.#session.lease;
    const elsewhere = span === null ? null : status === IDLE ? this.#session.lease.endSpan() : span.settle(status);
    const here = this.#settleHere(backend, status, pathUnsure);
    return elsewhere === null ? here : Promise.all([elsewhere, here]).then(() => undefined);
  }

  #settleHere(backend: Backend, status: number, pathUnsure: boolean): Promise<void> | null {
    const discarded = this.#discarded && status === IDLE;
    this.#discarded = false;
    if (status === FAILED) this.#toAsk = null;
    // What a failed transaction has set, its end takes back, and then it is asked for.
    const path = pathUnsure && status !== FAILED;
    const schema = this.#schema;
    this.#schema = null;
    if (this.#toAsk === null && !discarded && !path) return schema;
    const names = [...(this.#toAsk ?? [])];
    this.#toAsk = null;
    const settled = this.#settle(backend, names, discarded, path);
    return schema === null ? settled : settled.then(() => schema);
  }

  async #settle(backend: Backend, names: readonly string[], discarded: boolean, path: boolean): Promise<void> {
    const { settings, lease, services } = this.#session;
    if (path) await backend.refreshSearchPath();
    for (const name of names) {
      const value = await backend.value(encodeQuery(`SELECT pg_catalog.current_setting(${quoteLiteral(name)}, true)`));
      if (value !== null) settings.setValue(name, value);
      if (value !== null && isBadStaleness(name, value)) this.#session.write(badStaleness(value));
      if (backend.status === IDLE) backend.settings = settings.current;
    }
    if (TIMEOUTS.some((name) => names.some((n) => n.toLowerCase() === name))) this.#session.boundsChanged();
    if (!discarded) return;
    try {
      await lease.serverSettings.apply(backend);
    } catch (error) {
      if (backend.lost !== null) throw error;
      // The next statement tries again, and is told.
      services.logger.debug({ err: error }, 'settings of the login are no longer valid');
    }
  }

  #setByCall(call: SetConfigCall, { analyzed, params }: Execution): void {
    const { settings, lease } = this.#session;
    const values = { text: analyzed.text, params, literal: (ordinal: number) => analyzed.literals[ordinal] };
    const name = readText(call.name, values);
    if (name === undefined || name === null) {
      lease.pinning.add('set_config');
      return;
    }
    const value = call.value === null ? undefined : readText(call.value, values);
    if (value === undefined || isAsked(name.toString('utf8'))) this.#ask(name.toString('utf8'));
    else if (value === null) settings.reset(name.toString('utf8'));
    else settings.setValue(name.toString('utf8'), value.toString('utf8'));
  }

  /** The statement could not run: the client gets the error, and an open transaction fails for real. */
  fail(error: unknown): Promise<void> {
    return this.failWith(encodeErrorResponse(this.fieldsOf(error)));
  }

  /** The same with the ErrorResponse that the client gets. */
  async failWith(frame: Buffer): Promise<void> {
    const session = this.#session;
    try {
      if (!(await this.openForFailure())) {
        session.write(frame);
        session.answerReady();
        return;
      }
    } catch (second) {
      session.close(second);
      return;
    }
    session.expectReady();
    (session.lease.backend as Backend).send(FAILING_QUERY, {
      kind: 'query',
      internal: false,
      replacement: frame,
    });
  }

  fieldsOf(error: unknown): ErrorFields {
    const fields = fieldsOfError(error);
    if (fields.sqlstate === 'XX000') this.#session.services.logger.error({ err: error }, 'internal error');
    return fields;
  }

  /** @returns whether there is a transaction, open on a server now, that must be failed. */
  async openForFailure(): Promise<boolean> {
    const { lease, wait } = this.#session;
    if (lease.transaction?.deferred) await lease.openToFail(wait);
    const { backend } = lease;
    if (backend === null) return false;
    if (backend.status !== IDLE || lease.unsynced) return true;
    lease.releaseIfIdle();
    return false;
  }

  #harmless(plan: StatementPlan, text: Buffer, transaction: Transaction): boolean {
    // Prepared statements are kept here and outlive the transaction, whatever becomes of it.
    if (plan.effect?.kind === 'prepare' || plan.effect?.kind === 'deallocate') return true;
    if (plan.target.kind !== 'any' || plan.pin !== null) return false;
    if (plan.command === 'SHOW') return true;
    if (plan.kind !== 'read' || tellsTransaction(text)) return false;
    // With one snapshot for the whole transaction, a read elsewhere would belong to another snapshot.
    if (transaction.prelude.some((text) => /repeatable|serializable/i.test(text.toString('latin1')))) return false;
    return this.#session.settings.get('default_transaction_isolation') === undefined;
  }
}

/** The server takes any text for a setting with a prefix. */
function isBadStaleness(name: string, value: string): boolean {
  return name.toLowerCase() === MAX_STALENESS && parseDuration(value) === null;
}

function badStaleness(value: string): Buffer {
  return encodeNoticeResponse({
    severity: 'WARNING',
    sqlstate: '22023',
    message: `invalid value for parameter "${MAX_STALENESS}": "${value}"`,
    hint: 'Give it as 500ms, 2s or 1min. Until then nothing is read that may be old.',
  });
}

/** The new owner's gate opens a moment after the flip; asking again at once would only be refused again. */
function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
