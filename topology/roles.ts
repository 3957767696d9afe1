import pg from 'pg';
import { errorCode, explainConnectError, redactUrl } from './connection.js';
import { ForeshardError } from './errors.js';
import { quoteIdent, quoteLiteral } from './quote.js';

export interface CopiedRoles {
  /** Roles that the target has now as the source has them. */
  readonly copied: readonly string[];
  /** Roles left alone, each with the reason. */
  readonly skipped: readonly { readonly role: string; readonly reason: string }[];
  /** Roles that were copied but will not be able to log in through the proxy, each with the reason. */
  readonly warnings: readonly string[];
}

interface RoleRow {
  readonly oid: string;
  readonly rolname: string;
  readonly rolsuper: boolean;
  readonly rolinherit: boolean;
  readonly rolcreaterole: boolean;
  readonly rolcreatedb: boolean;
  readonly rolcanlogin: boolean;
  readonly rolreplication: boolean;
  readonly rolbypassrls: boolean;
  readonly rolconnlimit: number;
  readonly rolpassword: string | null;
  readonly rolvaliduntil: string | null;
}

interface SettingRow {
  /** null: of the database, for every role. */
  readonly role: string | null;
  /** Only in this database, or in all. */
  readonly here: boolean;
  readonly settings: readonly string[];
}

interface MembershipRow {
  readonly role: string;
  readonly member: string;
  readonly admin: boolean;
  /** null before PostgreSQL 16. */
  readonly inherit: boolean | null;
  readonly set: boolean | null;
}

const PREDEFINED = /^pg_/;

/**
 * Makes the roles of `sourceUrl`'s cluster exist on `targetUrl`'s with the same attributes, memberships, settings (also those
 * for the database in the URL) and password verifiers, so that a client's password, and the SCRAM keys recovered from
 * it, open every shard alike. One transaction: all or nothing. Roles that only the target has are left alone, and so
 * are the bootstrap superuser and the roles that the two URLs themselves log in with.
 * @throws ForeshardError 42501 when either side is not a superuser: only a superuser may read and set verifiers
 */
export async function copyRoles(sourceUrl: string, targetUrl: string): Promise<CopiedRoles> {
  const source = await connect(sourceUrl);
  try {
    const target = await connect(targetUrl);
    try {
      return await copy(source, target);
    } finally {
      await target.end();
    }
  } finally {
    await source.end();
  }
}

async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 10_000,
    application_name: 'foreshard',
  });
  // A connection that breaks between two queries makes the next one fail: nothing more to do here.
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch (error) {
    const { reason, hint } = explainConnectError(error);
    throw new ForeshardError(
      errorCode(error).startsWith('28') ? errorCode(error) : '08006',
      `cannot connect to ${redactUrl(url)}: ${reason}`,
      { hint, cause: error },
    );
  }
  const { rows } = await client.query<{ super: boolean; user: string }>(
    'SELECT rolsuper AS super, rolname AS user FROM pg_roles WHERE rolname = current_user',
  );
  if (rows[0]?.super !== true) {
    await client.end();
    throw new ForeshardError(
      '42501',
      `"${rows[0]?.user}" on ${redactUrl(url)} is not a superuser, so roles cannot be copied with their passwords`,
      {
        hint:
          'Use a superuser for this step; or create the roles there yourself with the same SCRAM verifiers ' +
          "(ALTER ROLE … PASSWORD 'SCRAM-SHA-256$…') and leave copying out with --no-roles, " +
          'naming their passwords under proxy.serverPasswords where the verifiers differ.',
      },
    );
  }
  return client;
}

async function copy(source: pg.Client, target: pg.Client): Promise<CopiedRoles> {
  await source.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
  const roles = await readRoles(source);
  const settings = await readSettings(source);
  const memberships = await readMemberships(source);
  await source.query('COMMIT');

  await target.query('BEGIN');
  const present = new Map((await readRoles(target)).map((role) => [role.rolname, role]));
  const own = new Map([
    [await currentUser(source), 'Foreshard logs in with it'],
    [await currentUser(target), 'Foreshard logs in with it'],
  ]);
  const skipped: { role: string; reason: string }[] = [];
  const copied: string[] = [];
  const warnings: string[] = [];
  for (const role of roles) {
    const reason =
      own.get(role.rolname) ??
      (role.oid === BOOTSTRAP_SUPERUSER || present.get(role.rolname)?.oid === BOOTSTRAP_SUPERUSER
        ? 'bootstrap superuser'
        : undefined);
    if (reason !== undefined) {
      skipped.push({ role: role.rolname, reason });
      continue;
    }
    const name = quoteIdent(role.rolname);
    await target.query(`${present.has(role.rolname) ? 'ALTER' : 'CREATE'} ROLE ${name} ${attributes(role)}`);
    copied.push(role.rolname);
    if (role.rolcanlogin && role.rolpassword?.startsWith('md5'))
      warnings.push(
        `role "${role.rolname}" has an md5 password, which cannot be used through the proxy; set it again with password_encryption = 'scram-sha-256'`,
      );
  }

  const database = quoteIdent(
    (await target.query<{ name: string }>('SELECT current_database() AS name')).rows[0]?.name ?? '',
  );
  const done = new Set(copied);
  for (const role of copied) {
    await target.query(`ALTER ROLE ${quoteIdent(role)} RESET ALL`);
    await target.query(`ALTER ROLE ${quoteIdent(role)} IN DATABASE ${database} RESET ALL`);
  }
  for (const row of settings) {
    if (row.role !== null && !done.has(row.role)) continue;
    const subject =
      row.role === null
        ? `DATABASE ${database}`
        : `ROLE ${quoteIdent(row.role)}${row.here ? ` IN DATABASE ${database}` : ''}`;
    for (const setting of row.settings) await target.query(`ALTER ${subject} SET ${assignment(setting)}`);
  }

  const version = Number(
    (await target.query<{ v: string }>("SELECT current_setting('server_version_num') AS v")).rows[0]?.v,
  );
  const known = new Set(await readNames(target));
  for (const row of memberships) {
    if (!done.has(row.member) || !known.has(row.role)) continue;
    await target.query(`GRANT ${quoteIdent(row.role)} TO ${quoteIdent(row.member)}${grantOptions(row, version)}`);
  }
  await target.query('COMMIT');
  return { copied, skipped, warnings };
}

/** BOOTSTRAP_SUPERUSERID in PostgreSQL's pg_authid.dat. */
const BOOTSTRAP_SUPERUSER = '10';

async function readRoles(client: pg.Client): Promise<RoleRow[]> {
  const { rows } = await client.query<RoleRow>(
    `SELECT oid::text, rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
            rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil::text
       FROM pg_authid ORDER BY oid`,
  );
  return rows.filter((role) => !PREDEFINED.test(role.rolname));
}

async function readNames(client: pg.Client): Promise<string[]> {
  return (await client.query<{ rolname: string }>('SELECT rolname FROM pg_roles')).rows.map((r) => r.rolname);
}

async function readSettings(client: pg.Client): Promise<SettingRow[]> {
  const { rows } = await client.query<SettingRow>(
    `SELECT r.rolname AS role, s.setdatabase <> 0 AS here, s.setconfig AS settings
       FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
      WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        AND (s.setrole = 0) = (r.oid IS NULL) AND (s.setrole <> 0 OR s.setdatabase <> 0)
      ORDER BY s.setdatabase, s.setrole`,
  );
  return rows;
}

async function readMemberships(client: pg.Client): Promise<MembershipRow[]> {
  // to_jsonb, because inherit_option and set_option exist only from PostgreSQL 16 on. Several grantors become one grant.
  const { rows } = await client.query<MembershipRow>(
    `SELECT r.rolname AS role, u.rolname AS member, bool_or(m.admin_option) AS admin,
            bool_or((to_jsonb(m)->>'inherit_option')::bool) AS inherit, bool_or((to_jsonb(m)->>'set_option')::bool) AS set
       FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
      GROUP BY 1, 2 ORDER BY 1, 2`,
  );
  return rows;
}

async function currentUser(client: pg.Client): Promise<string> {
  return (await client.query<{ user: string }>('SELECT current_user AS user')).rows[0]?.user ?? '';
}

function attributes(role: RoleRow): string {
  const flag = (on: boolean, word: string) => (on ? word : `NO${word}`);
  return [
    flag(role.rolsuper, 'SUPERUSER'),
    flag(role.rolinherit, 'INHERIT'),
    flag(role.rolcreaterole, 'CREATEROLE'),
    flag(role.rolcreatedb, 'CREATEDB'),
    flag(role.rolcanlogin, 'LOGIN'),
    flag(role.rolreplication, 'REPLICATION'),
    flag(role.rolbypassrls, 'BYPASSRLS'),
    `CONNECTION LIMIT ${role.rolconnlimit}`,
    // A verifier in one of PostgreSQL's own forms is stored as it is, not hashed again.
    `PASSWORD ${role.rolpassword === null ? 'NULL' : quoteLiteral(role.rolpassword)}`,
    `VALID UNTIL ${role.rolvaliduntil === null ? "'infinity'" : quoteLiteral(role.rolvaliduntil)}`,
  ].join(' ');
}

/** GUC_LIST_QUOTE variables, whose stored value is a list of quoted identifiers (variable_is_guc_list_quote in pg_dump's dumputils.c). */
const LIST_QUOTED = new Set([
  'local_preload_libraries',
  'search_path',
  'session_preload_libraries',
  'shared_preload_libraries',
  'temp_tablespaces',
  'unix_socket_directories',
]);

/** `name=value` as in pg_db_role_setting.setconfig, as the right side of ALTER … SET. */
function assignment(setting: string): string {
  const at = setting.indexOf('=');
  const name = setting.slice(0, at);
  const value = setting.slice(at + 1);
  // Names of custom settings have dots: each part is an identifier of its own.
  const target = name
    .split('.')
    .map((part) => quoteIdent(part))
    .join('.');
  const values = LIST_QUOTED.has(name.toLowerCase()) ? splitList(value) : [value];
  return `${target} TO ${values.length === 0 ? "''" : values.map((v) => quoteLiteral(v)).join(', ')}`;
}

/** Elements of a comma-separated list whose elements may be double-quoted (SplitGUCList in PostgreSQL). */
function splitList(value: string): string[] {
  return [...value.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^",]+?))\s*(?:,|$)/g)].map((m) =>
    m[1] === undefined ? (m[2] ?? '') : m[1].replaceAll('""', '"'),
  );
}

function grantOptions(row: MembershipRow, targetVersion: number): string {
  if (targetVersion < 160000) return row.admin ? ' WITH ADMIN OPTION' : '';
  const options = [`ADMIN ${row.admin}`];
  if (row.inherit !== null) options.push(`INHERIT ${row.inherit}`);
  if (row.set !== null) options.push(`SET ${row.set}`);
  return ` WITH ${options.join(', ')}`;
}
