import { describe, expect, it } from 'vitest';
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../proxy/wire/frontend.js';
import { administered, failure, show } from '../support/administered.js';
import { RawPeer } from '../support/raw-peer.js';

const at = administered();
const { admin } = at;

describe('monitoring made for PgBouncer', () => {
  /** What a client like lib/pq, psycopg2 or pgx names in its start-up packet, and a simple query as they send it. */
  async function rowsOf(sql: string): Promise<{ names: string[]; rows: (string | null)[][] }> {
    const parameters = { extra_float_digits: '2', client_encoding: 'UTF8', datestyle: 'ISO, MDY' };
    const login = { user: 'root', password: 'toor', database: 'foreshard_admin', parameters };
    const peer = await RawPeer.login(at.s.proxy.port, login);
    peer.send(encodeQuery(sql));
    const messages = await peer.until('Z');
    peer.end();
    const error = messages.find((m) => m.type === 'E');
    if (error !== undefined) throw new Error(error.body.toString());
    const names: string[] = [];
    const description = messages.find((m) => m.type === 'T')?.body ?? Buffer.alloc(2);
    for (let at = 2, i = 0; i < description.readInt16BE(0); i++) {
      const end = description.indexOf(0, at);
      names.push(description.subarray(at, end).toString());
      at = end + 19;
    }
    const rows = messages
      .filter((m) => m.type === 'D')
      .map(({ body }) => {
        const values: (string | null)[] = [];
        for (let at = 2; at < body.length; ) {
          const length = body.readInt32BE(at);
          values.push(length < 0 ? null : body.subarray(at + 4, at + 4 + length).toString());
          at += 4 + Math.max(0, length);
        }
        return values;
      });
    return { names, rows };
  }

  const POOLS = 'cl_active cl_waiting sv_active sv_idle sv_used sv_tested sv_login maxwait';
  const COUNTS = 'query_count query_time bytes_received bytes_sent wait_time xact_count xact_time';

  it.each<[string, string, string, string]>([
    // Prometheus' exporter: labels that are text or null, numbers that can be read as such.
    [
      'SHOW DATABASES;',
      'name host port database',
      'pool_size max_connections current_connections paused disabled',
      'exporter',
    ],
    ['SHOW stats_totals;', 'database', `${COUNTS} client_parse_count server_parse_count bind_count`, 'exporter'],
    ['SHOW pools;', 'database user', `${POOLS} cl_active_cancel_req sv_being_canceled`, 'exporter'],
    ['SHOW LISTS;', 'list', 'items', 'exporter'],
    // Datadog's check, each by a simple query of psycopg2.
    ['SHOW STATS', 'database', 'total_xact_count total_query_time avg_wait_time avg_recv avg_sent', 'Datadog'],
    ['SHOW POOLS', 'database user', `${POOLS} maxwait_us`, 'Datadog'],
    ['SHOW DATABASES', 'name', 'pool_size max_connections current_connections', 'Datadog'],
    ['SHOW CLIENTS', 'database user state connect_time request_time', 'wait wait_us', 'Datadog'],
    ['SHOW SERVERS', 'database user state connect_time request_time', 'remote_pid', 'Datadog'],
  ])('%s has %s, and the numbers %s (%s)', async (sql, labels, numbers) => {
    const client = await at.s.connect();
    await client.query('SELECT 1');
    const { names, rows } = await rowsOf(sql);
    expect(rows.length).toBeGreaterThan(0);
    for (const row of rows) {
      const value = (name: string) => row[names.indexOf(name)];
      for (const name of labels.split(' ')) expect([name, value(name)]).toEqual([name, expect.any(String)]);
      for (const name of numbers.split(' '))
        expect([name, value(name)]).toEqual([name, expect.stringMatching(/^\d+$/)]);
      for (const name of names.filter((n) => /_time$/.test(n) && labels.includes(n)))
        expect(value(name)).toMatch(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$/);
    }
    await client.end();
  });

  it('Telegraf reads every column of STATS but the database as a whole number', async () => {
    const { names, rows } = await rowsOf('SHOW STATS');
    expect(names[0]).toBe('database');
    for (const row of rows) for (const value of row.slice(1)) expect(value).toMatch(/^-?\d+$/);
  });

  it('the exporter and Datadog read CONFIG, with the limits in it, and the version', async () => {
    const { names, rows } = await rowsOf('SHOW CONFIG;');
    expect(names).toEqual(['key', 'value', 'default', 'changeable']);
    for (const [key, , , changeable] of rows)
      expect([key, changeable]).toEqual([expect.any(String), expect.any(String)]);
    expect((await rowsOf('SHOW VERSION;')).rows[0]?.[0]).toMatch(/\d+\.\d+\.\d+/);
  });

  it.each([
    ['pgx, lib/pq: ping', ';'],
    ['pgx 5: ping', '-- ping'],
    ['pgjdbc: isValid', ''],
    ['pgjdbc: first', "SET extra_float_digits = 3; SET application_name = 'PostgreSQL JDBC Driver'"],
    ['pgjdbc: read-only', 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY'],
    ['Npgsql: a connection back to its pool', 'DISCARD ALL'],
    ['psycopg2: first', "SET datestyle TO 'ISO'"],
    ['psycopg2: without autocommit', 'BEGIN'],
    ['ActiveRecord: first', "SET client_min_messages TO 'warning'; SET standard_conforming_strings = on"],
  ])('%s', async (_name, sql) => {
    await rowsOf(sql);
  });

  it.each([
    [
      'pgAdmin',
      "SET DateStyle=ISO; SELECT set_config('bytea_output','hex',false) FROM pg_show_all_settings() WHERE name = 'bytea_output'",
    ],
    [
      'Npgsql, loading types',
      'SELECT version();\n\nSELECT ns.nspname, t.oid FROM pg_type AS t JOIN pg_namespace AS ns ON ns.oid = t.typnamespace',
    ],
    ['SQLAlchemy', 'select pg_catalog.version()'],
    ['psql: \\l', 'SELECT d.datname FROM pg_catalog.pg_database d ORDER BY 1;'],
  ])('%s is refused, as by PgBouncer, and the connection goes on', async (_name, sql) => {
    const client = await admin();
    const error = await failure(client.query(sql));
    expect([error.code, error.message]).toEqual(['42601', expect.stringContaining('use SHOW HELP')]);
    await show(client, 'VERSION');
  });

  it('pgjdbc and Npgsql in the extended protocol', async () => {
    const peer = await RawPeer.login(at.s.proxy.port, { user: 'root', password: 'toor', database: 'foreshard_admin' });
    const bind = encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] });
    for (const sql of [
      'SET extra_float_digits = 3',
      "SET application_name = 'PostgreSQL JDBC Driver'",
      'SHOW POOLS',
      '',
    ]) {
      peer.send(encodeParse('', sql), bind, encodeDescribe('portal', ''), encodeExecute('', 0), SYNC);
      const types = (await peer.until('Z')).map((m) => m.type).join('');
      expect(types).toMatch(/^12(nC|TD+C|nI)Z$/);
    }
    peer.end();
  });
});
