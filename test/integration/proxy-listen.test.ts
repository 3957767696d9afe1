import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { decodeNotification } from '../../proxy/wire/backend.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import { RawPeer } from '../support/raw-peer.js';
import { hear, type Line, play, say } from '../support/scene.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const TRIGGER = `
CREATE OR REPLACE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('changes', NEW.name); RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER tell AFTER INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION tell();`;

const peers: RawPeer[] = [];

async function login(...of: Parameters<typeof RawPeer.login>): Promise<RawPeer> {
  const peer = await RawPeer.login(...of);
  peers.push(peer);
  return peer;
}

afterEach(() => {
  for (const peer of peers.splice(0)) peer.destroy();
});

/** Server processes that listen, which no connection of a pool may. */
async function poolListens(s: Sharded): Promise<number> {
  const c = await s.connect();
  const { rows } = await c.query('SELECT count(*)::int AS n FROM pg_listening_channels()');
  await c.end();
  return (rows[0] as { n: number }).n;
}

const extended = (who: string, sql: string, ...values: string[]): Line => ({
  who,
  until: 'Z',
  send: [
    encodeParse('', sql),
    encodeBind({
      portal: '',
      statement: '',
      formats: [],
      values: values.map((v) => Buffer.from(v)),
      resultFormats: [],
    }),
    encodeExecute(''),
    SYNC,
  ],
});

type Scene = readonly [name: string, lines: readonly Line[], connections?: number];
const ALL: readonly Scene[] = [
  ['a client hears another', [say('a', 'LISTEN x'), say('b', `NOTIFY x, 'one'`), hear('a', 'A')]],
  ['a client hears itself before it is told that the statement is done', [say('a', 'LISTEN x', `NOTIFY x, 'mine'`)]],
  ['several in one Query', [say('a', `LISTEN x; NOTIFY x, '1'; SELECT 1; NOTIFY x, '2'`)]],
  ['LISTEN and NOTIFY in one transaction', [say('a', 'BEGIN', `NOTIFY x, 'a'`, 'LISTEN x', `NOTIFY x, 'b'`, 'COMMIT')]],
  [
    'duplicates of a transaction are one',
    [
      say('a', 'LISTEN x'),
      say('b', 'BEGIN', `NOTIFY x, '1'`, `NOTIFY x, '1'`, `NOTIFY x, '2'`, `NOTIFY x, '1'`, 'COMMIT'),
      hear('a', 'AA'),
      say('a', 'SELECT 1'),
    ],
  ],
  [
    'ROLLBACK undoes LISTEN, UNLISTEN and NOTIFY',
    [
      say('a', 'BEGIN', 'LISTEN x', 'ROLLBACK'),
      say('b', `NOTIFY x, 'unheard'`),
      say('a', 'SELECT 1', 'LISTEN x', 'BEGIN', 'UNLISTEN x', `NOTIFY x, 'undone'`, 'ROLLBACK'),
      say('b', `NOTIFY x, 'heard'`),
      say('a', 'SELECT 2'),
    ],
  ],
  [
    'ROLLBACK TO SAVEPOINT undoes LISTEN',
    [
      say('a', 'BEGIN', 'LISTEN x', 'SAVEPOINT s', 'LISTEN y', 'UNLISTEN x', 'ROLLBACK TO s', 'LISTEN z', 'COMMIT'),
      say('b', `NOTIFY x, '1'`, `NOTIFY y, '2'`, `NOTIFY z, '3'`),
      say('a', 'SELECT 1'),
    ],
  ],
  [
    'RELEASE keeps it',
    [
      say('a', 'BEGIN', 'SAVEPOINT s', 'LISTEN x', 'RELEASE s', 'COMMIT'),
      say('b', `NOTIFY x, '1'`),
      say('a', 'SELECT 1'),
    ],
  ],
  [
    'an error undoes the LISTEN of the same Query',
    [say('a', 'LISTEN x; SELECT 1/0'), say('b', 'NOTIFY x'), say('a', 'SELECT 1')],
  ],
  ['LISTEN in a failed transaction', [say('a', 'BEGIN', 'SELECT 1/0', 'LISTEN x', 'NOTIFY x', 'UNLISTEN x', 'COMMIT')]],
  [
    'COMMIT in the middle of a Query',
    [
      say('a', `BEGIN; LISTEN x; COMMIT; NOTIFY x, '1'; SELECT 1/0`),
      say('a', `BEGIN; LISTEN y; COMMIT; SELECT 1; NOTIFY y, '2'`),
      say('b', `NOTIFY x, '3'`),
      say('a', 'SELECT 1'),
    ],
  ],
  [
    'nothing is heard inside a transaction, everything at its end',
    [
      say('a', 'LISTEN x', 'BEGIN', 'SELECT 1'),
      say('b', `NOTIFY x, '1'`, `NOTIFY x, '2'`),
      say('a', 'SELECT 2', 'SAVEPOINT s', 'COMMIT'),
      say('a', 'BEGIN', 'SELECT 1/0'),
      say('b', `NOTIFY x, '3'`),
      say('a', 'ROLLBACK'),
    ],
    2,
  ],
  [
    'UNLISTEN, UNLISTEN * and DISCARD ALL',
    [
      say('a', 'LISTEN x', 'LISTEN y', 'LISTEN x', 'UNLISTEN x'),
      say('b', 'NOTIFY x', 'NOTIFY y'),
      say('a', 'SELECT 1', 'UNLISTEN *'),
      say('b', 'NOTIFY y'),
      say('a', 'SELECT 1', 'LISTEN z', 'DISCARD ALL'),
      say('b', 'NOTIFY z'),
      say('a', 'SELECT 1', 'UNLISTEN nothing'),
    ],
  ],
  [
    'the extended protocol',
    [
      extended('a', 'LISTEN x'),
      extended('b', 'SELECT pg_notify($1, $2)', 'x', 'bound'),
      extended('a', 'SELECT 1'),
      extended('a', `NOTIFY x, 'own'`),
      extended('a', 'SELECT pg_notify($1, $2)', 'x', 'own too'),
      extended('a', 'UNLISTEN x'),
      extended('b', 'NOTIFY x'),
      extended('a', 'SELECT 1'),
    ],
  ],
  [
    'names and payloads to the byte',
    [
      say('a', 'LISTEN "Ünïcode ""quoted"" 🐘"', 'LISTEN UPPER', `LISTEN ${'n'.repeat(80)}`),
      say(
        'b',
        `NOTIFY "Ünïcode ""quoted"" 🐘", 'pàyload 🐘'`,
        `SELECT pg_notify('upper', E'tab\\tnewline\\n')`,
        `SELECT pg_notify('${'n'.repeat(63)}', '${'p'.repeat(7999)}')`,
      ),
      say('a', 'SELECT 1'),
      say('b', `SELECT pg_notify('${'n'.repeat(64)}', '')`, `SELECT pg_notify('x', '${'p'.repeat(8000)}')`),
      say('b', 'NOTIFY ""', `SELECT pg_notify('', 'x')`, 'SELECT pg_notify(NULL, NULL)'),
    ],
  ],
  [
    'pg_listening_channels',
    [
      say('a', 'SELECT pg_listening_channels()'),
      say('a', 'LISTEN second', 'LISTEN first', 'SELECT * FROM pg_listening_channels()'),
      say('b', 'SELECT * FROM pg_listening_channels()'),
      say('a', 'BEGIN', 'SELECT * FROM pg_listening_channels()', 'COMMIT'),
      say('a', 'UNLISTEN second', 'SELECT * FROM pg_listening_channels()', 'UNLISTEN *'),
      say('a', 'SELECT * FROM pg_listening_channels()'),
    ],
  ],
  [
    'an empty query and a transaction that does nothing',
    [
      say('a', 'LISTEN x'),
      say('b', `NOTIFY x, '1'`),
      say('a', ''),
      say('b', `NOTIFY x, '2'`),
      say('a', 'BEGIN', 'COMMIT', 'SELECT 1'),
    ],
  ],
  [
    'notifications of a trigger',
    [
      say('a', 'LISTEN changes'),
      say('b', `INSERT INTO tenants VALUES (7, 'seven')`),
      say(
        'a',
        'SELECT 1',
        `INSERT INTO tenants VALUES (8, 'eight')`,
        'BEGIN',
        `INSERT INTO tenants VALUES (9, 'nine')`,
      ),
      say('a', 'COMMIT'),
    ],
  ],
  [
    'many clients, each with its own id',
    [
      say('a', 'LISTEN x'),
      say('b', 'LISTEN x', `NOTIFY x, 'b'`),
      say('a', `NOTIFY x, 'a'`),
      say('b', 'SELECT 1'),
      say('c', `NOTIFY x, 'c'`),
      say('a', 'SELECT 1'),
      say('b', 'SELECT 1'),
    ],
  ],
];

const SCENES = ALL.map(([name, lines, connections = 1]) => ({ name, lines, connections }));

describe.each([2, 1])('pools of %i, all data on one shard', (poolSize) => {
  let s: Sharded;
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, poolSize });
    await s.onShard(0, TRIGGER);
  });
  afterAll(() => s.stop());

  it.each(SCENES.filter(({ connections }) => poolSize >= connections))('$name', async ({ lines }) => {
    await s.onShard(0, 'DELETE FROM tenants');
    const plain = await play(s.clusters[0].port, lines);
    await s.onShard(0, 'DELETE FROM tenants');
    expect(await play(s.proxy.port, lines)).toEqual(plain);
    expect(await poolListens(s)).toBe(0);
  });

  it('speaks the client’s encoding, also after it has changed', async () => {
    const peer = await login(s.proxy.port, {
      user: 'app',
      password: 'secret',
      database: 'shop',
      parameters: { client_encoding: 'LATIN1' },
    });
    const other = await s.connect();
    const latin = (sql: string) => encodeQuery(Buffer.from(sql, 'latin1'));
    peer.send(latin('LISTEN x'));
    await peer.until('Z');
    await other.query(`NOTIFY x, 'é'`);
    expect((await peer.expect('A')).body.toString('latin1').slice(4)).toBe('x\0é\0');
    peer.send(latin(`SET client_encoding TO UTF8`));
    await peer.until('Z');
    await other.query(`NOTIFY x, 'ü'`);
    expect((await peer.expect('A')).body.toString('utf8', 4)).toBe('x\0ü\0');
    peer.end();
    await other.end();
  });

  it('listens by itself to a name that the proxy cannot read', async () => {
    const peer = await login(s.proxy.port, {
      user: 'app',
      password: 'secret',
      database: 'shop',
      parameters: { client_encoding: 'LATIN1' },
    });
    const [query, notify] = ['LISTEN "ä"', `SELECT pg_notify('ä', 'own')`].map((q) =>
      encodeQuery(Buffer.from(q, 'latin1')),
    ) as [Buffer, Buffer];
    peer.send(query);
    await peer.until('Z');
    peer.send(notify);
    expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('TDCAZ');
    peer.end();
  });

  it('ends a session whose listener is lost, when it is between transactions', async () => {
    const quiet = await login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    quiet.send(encodeQuery('LISTEN x'));
    await quiet.until('Z');
    const busy = await login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    busy.send(encodeQuery('LISTEN x'));
    await busy.until('Z');
    busy.send(encodeQuery('BEGIN'));
    await busy.until('Z');
    await waitFor(() => [...s.proxy.clients].length === 2, { what: 'the others to have gone' });
    await s.onShard(
      0,
      `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'foreshard listener'`,
    );
    expect((await quiet.expectError()).sqlstate).toBe('08006');
    await quiet.expectClose();
    busy.send(encodeQuery('SELECT 1'));
    expect((await busy.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    busy.send(encodeQuery('COMMIT'));
    expect((await busy.until('Z')).map((m) => m.type).join('')).toBe('CZ');
    expect((await busy.expectError()).sqlstate).toBe('08006');
    await busy.expectClose();
    // The next one is heard again.
    const c = await s.connect();
    const heard: string[] = [];
    c.on('notification', (n) => heard.push(n.payload ?? ''));
    await c.query('LISTEN x');
    await c.query(`NOTIFY x, 'back'`);
    expect(heard).toEqual(['back']);
    await c.end();
  });

  it('ends a session for which too much waits, and no other', async () => {
    const slow = await login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    slow.send(encodeQuery('LISTEN x'));
    await slow.until('Z');
    slow.socket.pause();
    const c = await s.connect();
    let heard = 0;
    c.on('notification', () => {
      heard += 1;
    });
    await c.query('LISTEN x');
    const many = `SELECT count(pg_notify('x', $1 || g || repeat('x', 7900))) FROM generate_series(1, 500) g`;
    let rounds = 0;
    let gone = false;
    while (!gone && rounds < 20) {
      await c.query(many, [`${rounds} `]);
      rounds += 1;
      gone = [...s.proxy.clients].length === 1;
    }
    expect(gone).toBe(true);
    expect(heard).toBe(rounds * 500);
    slow.destroy();
    await c.end();
  });

  it('forgets a client that has gone', async () => {
    const peer = await login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    peer.send(encodeQuery('LISTEN gone'));
    await peer.until('Z');
    peer.destroy();
    await waitFor(() => [...s.proxy.clients].length === 0, { what: 'the end of the session' });
    const c = await s.connect();
    await c.query('LISTEN other');
    await c.query('NOTIFY gone');
    expect(await poolListens(s)).toBe(0);
    await c.end();
  });
});

describe('data on two shards', () => {
  let s: Sharded;
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: 100, poolSize: 2 });
    for (const shard of [0, 1] as const) await s.onShard(shard, TRIGGER);
  });
  afterAll(() => s.stop());

  it.each(SCENES)('$name', async ({ lines }) => {
    await s.onShard(0, 'DELETE FROM tenants');
    const plain = await play(s.clusters[0].port, lines);
    await s.onShard(0, 'DELETE FROM tenants');
    expect(await play(s.proxy.port, lines)).toEqual(plain);
    expect(await poolListens(s)).toBe(0);
  });

  it('hears triggers of every shard, its own before the statement is done', async () => {
    const peer = await login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    peer.send(encodeQuery('LISTEN changes'));
    await peer.until('Z');
    for (const id of [1, 150]) {
      peer.send(encodeQuery(`INSERT INTO tenants VALUES (${id}, 'mine ${id}')`));
      const heard = (await peer.until('Z')).filter((m) => m.type === 'A');
      expect(heard.map((m) => decodeNotification(m.frame).payload)).toEqual([`mine ${id}`]);
    }
    const c = await s.connect();
    for (const id of [2, 151]) await c.query(`INSERT INTO tenants VALUES ($1, $2)`, [id, `other ${id}`]);
    peer.send(encodeQuery('SELECT tenant_id FROM tenants'));
    const heard = (await peer.until('Z')).filter((m) => m.type === 'A');
    expect(heard.map((m) => decodeNotification(m.frame).payload).sort()).toEqual(['other 151', 'other 2']);
    await c.end();
    peer.end();
  });

  it('notifies where the transaction is', async () => {
    const c = await s.connect();
    const heard: string[] = [];
    c.on('notification', (n) => heard.push(n.payload ?? ''));
    await c.query('BEGIN');
    await c.query('LISTEN x');
    await c.query(`UPDATE tenants SET name = 'x' WHERE tenant_id = 150`);
    await c.query(`NOTIFY x, 'from there'`);
    await c.query('COMMIT');
    expect(heard).toEqual(['from there']);
    await c.end();
  });

  it('hears a shard that comes later', async () => {
    const one = await Sharded.start({ splitAt: null, poolSize: 1 });
    try {
      await one.onShard(1, TRIGGER);
      const c = new pg.Client({ connectionString: one.url });
      await c.connect();
      const heard: string[] = [];
      c.on('notification', (n) => heard.push(n.payload ?? ''));
      await c.query('LISTEN changes');
      await one.flipTo(100);
      await waitFor(
        async () => {
          await c.query(`INSERT INTO tenants VALUES (150, 'there') ON CONFLICT DO NOTHING`);
          return (await one.onShard(1, 'SELECT FROM tenants')).length === 1;
        },
        { what: 'the new epoch' },
      );
      await waitFor(() => heard.includes('there'), { what: 'the notification' });
      await c.end();
    } finally {
      await one.stop();
    }
  });
});
