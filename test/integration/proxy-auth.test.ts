import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import pg from 'pg';
import pino from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AuthOptions } from '../../proxy/auth/authentication.js';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeSaslInitialResponse, encodeSaslResponse, encodeStartup } from '../../proxy/wire/frontend.js';
import { md5Hash } from '../../proxy/wire/login-secret.js';
import { makeVerifier, ScramClient } from '../../proxy/wire/scram.js';
import { LoginUsers } from '../../topology/catalog/login-users.js';
import { temporaryDirectory } from '../cli/temporary-directory.js';
import { RawPeer } from '../support/raw-peer.js';
import { Sharded, type ShardedOptions, startProxy } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';

const SCRAM: AuthOptions = { method: 'scram-sha-256', users: new Map() };
/** Nothing waits where waiting is not what is tested. */
const PATIENT = { free: 5, delayMs: 0, maxDelayMs: 0, forgetMs: 60_000 };
let s: Sharded;
const dir = temporaryDirectory('foreshard-auth-');

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, auth: { ...SCRAM, failures: PATIENT } });
  await s.onShard(
    0,
    `CREATE ROLE nologin PASSWORD 'secret';
     CREATE ROLE late LOGIN PASSWORD 'secret' VALID UNTIL '2020-01-01';
     CREATE ROLE early LOGIN PASSWORD 'secret' VALID UNTIL '2120-01-01';
     CREATE ROLE never LOGIN PASSWORD 'secret' VALID UNTIL 'infinity';
     CREATE ROLE bare LOGIN;
     CREATE ROLE "o'dd ""x""" LOGIN PASSWORD 'secret';
     SET password_encryption = 'md5';
     SET client_min_messages = 'error';
     CREATE ROLE hashed LOGIN PASSWORD 'secret'`,
  );
});
afterAll(() => s.stop());

interface Scene {
  readonly port: number;
  readonly proxy: ProxyServer;
  /** What was logged, one event a line. */
  readonly log: () => Record<string, unknown>[];
}

/** Runs with a proxy of its own. */
async function withProxy(
  auth: Partial<AuthOptions>,
  use: (scene: Scene) => Promise<void>,
  options: Partial<ShardedOptions> = {},
): Promise<void> {
  const lines: string[] = [];
  const sink = new Writable({
    write: (chunk, _encoding, done) => {
      lines.push(String(chunk));
      done();
    },
  });
  const proxy = await startProxy(s.catalog, {
    splitAt: null,
    logger: pino({ level: 'info' }, sink),
    ...options,
    auth: { ...SCRAM, failures: PATIENT, ...auth },
  });
  try {
    await use({ port: proxy.port, proxy, log: () => lines.map((l) => JSON.parse(l) as Record<string, unknown>) });
  } finally {
    await proxy.close();
  }
}

/** `ok`, or what the client is told. */
async function login(port: number, user: string, password: string, config: pg.ClientConfig = {}): Promise<string> {
  const client = new pg.Client({ host: '127.0.0.1', port, user, password, database: 'shop', ...config });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const { rows } = await client.query<{ who: string }>('SELECT current_user AS who');
    return rows[0]?.who === user ? 'ok' : `is ${rows[0]?.who}`;
  } catch (error) {
    return `${(error as { code?: string }).code}: ${(error as Error).message}`;
  } finally {
    await client.end().catch(() => undefined);
  }
}

const wrong = (user: string): string => `28P01: password authentication failed for user "${user}"`;

/** One conversation up to its end or to AuthenticationOk, without what is random. */
async function conversation(port: number, user: string, password: string, database = 'shop'): Promise<unknown[]> {
  const peer = await RawPeer.connect(port);
  const scram = new ScramClient({ password });
  const told: unknown[] = [];
  try {
    peer.send(encodeStartup({ user, database }));
    for (;;) {
      const { type, body, frame } = await peer.receive();
      if (type === 'E') {
        const { severity, sqlstate, message, detail } = decodeErrorFields(frame);
        told.push({ severity, sqlstate, message, detail });
        await peer.expectClose();
        return told;
      }
      if (type !== 'R') return told;
      const kind = body.readInt32BE(0);
      const data = body.subarray(4);
      told.push(kind === 10 ? data.toString() : kind);
      if (kind === 10) peer.send(encodeSaslInitialResponse('SCRAM-SHA-256', scram.first()));
      else if (kind === 11) {
        const [nonce, salt, iterations] = data.toString().split(',');
        told.push([nonce?.length, salt?.length, iterations]);
        peer.send(encodeSaslResponse(await scram.final(data)));
      }
    }
  } finally {
    peer.destroy();
  }
}

describe('a client cannot tell the proxy from PostgreSQL', () => {
  it.each([
    ['a right password', 'app', 'secret'],
    ['a wrong password', 'app', 'wrong'],
    ['a user that does not exist', 'ghost', 'secret'],
    ['a user without a password', 'bare', 'secret'],
    ['a role without LOGIN, wrong password', 'nologin', 'wrong'],
    ['a role without LOGIN, right password', 'nologin', 'secret'],
    ['a password past its time', 'late', 'secret'],
    ['a password before its time', 'early', 'secret'],
    ['a password for ever', 'never', 'secret'],
    ['an md5 password where SCRAM is asked for', 'hashed', 'secret'],
    ['a name with quotes', `o'dd "x"`, 'secret'],
    ['a name that wants to be SQL', `x' OR true --`, 'secret'],
  ])('%s', async (_name, user, password) => {
    const direct = await conversation(s.clusters[0].port, user, password);
    expect(await conversation(s.proxy.port, user, password)).toEqual(direct);
    expect(direct[0]).toBe('SCRAM-SHA-256\0\0');
  });

  it('hears of a database that does not exist when it has logged in, not before', async () => {
    expect(await conversation(s.proxy.port, 'app', 'wrong', 'nowhere')).toEqual(
      await conversation(s.clusters[0].port, 'app', 'wrong', 'nowhere'),
    );
    expect(await conversation(s.proxy.port, 'app', 'secret', 'nowhere')).toEqual(
      await conversation(s.clusters[0].port, 'app', 'secret', 'nowhere'),
    );
  });

  it('sees the same salt for a ghost every time, and the iterations of real users', async () => {
    const serverFirst = async (port: number, user: string): Promise<{ salt: string; iterations: string }> => {
      const peer = await RawPeer.connect(port);
      peer.send(encodeStartup({ user, database: 'shop' }));
      await peer.expect('R');
      peer.send(encodeSaslInitialResponse('SCRAM-SHA-256', new ScramClient({ password: 'x' }).first()));
      const [, salt, iterations] = (await peer.expect('R')).body.subarray(4).toString().split(',') as string[];
      peer.destroy();
      return { salt: salt as string, iterations: iterations as string };
    };
    await s.onShard(0, 'ALTER SYSTEM SET scram_iterations = 5000');
    await s.onShard(0, 'SELECT pg_reload_conf()');
    try {
      // With a new connection for look-ups, which has the new setting.
      await withProxy({}, async ({ port }) => {
        const ghost = await serverFirst(port, 'ghost');
        expect(ghost).toEqual({ salt: ghost.salt, iterations: 'i=5000' });
        expect(await serverFirst(port, 'ghost')).toEqual(ghost);
        // As other processes of the installation show it.
        expect((await serverFirst(s.proxy.port, 'ghost')).salt).toBe(ghost.salt);
        expect((await serverFirst(port, 'ghost2')).salt).not.toBe(ghost.salt);
        expect((await serverFirst(port, 'app')).salt).toHaveLength(ghost.salt.length);
      });
    } finally {
      await s.onShard(0, 'ALTER SYSTEM RESET scram_iterations');
      await s.onShard(0, 'SELECT pg_reload_conf()');
    }
  });
});

describe('a changed password', () => {
  it('counts at once, and the old one no more', async () => {
    await s.onShard(0, `CREATE ROLE turn LOGIN PASSWORD 'one'`);
    expect(await login(s.proxy.port, 'turn', 'one')).toBe('ok');
    await s.onShard(0, `ALTER ROLE turn PASSWORD 'two'`);
    expect(await login(s.proxy.port, 'turn', 'two')).toBe('ok');
    expect(await login(s.proxy.port, 'turn', 'one')).toBe(wrong('turn'));
    await s.onShard(0, `ALTER ROLE turn NOLOGIN`);
    expect(await login(s.proxy.port, 'turn', 'two')).toBe('28000: role "turn" is not permitted to log in');
  });

  it('counts at the second login at the latest where look-ups are cached', async () => {
    await s.onShard(0, `CREATE ROLE stale LOGIN PASSWORD 'one'`);
    await withProxy({ cacheMs: 600_000 }, async ({ port }) => {
      expect(await login(port, 'stale', 'one')).toBe('ok');
      await s.onShard(0, `ALTER ROLE stale PASSWORD 'two'`);
      expect(await login(port, 'stale', 'two')).toBe(wrong('stale'));
      expect(await login(port, 'stale', 'two')).toBe('ok');
    });
  });
});

describe('rules', () => {
  it('decide by user, database and address, in the words of PostgreSQL', async () => {
    const hba = [
      'host all bare 127.0.0.1/32 reject',
      'host shop app 127.0.0.1/32 scram-sha-256',
      'host all all 10.0.0.0/8 trust',
    ];
    await withProxy({ hba }, async ({ port, log }) => {
      expect(await login(port, 'app', 'secret')).toBe('ok');
      expect(await login(port, 'bare', 'x')).toBe(
        '28000: pg_hba.conf rejects connection for host "127.0.0.1", user "bare", database "shop", no encryption',
      );
      expect(await login(port, 'early', 'secret')).toBe(
        '28000: no pg_hba.conf entry for host "127.0.0.1", user "early", database "shop", no encryption',
      );
      expect(await login(port, 'app', 'secret', { database: 'other' })).toBe(
        '28000: no pg_hba.conf entry for host "127.0.0.1", user "app", database "other", no encryption',
      );
      expect(log().filter((l) => l.msg === 'login refused')).toMatchObject([
        { user: 'bare', database: 'shop', from: '127.0.0.1', sqlstate: '28000', reason: 'rejected by line 1' },
        { user: 'early', reason: 'no rule fits' },
        { database: 'other', reason: 'no rule fits' },
      ]);
    });
  });

  it('with a mistake keep the proxy from starting, and say each with its file and line', async () => {
    const hbaFile = join(dir, 'bad.conf');
    const usersFile = join(dir, 'bad.txt');
    writeFileSync(hbaFile, '# ok\nhost all all all trust\nhost all all nowhere trust\nlocal all all ident\n');
    writeFileSync(usersFile, '"a" "b"\nc d\n', { mode: 0o600 });
    await expect(
      withProxy({ hbaFile, usersFile, identFile: join(dir, 'none') }, async () => undefined),
    ).rejects.toThrow(
      `authentication is not set up right:
  "${hbaFile}" line 3: host name "nowhere" is not supported by the proxy: give IP addresses
  "${hbaFile}" line 4: authentication method "ident" is not supported by the proxy; the methods are scram-sha-256, md5, password, cert, trust, reject
  proxy.auth.identFile: cannot read "${join(dir, 'none')}": ENOENT
  "${usersFile}" line 2: expected "name" "secret", both in double quotes`,
    );
  });

  it('are read again, unless there is a mistake in them', async () => {
    const hbaFile = join(dir, 'hba.conf');
    writeFileSync(hbaFile, 'host all app all scram-sha-256\n');
    await withProxy({ hbaFile }, async ({ port, proxy }) => {
      expect(await login(port, 'early', 'secret')).toMatch(/^28000: no pg_hba.conf entry/);
      writeFileSync(hbaFile, 'host all early all scram-sha-256\nhost all\n');
      await expect(proxy.reload()).rejects.toThrow(`"${hbaFile}" line 2: end-of-line before role specification`);
      expect(await login(port, 'app', 'secret')).toBe('ok');
      expect(await login(port, 'early', 'secret')).toMatch(/^28000: no pg_hba.conf entry/);
      writeFileSync(hbaFile, 'host all early all scram-sha-256\n');
      await proxy.reload();
      expect(await login(port, 'early', 'secret')).toBe('ok');
      expect(await login(port, 'app', 'secret')).toMatch(/^28000: no pg_hba.conf entry/);
    });
  });

  it('trust: roles that do not exist, and that may not log in, hear so', async () => {
    await withProxy({ hba: ['host all all all trust'] }, async ({ port }) => {
      expect(await conversation(port, 'ghost', '')).toEqual([
        0,
        { severity: 'FATAL', sqlstate: '28000', message: 'role "ghost" does not exist', detail: undefined },
      ]);
      expect(await login(port, 'nologin', '')).toBe('28000: role "nologin" is not permitted to log in');
    });
  });
});

describe('a Unix socket', () => {
  it('has rules of its own, and may be told a password in the clear', async () => {
    const hba = ['local all app password', 'host all all all scram-sha-256'];
    await withProxy(
      { hba },
      async ({ port }) => {
        expect(await login(port, 'app', 'secret', { host: dir })).toBe('ok');
        expect(await login(port, 'app', 'wrong', { host: dir })).toBe(wrong('app'));
        expect(await login(port, 'early', 'secret', { host: dir })).toBe(
          '28000: no pg_hba.conf entry for host "[local]", user "early", database "shop", no encryption',
        );
        expect(await login(port, 'early', 'secret')).toBe('ok');
      },
      { listen: { socketDirectory: dir } },
    );
  });
});

describe('users', () => {
  it('come from the configuration, then the file, then the catalog, then the query', async () => {
    const usersFile = join(dir, 'users.txt');
    writeFileSync(usersFile, '"app" "from file"\n"early" "from file"\n', { mode: 0o600 });
    const users = new LoginUsers(s.catalog);
    for (const name of ['app', 'early', 'never'])
      await users.set({ name, verifier: await makeVerifier('from catalog'), validUntil: null }, 'test');
    const serverPasswords = new Map(['app', 'early', 'never'].map((u) => [u, 'secret'] as const));
    try {
      await withProxy(
        { users: new Map([['app', { password: 'from configuration' }]]), usersFile },
        async ({ port }) => {
          expect(await login(port, 'app', 'from configuration')).toBe('ok');
          expect(await login(port, 'app', 'from file')).toBe(wrong('app'));
          expect(await login(port, 'early', 'from file')).toBe('ok');
          expect(await login(port, 'early', 'from catalog')).toBe(wrong('early'));
          expect(await login(port, 'never', 'from catalog')).toBe('ok');
          expect(await login(port, 'never', 'secret')).toBe(wrong('never'));
          await users.remove('never', 'test');
          expect(await login(port, 'never', 'from catalog')).toBe(wrong('never'));
          expect(await login(port, 'never', 'secret')).toBe('ok');
          await users.set(
            { name: 'never', verifier: await makeVerifier('x'), validUntil: new Date('2020-01-01') },
            'test',
          );
          expect(await login(port, 'never', 'x')).toBe(wrong('never'));
        },
        { serverPasswords },
      );
    } finally {
      for (const name of ['app', 'early', 'never']) await users.remove(name, 'test').catch(() => undefined);
    }
  });

  it('with an md5 hash log in by md5, and to servers by a password of their own', async () => {
    const usersFile = join(dir, 'md5.txt');
    writeFileSync(usersFile, `"app" "${md5Hash('other', 'app')}"\n`, { mode: 0o600 });
    const hba = ['host all all all md5'];
    await withProxy({ hba, usersFile }, async ({ port }) => {
      expect(await login(port, 'app', 'wrong')).toBe(wrong('app'));
      expect(await login(port, 'app', 'other')).toMatch(
        /the server asks for a SCRAM proof, and only an md5 hash is at hand/,
      );
    });
    await withProxy({ hba, usersFile }, async ({ port }) => expect(await login(port, 'app', 'other')).toBe('ok'), {
      serverPasswords: new Map([['app', 'secret']]),
    });
  });

  it('with their password in the file need nothing more for servers', async () => {
    const usersFile = join(dir, 'plain.txt');
    writeFileSync(usersFile, '"app" "secret"\n', { mode: 0o600 });
    await withProxy(
      { usersFile, query: { enabled: false, sql: null, user: null, password: null, timeoutMs: 5000 } },
      async ({ port }) => {
        expect(await login(port, 'app', 'secret')).toBe('ok');
        // Nobody else is asked about.
        expect(await login(port, 'early', 'secret')).toBe(wrong('early'));
      },
    );
  });
});

describe('the auth query', () => {
  it('is out of reach of what a client sends, and of settings of its own user', async () => {
    const bait = await makeVerifier('bait');
    const owner = decodeURIComponent(new URL(s.clusters[0].url('shop')).username);
    await s.onShard(
      0,
      `CREATE SCHEMA evil;
       CREATE TABLE evil.pg_authid AS SELECT rolname, '${bait}' AS rolpassword, true AS rolcanlogin, NULL::timestamptz AS rolvaliduntil FROM pg_authid;
       GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT SELECT ON evil.pg_authid TO PUBLIC;
       ALTER ROLE "${owner}" SET search_path = evil, pg_catalog`,
    );
    const sql = 'SELECT rolname, rolpassword, rolcanlogin, rolvaliduntil FROM pg_authid WHERE rolname = $1';
    try {
      for (const query of [undefined, { enabled: true, sql, user: null, password: null, timeoutMs: 5000 }])
        await withProxy(query === undefined ? {} : { query }, async ({ port }) => {
          for (const options of ['-c search_path=evil,pg_catalog', '-c search_path=evil -c role=app', '']) {
            expect(await login(port, 'app', 'bait', { options })).toBe(wrong('app'));
            expect(await login(port, 'app', 'secret', { options })).toBe('ok');
          }
        });
    } finally {
      await s.onShard(0, `ALTER ROLE "${owner}" RESET search_path; DROP SCHEMA evil CASCADE`);
    }
  });

  it('may be a function, and a user who may nothing else', async () => {
    await s.onShard(
      0,
      `CREATE ROLE asker LOGIN PASSWORD 'asks';
       CREATE FUNCTION public.user_lookup(name text, OUT usename text, OUT passwd text) RETURNS SETOF record
         LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
         AS $$ SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name AND NOT rolsuper $$`,
    );
    const query = {
      enabled: true,
      sql: 'SELECT usename, passwd FROM public.user_lookup($1)',
      user: 'asker',
      password: 'asks',
      timeoutMs: 5000,
    };
    await withProxy({ query }, async ({ port }) => {
      expect(await login(port, 'app', 'secret')).toBe('ok');
      expect(await login(port, 'app', 'wrong')).toBe(wrong('app'));
    });
  });

  it.each([
    [
      'finds somebody else',
      `SELECT 'early' AS rolname, rolpassword FROM pg_authid WHERE rolname = 'app' AND $1 <> ''`,
      'gave another user',
    ],
    ['gives no password', 'SELECT rolname FROM pg_authid WHERE rolname = $1', 'gives no password'],
    ['gives several users', `SELECT rolname, rolpassword FROM pg_authid WHERE $1 <> ''`, 'rows'],
    ['is no SQL', 'SELEKT $1', 'syntax error'],
    [
      'writes',
      `INSERT INTO public.settings VALUES ($1, '') RETURNING name AS rolname, value AS rolpassword`,
      'read-only transaction',
    ],
    ['takes too long', 'SELECT rolname, rolpassword FROM pg_authid, pg_sleep(60) WHERE rolname = $1', /timeout/],
  ])('that %s lets nobody in; the client is told nothing, the log all', async (_name, sql, reason) => {
    const query = { enabled: true, sql, user: null, password: null, timeoutMs: 500 };
    await withProxy({ query }, async ({ port, log }) => {
      expect(await login(port, 'app', 'secret')).toMatch(/^(28000|57P03): the proxy cannot look up the user$/);
      const [line] = log().filter((l) => l.msg === 'login refused');
      expect(line?.reason).toMatch(reason);
    });
  });
});

describe('failed logins', () => {
  const failures = { free: 2, delayMs: 3_600_000, maxDelayMs: 3_600_000, forgetMs: 3_600_000 };

  it('make their address wait, at most until the login times out, and nobody who is known there', async () => {
    await withProxy(
      { failures },
      async ({ port, proxy, log }) => {
        expect(await login(port, 'app', 'secret')).toBe('ok');
        expect(await login(port, 'early', 'wrong')).toBe(wrong('early'));
        expect(await login(port, 'never', 'wrong')).toBe(wrong('never'));
        expect(await login(port, 'early', 'secret')).toMatch(/^57014: canceling authentication due to timeout/);
        expect(proxy.clients.size).toBe(0);
        expect(await login(port, 'app', 'secret')).toBe('ok');
        const refused = log().filter((l) => l.msg === 'login refused');
        expect(refused.slice(0, 2)).toMatchObject([
          {
            user: 'early',
            database: 'shop',
            from: '127.0.0.1',
            sqlstate: '28P01',
            reason: 'Password does not match for user "early".',
          },
          { user: 'never', sqlstate: '28P01' },
        ]);
        expect(JSON.stringify(log())).not.toContain('wrong"');
      },
      { limits: { loginTimeoutMs: 3000 } },
    );
  });

  it('hold nothing while they wait: others start up', async () => {
    await withProxy(
      { failures },
      async ({ port }) => {
        expect(await login(port, 'app', 'secret')).toBe('ok');
        for (let i = 0; i < 2; i++) expect(await login(port, 'early', 'wrong')).toBe(wrong('early'));
        let over = false;
        const delayed = Promise.all([1, 2, 3].map(() => login(port, 'early', 'wrong'))).finally(() => {
          over = true;
        });
        expect(await login(port, 'app', 'secret')).toBe('ok');
        expect(over).toBe(false);
        for (const outcome of await delayed) expect(outcome).toMatch(/^57014/);
      },
      { limits: { loginTimeoutMs: 5000, maxStartups: 2 } },
    );
  });

  it('are no faster in a volley', async () => {
    await withProxy(
      { failures },
      async ({ port }) => {
        const outcomes = await Promise.all(Array.from({ length: 20 }, () => login(port, 'early', 'guess')));
        expect(outcomes.filter((o) => o === wrong('early'))).toHaveLength(2);
        expect(outcomes.filter((o) => o.startsWith('57014'))).toHaveLength(18);
      },
      { limits: { loginTimeoutMs: 5000 } },
    );
  });

  it('are forgiven by a right password', async () => {
    await withProxy({ failures }, async ({ port }) => {
      for (let i = 0; i < 4; i++) {
        expect(await login(port, 'early', 'wrong')).toBe(wrong('early'));
        expect(await login(port, 'early', 'secret')).toBe('ok');
      }
    });
  });
});

const tools = findTools();

describe.skipIf(tools === null)('psql', () => {
  const psql = async (port: number, user: string, password: string) =>
    run(
      join(tools?.binDir ?? '', 'psql'),
      ['-XAtw', '-h', '127.0.0.1', '-p', String(port), '-U', user, 'shop', '-c', 'SELECT current_user'],
      {
        env: { PGPASSWORD: password },
      },
    );

  it('logs in, and is told the same as by PostgreSQL when it cannot', async () => {
    expect((await psql(s.proxy.port, 'app', 'secret')).stdout).toBe('app\n');
    for (const [user, password] of [
      ['app', 'wrong'],
      ['app', ''],
      ['ghost', 'x'],
      ['nologin', 'secret'],
    ] as const) {
      const [proxied, direct] = [
        await psql(s.proxy.port, user, password),
        await psql(s.clusters[0].port, user, password),
      ];
      expect(proxied.stderr.replaceAll(String(s.proxy.port), 'PORT')).toBe(
        direct.stderr.replaceAll(String(s.clusters[0].port), 'PORT'),
      );
      expect(proxied.code).toBe(direct.code);
    }
  });
});
