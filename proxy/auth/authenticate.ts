import { ForeshardError } from '../../topology/errors.js';
import { AUTHENTICATION_OK } from '../wire/backend.js';
import { ConnectionLostError, type HandshakeReader } from '../wire/handshake-reader.js';
import { type LoginSecret, md5Answer } from '../wire/login-secret.js';
import { DEFAULT_SCRAM_ITERATIONS, makeVerifier, mockSalt, parseVerifier, type ScramVerifier } from '../wire/scram.js';
import type { SessionStartup } from '../wire/startup.js';
import type { FailedLogins } from './failed-logins.js';
import type { HbaRule } from './hba.js';
import { askMd5, askPassword, askScram } from './password-exchange.js';
import type { ConnectionFacts } from './peer.js';
import type { AuthPolicy } from './policy.js';
import { LoginRefusedError, passwordRefused } from './refusal.js';
import type { RefusalLog } from './refusal-log.js';
import { LookupError, type RoleQuery } from './role-query.js';
import type { UserDirectory } from './user-directory.js';
import { type UserRecord, whyNoSecret } from './user-record.js';
import { equalText, matchesPassword, type UserSecret } from './user-secret.js';

/** What authentication needs of the process. */
export interface AuthenticationServices {
  readonly policy: AuthPolicy;
  readonly users: UserDirectory;
  /** Roles of the home shard; null: it is not to be asked. */
  readonly roles: RoleQuery | null;
  readonly failures: FailedLogins;
  readonly refusals: RefusalLog;
  /** Secret of this installation, the same in all of its processes: salts shown for unknown users are made from it. */
  readonly mockSecret: Buffer;
  /** ms of a steady clock. */
  readonly now: () => number;
  /** This login has to wait for former failures: it is to hold nothing but its socket meanwhile. */
  readonly onDelay?: () => void;
}

export interface AuthenticatedClient {
  readonly user: string;
  readonly database: string;
  readonly parameters: ReadonlyMap<string, string>;
  /** Agreed version, see SessionStartup. */
  readonly protocol: number;
  /** What the login has told us that servers accept; null when no password was asked for. */
  readonly secret: LoginSecret | null;
  /** It has shown a password or a certificate for its name; not with `trust`. */
  readonly proven: boolean;
}

/**
 * Authenticates a client and ends with AuthenticationOk. What follows (ParameterStatus, BackendKeyData, ReadyForQuery) is
 * the caller's. Throws what the client is to be told, as FATAL; what is a LoginRefusedError is logged already.
 */
export async function authenticateClient(
  reader: HandshakeReader,
  startup: SessionStartup,
  connection: ConnectionFacts,
  services: AuthenticationServices,
): Promise<AuthenticatedClient> {
  try {
    const { secret, proven } = await new Attempt(reader, startup, connection, services).run();
    const { user, database, parameters, protocol } = startup;
    return { user, database, parameters, protocol, secret, proven };
  } catch (error) {
    // Whoever has gone is told nothing, and psql goes when it has to ask for the password.
    if (error instanceof ConnectionLostError) throw error;
    const refusal = asRefusal(error);
    if (refusal === null) throw error;
    if (refusal.wrongSecret) services.failures.failed(connection.address, startup.user, services.now());
    services.refusals.refused(connection, startup, refusal.sqlstate, refusal.reason);
    throw refusal;
  }
}

/** null: not of ours, logged elsewhere. */
function asRefusal(error: unknown): LoginRefusedError | null {
  if (error instanceof LoginRefusedError) return error;
  if (!(error instanceof ForeshardError) || error.sqlstate === '08P01' || error.sqlstate === '57014') return null;
  if (error instanceof LookupError)
    return new LoginRefusedError(error.sqlstate, 'the proxy cannot look up the user', {
      reason: [error.message, error.detail, error.hint].filter((t) => t !== undefined).join(': '),
      hint: 'The log of the proxy says why.',
      cause: error,
    });
  // SCRAM's own refusals, an empty password.
  return new LoginRefusedError(error.sqlstate, error.message, {
    reason: error.detail ?? error.message,
    wrongSecret: error.sqlstate === '28P01',
    cause: error,
    ...(error.detail === undefined ? {} : { detail: error.detail }),
  });
}

/** What a method has found out. */
interface Verdict {
  /** Why not, for the log; null: let in. */
  readonly why: string | null;
  readonly record: UserRecord | null;
  readonly secret: LoginSecret | null;
  /** Goes out before AuthenticationOk. */
  readonly final?: Buffer;
  /** A stale record is to blame: no guess. */
  readonly excused?: boolean;
}

class Attempt {
  readonly #reader: HandshakeReader;
  readonly #startup: SessionStartup;
  readonly #connection: ConnectionFacts;
  readonly #services: AuthenticationServices;
  #waited = false;

  constructor(
    reader: HandshakeReader,
    startup: SessionStartup,
    connection: ConnectionFacts,
    services: AuthenticationServices,
  ) {
    this.#reader = reader;
    this.#startup = startup;
    this.#connection = connection;
    this.#services = services;
  }

  async run(): Promise<Pick<AuthenticatedClient, 'secret' | 'proven'>> {
    const { user } = this.#startup;
    const { tls, address } = this.#connection;
    const { policy, failures } = this.#services;
    const rule = policy.ruleFor(this.#connection, this.#startup);
    if (rule.clientCert !== 'off' && (tls === null || tls.clientDistinguishedName === null))
      throw new LoginRefusedError('28000', 'connection requires a valid client certificate', {
        reason: 'no verified client certificate',
      });
    const asksPassword = rule.method !== 'trust' && rule.method !== 'cert';
    if (asksPassword) await this.#wait();
    const verdict = await this.#judge(rule);
    // Others may have failed while this one was talking: a volley of guesses is no way around the delay.
    if (asksPassword) await this.#wait();
    if (verdict.why !== null)
      throw verdict.excused === true
        ? new LoginRefusedError('28P01', `password authentication failed for user "${user}"`, { reason: verdict.why })
        : passwordRefused(user, verdict.why);
    if (verdict.final !== undefined) this.#reader.socket.write(verdict.final);
    if (rule.clientCert === 'verify-full') this.#checkCertificate(rule);
    if (asksPassword) failures.succeeded(address, user);
    this.#reader.socket.write(AUTHENTICATION_OK);
    await this.#checkRole(verdict.record);
    return {
      secret: verdict.secret,
      proven: asksPassword || rule.method === 'cert' || rule.clientCert === 'verify-full',
    };
  }

  /** Waits as long as former failures make it, once; a login from here that succeeds meanwhile ends it. */
  async #wait(): Promise<void> {
    if (this.#waited) return;
    const { failures, now } = this.#services;
    const { address } = this.#connection;
    const { user } = this.#startup;
    const known = failures.isKnown(address, user);
    const until = now() + failures.delay(address, user, now());
    for (let left = until - now(); left > 0; left = until - now()) {
      if (!this.#waited) this.#services.onDelay?.();
      this.#waited = true;
      await this.#reader.pause(Math.min(left, LOOK_EVERY_MS));
      if (!known && failures.isKnown(address, user)) break;
    }
  }

  async #judge(rule: HbaRule): Promise<Verdict> {
    switch (rule.method) {
      case 'scram-sha-256':
      case 'md5':
        return this.#challenge(rule.method);
      case 'password':
        return this.#clearText();
      default:
        return { why: null, record: null, secret: null };
    }
  }

  async #clearText(): Promise<Verdict> {
    const { user } = this.#startup;
    if (this.#connection.tls === null && this.#connection.kind !== 'unix')
      throw new LoginRefusedError('28000', 'password authentication needs an encrypted connection', {
        reason: 'method password without TLS',
        hint: 'Connect with sslmode=require or better, or use scram-sha-256.',
      });
    const password = await askPassword(this.#reader);
    const { record } = await this.#services.users.find(user);
    const none = whyNoSecret(user, record);
    // The same work for whoever does not exist.
    const secret = none === null ? (record?.secret ?? null) : null;
    const right = await matchesPassword(user, password, secret ?? (await this.#nobody()));
    const fits = right && secret !== null;
    return { why: fits ? null : (none ?? mismatch(user)), record, secret: { password } };
  }

  /** md5 with an md5 hash; SCRAM with everything else, and with nothing. */
  async #challenge(method: 'md5' | 'scram-sha-256'): Promise<Verdict> {
    const { user } = this.#startup;
    const { users } = this.#services;
    const { record, cached } = await users.find(user);
    const none = whyNoSecret(user, record);
    const secret = none === null ? (record?.secret ?? null) : null;
    const verdict: Verdict =
      method === 'md5' && secret?.kind === 'md5'
        ? await this.#md5(secret.hash, record, cached)
        : await this.#scram(secret, none, record);
    if (verdict.why === null || !cached) return verdict;
    // Read again: when another password is on record now, the client may have meant that one. It cannot be told by this exchange, whose salt
    // was the old one's, but by the next.
    const again = await users.findAgain(user);
    return JSON.stringify(again) === JSON.stringify(record) ? verdict : { ...verdict, excused: true };
  }

  async #md5(hash: string, record: UserRecord | null, cached: boolean): Promise<Verdict> {
    const { user } = this.#startup;
    const { answer, salt } = await askMd5(this.#reader);
    if (equalText(answer, md5Answer(hash, salt))) return { why: null, record, secret: { md5: hash } };
    const again = cached ? await this.#services.users.findAgain(user) : null;
    const changed = again !== null && !again.expired && again.secret?.kind === 'md5' ? again.secret.hash : null;
    if (changed !== null && equalText(answer, md5Answer(changed, salt)))
      return { why: null, record: again, secret: { md5: changed } };
    return { why: mismatch(user), record, secret: null };
  }

  async #scram(secret: UserSecret | null, none: string | null, record: UserRecord | null): Promise<Verdict> {
    const { user } = this.#startup;
    const outcome = await askScram(this.#reader, {
      user,
      verifier: secret === null ? null : await this.#verifierOf(secret),
      mockSecret: this.#services.mockSecret,
      mockIterations: this.#iterations,
      serverEndPoint: this.#connection.tls?.serverEndPoint ?? null,
    });
    if (outcome !== null)
      return {
        why: null,
        record,
        secret: secret?.kind === 'plain' ? { password: secret.password } : { keys: outcome.keys },
        final: outcome.final,
      };
    const reason = secret?.kind === 'md5' ? `User "${user}" does not have a valid SCRAM secret.` : mismatch(user);
    return { why: none ?? reason, record, secret: null };
  }

  async #verifierOf(secret: UserSecret): Promise<ScramVerifier | null> {
    switch (secret.kind) {
      case 'scram':
        return secret.verifier;
      case 'plain': {
        // The salt that would be shown if there were no such user.
        const salt = mockSalt(this.#startup.user, this.#services.mockSecret);
        return parseVerifier(await makeVerifier(secret.password, salt, this.#iterations));
      }
      case 'md5':
        return null;
    }
  }

  /** A secret that no password fits, as dear to compare with as a real one. */
  async #nobody(): Promise<UserSecret> {
    const salt = mockSalt(this.#startup.user, this.#services.mockSecret);
    return {
      kind: 'scram',
      verifier: { iterations: this.#iterations, salt, storedKey: Buffer.alloc(32), serverKey: Buffer.alloc(32) },
    };
  }

  get #iterations(): number {
    return this.#services.roles?.iterations ?? DEFAULT_SCRAM_ITERATIONS;
  }

  #checkCertificate(rule: HbaRule): void {
    const { user } = this.#startup;
    const { tls } = this.#connection;
    const name = rule.clientName === 'CN' ? tls?.clientCommonName : tls?.clientDistinguishedName;
    if (typeof name === 'string' && this.#services.policy.mayBe(rule.map, name, user)) return;
    const reason =
      typeof name === 'string'
        ? `the certificate's name "${name}" may not log in as "${user}"`
        : 'client certificate contains no user name';
    if (rule.method === 'cert')
      throw new LoginRefusedError('28000', `certificate authentication failed for user "${user}"`, { reason });
    if (rule.method === 'trust')
      throw new LoginRefusedError('28000', `"trust" authentication failed for user "${user}"`, { reason });
    throw new LoginRefusedError('28P01', `password authentication failed for user "${user}"`, { reason });
  }

  /** After AuthenticationOk, as in PostgreSQL: whoever has proven who it is may hear more. */
  async #checkRole(record: UserRecord | null): Promise<void> {
    const { user } = this.#startup;
    const { users, roles } = this.#services;
    if (record === null && roles !== null && !users.isListed(user)) {
      const role = await roles.role(user);
      if (role === null)
        throw new LoginRefusedError('28000', `role "${user}" does not exist`, { reason: 'no such role' });
      record = { source: 'query', secret: null, expired: false, canLogin: role.canLogin };
    }
    if (record?.canLogin === false)
      throw new LoginRefusedError('28000', `role "${user}" is not permitted to log in`, { reason: 'NOLOGIN' });
  }
}

/** How often a waiting login looks whether it may go on earlier. */
const LOOK_EVERY_MS = 250;

const mismatch = (user: string): string => `Password does not match for user "${user}".`;
