import type { Backend } from '../backend/backend.js';
import { asServerError, InternalStatementError } from '../backend/internal-statement.js';
import { encodeParameterStatus } from '../wire/backend.js';
import { decodeErrorFields } from '../wire/error-response.js';
import { encodeQuery } from '../wire/frontend.js';
import type { ClientSession } from './client-session.js';
import { ahead, areAlike, difference, fromScratch, type SettingMap } from './settings.js';

/** Statements of ours that another client's statement_timeout may cut in a row. */
const TIMED_OUT = 50;

/** Gives server connections one client's settings, and tells the client the parameters that result. */
export class ServerSettings {
  readonly #client: Pick<ClientSession, 'settings' | 'lookup' | 'write'>;

  constructor(client: Pick<ClientSession, 'settings' | 'lookup' | 'write'>) {
    this.#client = client;
  }

  /**
   * Whether the connection, which is in no transaction, has this client's settings: those of clients that logged in alike are the same, without being
   * the same object. What the client has set in its open transaction is said again in that.
   */
  has(backend: Backend): boolean {
    const { outside } = this.#client.settings;
    if (backend.settings === outside) return true;
    if (backend.settings === null || !areAlike(backend.settings, outside)) return false;
    backend.settings = outside;
    return true;
  }

  /**
   * Gives a connection taken for a statement on several shards this client's settings.
   * @returns whether names mean there what they meant to the proxy; if not, the client is told what they mean.
   */
  async adopt(backend: Backend): Promise<boolean> {
    const before = this.#client.lookup.current;
    if (!this.has(backend)) await this.apply(backend);
    if (!this.#client.lookup.agrees(backend.connection.parameters)) this.tellParameters(backend);
    return this.#client.lookup.current === before;
  }

  /**
   * Gives the connection, which is in no transaction, this client's settings and tells the client what they are.
   * @returns whether the server had to be asked.
   * @throws ServerError as the server says it, when one of them cannot be
   */
  async apply(backend: Backend): Promise<boolean> {
    const { outside } = this.#client.settings;
    if (!(await applySettings(backend, outside))) return false;
    // In a transaction that has changed some, these are not the client's before that is said again.
    if (outside === this.#client.settings.current) this.tellParameters(backend);
    return true;
  }

  /** Tells the client the parameters that differ from what it was told last. */
  tellParameters(backend: Backend): void {
    const lookup = this.#client.lookup;
    const { parameters, reportsSearchPath } = backend.connection;
    for (const [name, value] of parameters) {
      if (lookup.known.get(name) === value) continue;
      lookup.learn(name, value);
      if (name !== 'search_path' || reportsSearchPath) this.#client.write(encodeParameterStatus(name, value));
    }
  }
}

/**
 * Gives a connection these settings. @returns whether the server had to be asked.
 * @throws ServerError as the server says it, when one of them cannot be
 */
export async function applySettings(backend: Backend, to: SettingMap): Promise<boolean> {
  const before = backend.settings;
  const sql = before === null ? fromScratch(to) : difference(before, to);
  backend.settings = to;
  if (sql.length === 0) return false;
  try {
    try {
      await say(backend, before, sql);
    } catch (error) {
      if (before === null || !(error instanceof InternalStatementError)) throw error;
      await say(backend, null, fromScratch(to));
    }
    await backend.refreshSearchPath();
  } catch (error) {
    backend.settings = null;
    throw asServerError(error);
  }
  return true;
}

/** Says statements that change settings, whatever time-out was in force before. */
export async function say(backend: Backend, before: SettingMap | null, sql: readonly string[]): Promise<void> {
  const first = ahead(before);
  for (let times = 0; ; times++) {
    try {
      // Not waited for: both go in one packet.
      const reset = first === null ? null : backend.runInternal(settingsQuery([first]));
      const rest = backend.runInternal(settingsQuery(sql));
      const [a, b] = await Promise.allSettled([reset, rest]);
      if (a.status === 'rejected') throw a.reason;
      if (b.status === 'rejected') throw b.reason;
      return;
    } catch (error) {
      // A time-out of a millisecond may cut even the statement that takes it back.
      if (first === null || times >= TIMED_OUT || !isTimedOut(error)) throw error;
    }
  }
}

function isTimedOut(error: unknown): boolean {
  return error instanceof InternalStatementError && decodeErrorFields(error.frame).sqlstate === '57014';
}

/** Statements kept as byte strings. */
function settingsQuery(sql: readonly string[]): Buffer {
  return encodeQuery(Buffer.from(sql.join('; '), 'latin1'));
}
