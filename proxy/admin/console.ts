import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import type { Administration } from './administration.js';
import type { AdminAnswer, AdminRequest, ProcessControl, Siblings } from './siblings.js';
import type { AdminStatement, CommandName } from './statement.js';
import type { Column, Row } from './view.js';
import { viewOf } from './views.js';

/** Somebody who has logged in to the admin database. */
export interface Administrator {
  readonly user: string;
  /** Address of the client; `unix` over a Unix socket. */
  readonly address: string;
  /** Whether commands are allowed, or only SHOW. */
  readonly commands: boolean;
}

export interface Notice {
  readonly message: string;
  /** Default: NOTICE. */
  readonly severity?: 'NOTICE' | 'WARNING';
}

/** What came of a statement. */
export interface Outcome {
  /** null: it has no rows. */
  readonly columns: readonly Column[] | null;
  readonly rows: readonly Row[];
  /** For CommandComplete; empty for an empty statement. */
  readonly tag: string;
  readonly notices: readonly Notice[];
}

/** An entry for the audit trail. */
export interface AdminAudit {
  readonly actor: string;
  readonly action: string;
  readonly object: string;
}

export interface ConsoleOptions {
  readonly administration: Administration;
  readonly siblings: Siblings | null;
  readonly control: ProcessControl | null;
  readonly logger: Logger;
  /** Writes to the audit trail. May take long, may fail: neither holds a command up. */
  readonly audit: (entry: AdminAudit) => Promise<void>;
}

/** How often it is looked whether what a command waits for has come about. */
const LOOK_EVERY_MS = 50;
/** How long the end of the process is put off for the audit trail's sake. */
const LAST_AUDIT_MS = 1000;

const done = (tag: string, notices: readonly Notice[] = []): Outcome => ({ columns: null, rows: [], tag, notices });

/** Carries out what administrators ask for, in all processes on the port. */
export class AdminConsole {
  readonly #options: ConsoleOptions;

  constructor(options: ConsoleOptions) {
    this.#options = options;
  }

  /** What rows the statement has; null: none. @throws ForeshardError 42601 for a view that is not there */
  columnsOf(statement: AdminStatement): readonly Column[] | null {
    if (statement.kind === 'show') return viewOf(statement.view).columns;
    if (statement.kind === 'constant')
      return [{ name: statement.column, type: typeof statement.value === 'number' ? 'int4' : 'text' }];
    return null;
  }

  /**
   * @param signal aborted when the administrator cancels or goes away; a PAUSE that waits is taken back then
   * @throws ForeshardError
   */
  async run(statement: AdminStatement, who: Administrator, signal: AbortSignal): Promise<Outcome> {
    switch (statement.kind) {
      case 'empty':
        return done('');
      case 'ignored':
      case 'transaction':
        return done(statement.tag);
      case 'constant':
        return {
          columns: this.columnsOf(statement),
          rows: [[statement.value]],
          tag: statement.column === '?column?' ? 'SELECT 1' : 'SHOW',
          notices: [],
        };
      case 'show':
        return this.#show(statement.view);
      case 'set':
        throw this.#cannotSet(statement.name);
      case 'command':
        return this.#command(statement.command, statement.arguments, who, signal);
    }
  }

  async #show(name: string): Promise<Outcome> {
    const view = viewOf(name);
    const request = { kind: 'show', view: name } as const;
    const answers = await this.#ask(request, view.shared !== true);
    const rows: Row[] = [];
    const notices: Notice[] = [];
    for (const answer of answers) {
      if (answer.kind === 'rows') rows.push(...answer.rows);
      else if (answer.kind === 'silent') notices.push(silent(answer.slot));
      else if (answer.kind === 'failed') throw failure(answer);
    }
    return { columns: view.columns, rows: view.finish?.(rows) ?? rows, tag: 'SHOW', notices };
  }

  #cannotSet(name: string): ForeshardError {
    const known = this.#options.administration.state.config().find((e) => e.key.toLowerCase() === name.toLowerCase());
    if (known === undefined)
      return new ForeshardError('42704', `unrecognized configuration parameter "${name}"`, {
        hint: 'SHOW CONFIG lists what there is.',
      });
    return new ForeshardError('55P02', `parameter "${known.key}" cannot be changed with SET`, {
      hint: known.changeable
        ? 'Change it in the configuration file, then RELOAD.'
        : 'Change it in the configuration file, then restart.',
    });
  }

  async #command(
    command: CommandName,
    args: readonly string[],
    who: Administrator,
    signal: AbortSignal,
  ): Promise<Outcome> {
    const { logger } = this.#options;
    const { user, address } = who;
    const text = [command.toUpperCase(), ...args].join(' ');
    if (!who.commands) {
      logger.warn({ user, address, command: text }, 'command of a user who may only look refused');
      throw new ForeshardError('42501', 'admin access needed', {
        hint: 'Users of proxy.admin.statsUsers may only SHOW; commands are for those of proxy.admin.users.',
      });
    }
    logger.info({ user, address, command: text }, 'command of an administrator');
    if (command === 'suspend')
      throw new ForeshardError('0A000', 'SUSPEND is not supported: there is no hand-over of open sockets', {
        hint: 'PAUSE waits for transactions and starts no new ones; SHUTDOWN WAIT_FOR_CLIENTS lets a new process take over.',
      });
    const { database } = this.#options.administration.state.live.current;
    const audited = this.#audit({
      actor: `${user}@${address}`,
      action: text.toLowerCase(),
      object: args[0] ?? database,
    });
    if (command === 'reload') {
      const control = this.#control('RELOAD');
      await control.reload().catch((error: unknown) => {
        throw new ForeshardError('F0000', `RELOAD failed: ${error instanceof Error ? error.message : String(error)}`, {
          hint: 'Nothing has changed. Correct the configuration file, then RELOAD again.',
          cause: error,
        });
      });
      return done('RELOAD');
    }
    if (command === 'shutdown') {
      const control = this.#control('SHUTDOWN');
      await Promise.race([audited, delay(LAST_AUDIT_MS)]);
      control.shutdown(args[0] === 'wait_for_clients' || args[0] === 'wait_for_servers' ? args[0] : 'now');
      return done('SHUTDOWN');
    }
    const notices = await this.#everywhere(command, args);
    if (command === 'pause') await this.#paused(args, signal);
    else if (command === 'wait_close') await this.#none('wait_close', args, signal);
    return done(command.toUpperCase(), notices);
  }

  #control(command: string): ProcessControl {
    const { control } = this.#options;
    if (control !== null) return control;
    throw new ForeshardError('0A000', `${command} is not possible here: the proxy is part of another program`, {
      hint: 'It is possible with "foreshard serve".',
    });
  }

  /** Here first: what is wrong with a command is wrong everywhere, and nothing has happened then. */
  async #everywhere(command: CommandName, args: readonly string[]): Promise<Notice[]> {
    const { administration, siblings } = this.#options;
    const request: AdminRequest = { kind: 'command', command, arguments: args };
    const here = await administration.answer(request);
    // The client may be one of another process's.
    const elsewhere = command === 'kill_client' && here.kind === 'failed' && here.message === 'client not found';
    if (here.kind === 'failed' && !(elsewhere && siblings !== null)) throw failure(here);
    if (command === 'kill_client' && !elsewhere) return [];
    const answers = (await siblings?.ask(request)) ?? [];
    const notices = answers.filter((a) => a.kind === 'silent').map((a) => silent(a.slot));
    if (elsewhere) {
      if (answers.some((a) => a.kind === 'done')) return notices;
      throw failure(here as AdminAnswer & { kind: 'failed' });
    }
    for (const answer of answers)
      if (answer.kind === 'failed')
        notices.push({ severity: 'WARNING', message: `process ${answer.slot}: ${answer.message}` });
    return notices;
  }

  async #paused(args: readonly string[], signal: AbortSignal): Promise<void> {
    try {
      await this.#none('pause_left', args, signal);
    } catch (error) {
      // Whoever does not wait for it has not got it: as in PgBouncer, everything goes on.
      await this.#ask({ kind: 'command', command: 'resume', arguments: args }, true);
      throw error;
    }
  }

  /** Resolves when nothing is left of what `command` counts. Rejects with the signal's reason. */
  async #none(command: string, args: readonly string[], signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const answers = await this.#ask({ kind: 'command', command, arguments: args }, true);
      if (answers.every((a) => a.kind !== 'done' || a.left === 0)) return;
      await delay(LOOK_EVERY_MS);
    }
  }

  async #ask(request: AdminRequest, everywhere: boolean): Promise<readonly AdminAnswer[]> {
    const { administration, siblings } = this.#options;
    const here = administration.answer(request);
    if (!everywhere || siblings === null) return [await here];
    const [mine, others] = await Promise.all([here, siblings.ask(request)]);
    return [mine, ...others];
  }

  async #audit(entry: AdminAudit): Promise<void> {
    const { audit, logger } = this.#options;
    try {
      await audit(entry);
    } catch (error) {
      logger.warn({ err: error, ...entry }, 'could not write to the audit trail');
    }
  }
}

const silent = (slot: number): Notice => ({
  severity: 'WARNING',
  message: `process ${slot} did not answer in time and is left out`,
});

function failure({ sqlstate, message, detail, hint }: AdminAnswer & { kind: 'failed' }): ForeshardError {
  return new ForeshardError(sqlstate, message, {
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
  });
}
