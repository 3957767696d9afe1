import pg from 'pg';
import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { ForeshardError } from '../../topology/errors.js';
import { copyRoles } from '../../topology/roles.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

let source: EmbeddedCluster;
let target: EmbeddedCluster;

const ROLES = `SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
  rolconnlimit, rolpassword, coalesce(rolvaliduntil, 'infinity')::text AS until FROM pg_authid
  WHERE rolname !~ '^pg_' AND oid <> 10 ORDER BY 1`;
const SETTINGS = `SELECT r.rolname, s.setdatabase <> 0 AS here, s.setconfig FROM pg_db_role_setting s
  LEFT JOIN pg_roles r ON r.oid = s.setrole ORDER BY 1, 2`;
const MEMBERS = `SELECT r.rolname AS role, m.rolname AS member, admin_option, inherit_option, set_option
  FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
  WHERE m.rolname !~ '^pg_' ORDER BY 1, 2`;

const rows = (cluster: EmbeddedCluster, sql: string) =>
  withClient(cluster.url('shop'), async (client) => (await client.query(sql)).rows);

beforeAll(async () => {
  [source, target] = await Promise.all([startTestCluster(), startTestCluster()]);
  for (const cluster of [source, target])
    await withClient(cluster.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(source.url('shop'), (client) =>
    client.query(`
      CREATE ROLE app LOGIN PASSWORD 'p''ass' CONNECTION LIMIT 7 VALID UNTIL '2099-01-01';
      CREATE ROLE "Odd ""Name" NOLOGIN CREATEDB;
      CREATE ROLE boss LOGIN SUPERUSER CREATEROLE BYPASSRLS REPLICATION NOINHERIT;
      GRANT "Odd ""Name" TO app WITH ADMIN OPTION;
      GRANT "Odd ""Name" TO boss WITH INHERIT FALSE, SET TRUE;
      GRANT pg_read_all_data TO app;
      ALTER ROLE app SET search_path TO "$user", "My ""Schema", public;
      ALTER ROLE app SET shop.mode TO 'it''s, fine';
      ALTER ROLE app IN DATABASE shop SET statement_timeout TO '5s';
      ALTER ROLE boss SET search_path TO '';
      ALTER DATABASE shop SET timezone TO 'Europe/Paris';
      ALTER ROLE ALL SET work_mem TO '5MB';
    `),
  );
});

describe('copyRoles', () => {
  it('copies attributes, verifiers, settings and memberships as they are, and again after changes', async () => {
    await withClient(target.url('shop'), (client) =>
      client.query("CREATE ROLE app SUPERUSER; ALTER ROLE app SET work_mem TO '1MB'; CREATE ROLE only_here"),
    );
    const result = await copyRoles(source.url('shop'), target.url('shop'));
    expect([...result.copied].sort()).toEqual(['Odd "Name', 'app', 'boss']);
    expect(result.skipped.map((s) => s.role)).toEqual(['postgres']);
    expect(result.warnings).toEqual([]);

    const mine = (list: { rolname?: string }[]) => list.filter((r) => r.rolname !== 'only_here');
    expect(mine(await rows(target, ROLES))).toEqual(await rows(source, ROLES));
    expect(await rows(target, SETTINGS)).toEqual(
      (await rows(source, SETTINGS)).filter((r) => r.rolname !== null || r.here),
    );
    expect(await rows(target, MEMBERS)).toEqual(await rows(source, MEMBERS));

    const asApp = new pg.Client({
      host: '127.0.0.1',
      port: target.port,
      user: 'app',
      password: "p'ass",
      database: 'shop',
    });
    await asApp.connect();
    expect(
      (await asApp.query("SELECT current_setting('shop.mode') AS m, current_setting('TimeZone') AS z")).rows[0],
    ).toEqual({
      m: "it's, fine",
      z: 'Europe/Paris',
    });
    await asApp.end();

    await withClient(source.url('shop'), (client) =>
      client.query("ALTER ROLE app PASSWORD 'new' NOLOGIN; ALTER ROLE app RESET shop.mode"),
    );
    await copyRoles(source.url('shop'), target.url('shop'));
    expect(mine(await rows(target, ROLES))).toEqual(await rows(source, ROLES));
    expect((await rows(target, SETTINGS)).find((r) => r.rolname === 'app' && !r.here).setconfig).toHaveLength(1);
  });

  it('warns of passwords that the proxy cannot use', async () => {
    await withClient(source.url('shop'), (client) =>
      client.query("SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'x'"),
    );
    const { warnings } = await copyRoles(source.url('shop'), target.url('shop'));
    expect(warnings).toEqual([expect.stringMatching(/role "old" has an md5 password/)]);
  });

  it('leaves nothing behind when it fails half-way', async () => {
    await withClient(source.url('shop'), (client) =>
      client.query("CREATE ROLE late LOGIN; ALTER ROLE late SET plpgsql.extra_warnings TO 'all'"),
    );
    await withClient(target.url('shop'), (client) =>
      client.query(`CREATE ROLE app_child; GRANT app TO app_child; CREATE ROLE loop_a`),
    );
    // A membership that would close a circle is refused by the target after the roles were made.
    await withClient(source.url('shop'), (client) => client.query('CREATE ROLE app_child; GRANT app_child TO app'));
    await expect(copyRoles(source.url('shop'), target.url('shop'))).rejects.toThrow(/circular|member of/);
    expect((await rows(target, ROLES)).map((r) => r.rolname)).not.toContain('late');
  });

  it('refuses, with a remedy, when a side is not a superuser or does not let us in', async () => {
    await withClient(source.url('shop'), (client) => client.query("CREATE ROLE plain LOGIN PASSWORD 'pw'"));
    const plain = `postgresql://plain:pw@127.0.0.1:${source.port}/shop`;
    const refused = await copyRoles(plain, target.url('shop')).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(ForeshardError);
    expect((refused as ForeshardError).sqlstate).toBe('42501');
    expect((refused as ForeshardError).hint).toMatch(/--no-roles/);
    const wrong = await copyRoles(plain.replace(':pw@', ':no@'), target.url('shop')).catch((error: unknown) => error);
    expect((wrong as ForeshardError).sqlstate).toBe('28P01');
    expect((wrong as ForeshardError).message).not.toMatch(/:no@/);
  });
});
