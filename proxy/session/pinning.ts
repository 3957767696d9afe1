import type { Backend } from '../backend/backend.js';
import { LISTENS_ITSELF, SETTINGS_OF_FUNCTION, type StatementPlan } from '../router/route.js';
import { encodeQuery } from '../wire/frontend.js';
import { PINNED_FOR_CURRVAL } from './sequences.js';
import type { SessionSettings } from './settings.js';

const PREPARED_INSIDE = 'PREPARE in a function';

/** What a server connection can be asked whether it still holds it, between transactions; in the order of PROBE's answer. */
const PROBED = [
  'temporary table',
  'session advisory lock',
  'WITH HOLD cursor',
  LISTENS_ITSELF,
  PREPARED_INSIDE,
] as const;

/** One letter for each; then how many statements have names of ours, and the settings that have been made. The temporary schema is there for good once it was used; what is in it depends on it, as on every schema (pg_namespace is 2615). */
const PROBE = encodeQuery(`
SELECT pg_catalog.concat(
 EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 2615 AND refobjid = s),
 EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),
 EXISTS (SELECT FROM pg_catalog.pg_cursors),
 EXISTS (SELECT FROM pg_catalog.pg_listening_channels()),
 EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name !~ '^fs_[0-9]+$'),
 (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements WHERE name ~ '^fs_[0-9]+$'),
 (SELECT pg_catalog.string_agg(' ' || name, '') FROM pg_catalog.pg_settings WHERE source = 'session'))
FROM pg_catalog.pg_my_temp_schema() AS s`);

/** They give way on several shards, where a session has more than one server process anyway. */
const SOFT: ReadonlySet<string> = new Set([PINNED_FOR_CURRVAL, 'pg_backend_pid']);

/** Why those keep their connection who keep none. */
const NONE: ReadonlySet<string> = new Set();

/** When the connection could not be asked. */
const UNKNOWN = 'state that could not be asked for';

/** Whose connection it is. */
interface PinnedClient {
  readonly settings: SessionSettings;
  /** Told each reason when it begins to hold. */
  notePinned(reason: string): void;
}

/**
 * Why one session keeps its server connection. It is pinned before the statement is sent, because a lock outlives the error
 * of its statement; whether something is left is asked of the server itself, whenever a statement may have left something, or
 * may have ended the last of it.
 */
export class Pinning {
  #reasons: ReadonlySet<string> = NONE;
  readonly #client: PinnedClient;
  /** What the transaction at hand has added: to be asked for if it fails. */
  #added = false;
  #doubt = false;

  constructor(client: PinnedClient) {
    this.#client = client;
  }

  /** The first reason that holds; null: none. */
  get reason(): string | null {
    for (const reason of this.#reasons) return reason;
    return null;
  }

  /** Whether the session may leave the connection for another shard all the same. */
  get soft(): boolean {
    for (const reason of this.#reasons) if (!SOFT.has(reason)) return false;
    return true;
  }

  has(reason: string): boolean {
    return this.#reasons.has(reason);
  }

  add(reason: string): void {
    if (this.#reasons.has(reason)) return;
    this.#reasons = new Set(this.#reasons).add(reason);
    this.#added = true;
    this.#client.notePinned(reason);
  }

  delete(reason: string): void {
    if (!this.#reasons.has(reason)) return;
    this.#reasons = this.#reasons.size === 1 ? NONE : new Set([...this.#reasons].filter((held) => held !== reason));
  }

  /** DISCARD ALL, or the end of the connection. */
  clear(): void {
    this.#reasons = NONE;
    this.#added = false;
    this.#doubt = false;
  }

  /** To be called for each statement before it is sent. */
  sending(plan: StatementPlan): void {
    if (plan.pin !== null) this.add(plan.pin);
    if (plan.unsureOfState || (this.#reasons.size > 0 && endsState(plan))) this.#doubt = true;
  }

  /** What the statements of the transaction leave is not known. */
  doubt(): void {
    this.#doubt = true;
  }

  /**
   * The server is between transactions. Null: it is known what holds. Else the connection is asked; rejects only when it is lost.
   */
  settle(backend: Backend): Promise<void> | null {
    const ask = this.#doubt;
    this.#doubt = false;
    return ask ? this.#probe(backend) : null;
  }

  /** The transaction is over. */
  ended(committed: boolean): void {
    if (!committed && this.#added) this.#doubt = true;
    this.#added = false;
  }

  async #probe(backend: Backend): Promise<void> {
    let found: string;
    try {
      found = (await backend.value(PROBE)) ?? '';
    } catch (error) {
      if (backend.lost !== null) throw error;
      this.add(UNKNOWN);
      return;
    }
    this.delete(UNKNOWN);
    PROBED.forEach((reason, i) => {
      if (found[i] === 't') this.add(reason);
      else this.delete(reason);
    });
    const [count, ...made] = found.slice(PROBED.length).split(' ');
    // Somebody has deallocated what we had prepared.
    if (Number(count) < backend.prepared.size) backend.forgetPrepared();
    if (made.some((name) => !this.#client.settings.current.has(name.toLowerCase()))) this.add(SETTINGS_OF_FUNCTION);
    this.#added = false;
  }
}

/** Whether the statement may end what pins the session. */
function endsState(plan: StatementPlan): boolean {
  return /^(DROP|DISCARD|CLOSE|UNLISTEN|ROLLBACK)/.test(plan.command) || plan.pin === 'session advisory lock';
}
