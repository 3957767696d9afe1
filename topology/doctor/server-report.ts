import type pg from 'pg';

/** What one shard's server says of itself. */
export interface ServerReport {
  readonly version: number;
  readonly standby: boolean;
  readonly database: string;
  readonly user: string;
  /** `pg_settings`, in each setting's base unit. */
  readonly settings: Readonly<Record<string, string>>;
  readonly slotsInUse: number;
  readonly sendersInUse: number;
  readonly originsInUse: number;
  readonly superuser: boolean;
  readonly replication: boolean;
  readonly createSubscription: boolean;
  readonly createOnDatabase: boolean;
  /** Roles that may log in to the database and that the user can become neither by itself nor as a superuser; without superusers. */
  readonly notToBecome: readonly string[];
  readonly encoding: string;
  /** Provider, LC_COLLATE, LC_CTYPE of the database. */
  readonly collation: string;
  /** Version by name. */
  readonly extensions: Readonly<Record<string, string>>;
  readonly largeObjects: boolean;
}

const READ_REPORT = `
SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS standby,
  current_database() AS database, current_user::text AS user,
  -- reset_val: what a new session of this user gets, not what this session has set
  (SELECT json_object_agg(name, coalesce(reset_val, setting)) FROM pg_settings) AS settings,
  (SELECT count(*)::int FROM pg_replication_slots) AS "slotsInUse",
  (SELECT count(*)::int FROM pg_stat_get_wal_senders()) AS "sendersInUse",
  (SELECT count(*)::int FROM pg_replication_origin) AS "originsInUse",
  r.rolsuper AS superuser, r.rolreplication AS replication,
  coalesce((SELECT pg_has_role(r.oid, s.oid, 'MEMBER') FROM pg_roles s WHERE s.rolname = 'pg_create_subscription'), false)
    AS "createSubscription",
  has_database_privilege(current_database(), 'CREATE') AS "createOnDatabase",
  (SELECT coalesce(json_agg(o.rolname ORDER BY o.rolname), '[]') FROM pg_roles o
    WHERE o.rolcanlogin AND NOT o.rolsuper AND has_database_privilege(o.oid, d.oid, 'CONNECT')
      AND NOT pg_has_role(r.oid, o.oid, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)) AS "notToBecome",
  pg_encoding_to_char(d.encoding) AS encoding,
  concat_ws(' ', d.datlocprovider, d.datcollate, d.datctype) AS collation,
  (SELECT coalesce(json_object_agg(extname, extversion), '{}') FROM pg_extension) AS extensions,
  EXISTS (SELECT FROM pg_largeobject_metadata) AS "largeObjects"
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()`;

export async function readServerReport(client: pg.Client): Promise<ServerReport> {
  return (await client.query<ServerReport>(READ_REPORT)).rows[0] as ServerReport;
}

/** A setting that is a number; what the server does not know counts as `absent`. */
export function numberSetting(report: ServerReport, name: string, absent = 0): number {
  const value = report.settings[name];
  return value === undefined ? absent : Number(value);
}
