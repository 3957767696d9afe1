import { readFile, stat } from 'node:fs/promises';
import type { Logger } from 'pino';
import { UsageError } from '../../topology/errors.js';
import { type AuthMethod, type Claim, type FileProblem, findRule, type HbaRule, parseHba } from './hba.js';
import { type IdentEntry, mayBe, parseIdent } from './ident.js';
import type { ConnectionFacts } from './peer.js';
import { LoginRefusedError } from './refusal.js';
import { parseUsersFile } from './users-file.js';

export interface PolicyOptions {
  /** For everybody, when there are no rules. */
  readonly method: AuthMethod;
  /** Rules, one a line; those of the file come after them. */
  readonly hba: readonly string[];
  readonly hbaFile: string | null;
  /** Records of pg_ident.conf, likewise. */
  readonly ident: readonly string[];
  readonly identFile: string | null;
  readonly usersFile: string | null;
}

interface Snapshot {
  /** null: there are none, `method` is for everybody. */
  readonly rules: readonly HbaRule[] | null;
  readonly ident: readonly IdentEntry[];
  readonly users: ReadonlyMap<string, string>;
  readonly warnings: readonly string[];
}

/** Who may come in and how: rules, maps and the users' file, as they were when it was loaded. */
export class AuthPolicy {
  readonly #options: PolicyOptions;
  readonly #current: Snapshot;

  /** @throws UsageError with every mistake of every file, each with its line */
  static async load(options: PolicyOptions, logger: Logger): Promise<AuthPolicy> {
    const snapshot = await read(options);
    for (const text of snapshot.warnings) logger.warn(text);
    return new AuthPolicy(options, snapshot);
  }

  private constructor(options: PolicyOptions, current: Snapshot) {
    this.#options = options;
    this.#current = current;
  }

  /** Of the users' file: name and secret. */
  get users(): ReadonlyMap<string, string> {
    return this.#current.users;
  }

  /** @throws LoginRefusedError 28000 when no rule fits, or one that rejects */
  ruleFor(connection: ConnectionFacts, who: Claim): HbaRule {
    const { rules } = this.#current;
    const rule = rules === null ? this.#forEverybody(who) : findRule(rules, connection, who);
    if (rule !== null && rule.method !== 'reject') return rule;
    const encryption = connection.tls === null ? 'no encryption' : 'SSL encryption';
    const from = `host "${connection.address ?? '[local]'}", user "${who.user}"`;
    // A physical one belongs to no database.
    const [connecting, client] =
      who.replication === 'physical'
        ? ['replication connection', `${from}, ${encryption}`]
        : ['connection', `${from}, database "${who.database}", ${encryption}`];
    if (rule !== null)
      throw new LoginRefusedError('28000', `pg_hba.conf rejects ${connecting} for ${client}`, {
        reason: rules === null ? 'rejected by proxy.auth.method' : `rejected by line ${rule.line}`,
      });
    const origin = who.replication === 'physical' ? 'replication connection from ' : '';
    throw new LoginRefusedError('28000', `no pg_hba.conf entry for ${origin}${client}`, {
      reason: rules === null ? 'replication connections are trusted by a rule only' : 'no rule fits',
    });
  }

  /** Whether who is `system` to its certificate may log in as `user`. */
  mayBe(map: string | null, system: string, user: string): boolean {
    return mayBe(this.#current.ident, map, system, user);
  }

  /** null: whoever streams the write-ahead log reads every row and every password's hash of a server, and has to prove who it is. */
  #forEverybody({ replication = null }: Claim): HbaRule | null {
    const { method } = this.#options;
    if (replication !== null && method === 'trust') return null;
    return {
      line: 0,
      type: 'host',
      databases: [],
      users: [],
      address: { kind: 'all' },
      method,
      clientCert: method === 'cert' ? 'verify-full' : 'off',
      clientName: 'CN',
      map: null,
    };
  }
}

async function read(options: PolicyOptions): Promise<Snapshot> {
  const mistakes: string[] = [];
  const warnings: string[] = [];
  const text = async (key: string, path: string | null): Promise<string | null> => {
    if (path === null) return null;
    try {
      if (key === 'usersFile' && ((await stat(path)).mode & 0o077) !== 0)
        warnings.push(`proxy.auth.usersFile: "${path}" can be read by others; chmod 600 it`);
      return await readFile(path, 'utf8');
    } catch (error) {
      mistakes.push(`proxy.auth.${key}: cannot read "${path}": ${(error as NodeJS.ErrnoException).code ?? error}`);
      return null;
    }
  };
  const note = (where: string, problems: readonly FileProblem[]): void => {
    for (const { line, problem } of problems) mistakes.push(`${where} line ${line}: ${problem}`);
  };

  const inline = parseHba(options.hba.join('\n'));
  note('proxy.auth.hba', inline.problems);
  const hbaText = await text('hbaFile', options.hbaFile);
  const fromFile = parseHba(hbaText ?? '');
  note(`"${options.hbaFile}"`, fromFile.problems);
  const inlineIdent = parseIdent(options.ident.join('\n'));
  note('proxy.auth.ident', inlineIdent.problems);
  const fileIdent = parseIdent((await text('identFile', options.identFile)) ?? '');
  note(`"${options.identFile}"`, fileIdent.problems);
  const listed = parseUsersFile((await text('usersFile', options.usersFile)) ?? '');
  note(`"${options.usersFile}"`, listed.problems);
  const rules = [...inline.rules, ...fromFile.rules];
  // As in PostgreSQL: whoever wrote nothing but comments did not mean everybody.
  if ((hbaText !== null || options.hba.length > 0) && rules.length === 0 && mistakes.length === 0)
    mistakes.push(`${hbaText === null ? 'proxy.auth.hba' : `"${options.hbaFile}"`} contains no entries`);
  if (mistakes.length > 0)
    throw new UsageError(
      `authentication is not set up right:\n${mistakes.map((m) => `  ${m}`).join('\n')}`,
      'docs/security.md says what rules can be',
    );
  return {
    rules: rules.length === 0 ? null : rules,
    ident: [...inlineIdent.entries, ...fileIdent.entries],
    users: listed.users,
    warnings,
  };
}
