import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Session } from '../../proxy/session/session.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, FLUSH, SYNC } from '../../proxy/wire/frontend.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
const MIB = 1024 * 1024;
/** Less than most messages here. */
const BUDGET = 8 * MIB;
const LARGE = 20 * MIB;

// One server connection a shard: whoever comes next gets the one that was used before, if it is still there.
beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, poolSize: 1, limits: { largeMessageBytes: BUDGET } });
});
afterAll(() => s.stop());

function login(): Promise<RawPeer> {
  return RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
}

const types = (messages: readonly RawMessage[]) => messages.map((m) => m.type).join('');
const length = 'SELECT length($1::text)';

async function query(peer: RawPeer, sql: string): Promise<RawMessage[]> {
  peer.send(encodeQuery(sql));
  return peer.until('Z');
}

/** The only value of the first row. */
function value(messages: readonly RawMessage[]): string {
  return (messages.find((m) => m.type === 'D') as RawMessage).body.subarray(6).toString();
}

function errorOf(messages: readonly RawMessage[]) {
  return decodeErrorFields((messages.find((m) => m.type === 'E') as RawMessage).frame);
}

function bind(statement: string, ...values: (Buffer | string)[]): Buffer {
  return encodeBind({
    portal: '',
    statement,
    formats: [],
    values: values.map((v) => Buffer.from(v)),
    resultFormats: [],
  });
}

function large(bytes = LARGE): Buffer {
  return Buffer.alloc(bytes, 'x');
}

/** octet_length(bytea) by the fast path. */
function functionCall(argument: Buffer): Buffer {
  const head = Buffer.alloc(19);
  head[0] = 0x46;
  head.writeInt32BE(4 + 14 + argument.length + 2, 1);
  head.writeInt32BE(720, 5); // octet_length(bytea)
  head.writeInt16BE(1, 9);
  head.writeInt16BE(1, 11);
  head.writeInt16BE(1, 13);
  head.writeInt32BE(argument.length, 15);
  return Buffer.concat([head, argument, Buffer.from([0, 1])]);
}

function lastSession(): Session {
  return [...s.proxy.clients].map((client) => client.session).at(-1) as Session;
}

/** Sends part of a message, and resolves when the proxy has read it. */
async function sendPart(peer: RawPeer, session: Session, part: Buffer): Promise<void> {
  const before = session.activity.received;
  peer.send(part);
  await waitFor(() => session.activity.received === before + part.length, { what: 'the proxy to read a part' });
}

describe('on one shard', () => {
  it('a Bind larger than all that may be held goes through, and what is pipelined behind it', async () => {
    const peer = await login();
    peer.send(encodeParse('', length), bind('', large()), encodeExecute(''), SYNC, encodeQuery('SELECT 7'));
    const messages = await peer.until('Z');
    expect([types(messages), value(messages)]).toEqual(['12DCZ', String(LARGE)]);
    expect(value(await peer.until('Z'))).toBe('7');
    peer.end();
  });

  it('it is sent under another name of its statement, with a key behind the large value', async () => {
    const peer = await login();
    await query(peer, `INSERT INTO tenants VALUES (1, 't1')`);
    peer.send(encodeParse('rename', 'UPDATE tenants SET name = $1 WHERE tenant_id = $2'));
    for (let i = 0; i < 2; i++) {
      peer.send(bind('rename', large(), '1'), encodeExecute(''), SYNC);
      expect(types(await peer.until('Z'))).toBe(i === 0 ? '12CZ' : '2CZ');
    }
    expect(value(await query(peer, 'SELECT length(name) FROM tenants WHERE tenant_id = 1'))).toBe(String(LARGE));
    peer.end();
  });

  it('it may come in pieces of any size', async () => {
    const peer = await login();
    const session = lastSession();
    const message = bind('', large(2 * MIB));
    let at = 0;
    await sendPart(peer, session, encodeParse('', length));
    for (const size of [1, 4, 3, 60, 30_000, 40_000, MIB]) {
      await sendPart(peer, session, message.subarray(at, at + size));
      at += size;
    }
    peer.send(message.subarray(at), encodeExecute(''), SYNC);
    expect(value(await peer.until('Z'))).toBe(String(2 * MIB));
    peer.end();
  });

  it('nothing of it is held', async () => {
    const peer = await login();
    const session = lastSession();
    const message = bind('', large());
    await sendPart(peer, session, Buffer.concat([encodeParse('', length), message.subarray(0, LARGE / 2)]));
    expect(s.proxy.largeMessages.used).toBe(0);
    peer.send(message.subarray(LARGE / 2), encodeExecute(''), SYNC);
    expect(types(await peer.until('Z'))).toBe('12DCZ');
    peer.end();
  });

  it('a client that goes away in its middle takes the server connection with it, and its transaction', async () => {
    for (const begin of ['BEGIN', 'SELECT 1']) {
      const peer = await login();
      const session = lastSession();
      const pid = value(await query(peer, 'SELECT pg_backend_pid()'));
      await query(peer, begin);
      if (begin === 'BEGIN') await query(peer, `INSERT INTO tenants VALUES (2, 't2')`);
      const message = bind('', large());
      await sendPart(peer, session, Buffer.concat([encodeParse('', length), message.subarray(0, LARGE / 2)]));
      peer.destroy();
      const next = await login();
      expect(value(await query(next, 'SELECT pg_backend_pid()'))).not.toBe(pid);
      expect(value(await query(next, 'SELECT count(*) FROM tenants WHERE tenant_id = 2'))).toBe('0');
      next.end();
    }
  });

  it('a function call goes through, and its half ends with its client', async () => {
    const peer = await login();
    const session = lastSession();
    peer.send(functionCall(large()), encodeQuery('SELECT pg_backend_pid()'));
    const messages = await peer.until('Z');
    expect(types(messages)).toBe('VZ');
    expect(messages[0]?.body.readInt32BE(4)).toBe(LARGE);
    const pid = value(await peer.until('Z'));
    await sendPart(peer, session, functionCall(large()).subarray(0, LARGE / 2));
    expect(s.proxy.largeMessages.used).toBe(0);
    peer.destroy();
    const next = await login();
    expect(value(await query(next, 'SELECT pg_backend_pid()'))).not.toBe(pid);
    next.end();
  });

  it('one for a statement that there is not is dropped', async () => {
    const peer = await login();
    peer.send(bind('nobody', large()), encodeExecute(''), SYNC);
    const messages = await peer.until('Z');
    expect([types(messages), errorOf(messages).sqlstate]).toEqual(['EZ', '26000']);
    expect(value(await query(peer, 'SELECT 1'))).toBe('1');
    peer.end();
  });

  it('one behind an error is skipped', async () => {
    const peer = await login();
    peer.send(encodeParse('', 'SELECT 1 FROM nowhere'), FLUSH);
    expect(types(await peer.until('E'))).toBe('E');
    peer.send(bind('', large()), encodeExecute(''), SYNC);
    expect(types(await peer.until('Z'))).toBe('Z');
    // The same, before the proxy knows of the error.
    peer.send(encodeParse('', 'SELECT 1 FROM nowhere'), bind('', large()), encodeExecute(''), SYNC);
    expect(types(await peer.until('Z'))).toBe('EZ');
    expect(value(await query(peer, 'SELECT 1'))).toBe('1');
    peer.end();
  });

  it('its client is not read from while the server does not read', async () => {
    const peer = await login();
    const session = lastSession();
    const pid = Number(value(await query(peer, 'SELECT pg_backend_pid()')));
    // The kernel holds up to what tcp_wmem and tcp_rmem allow of it, on either side of the proxy.
    const bytes = 192 * MIB;
    process.kill(pid, 'SIGSTOP');
    try {
      peer.send(encodeParse('', length), bind('', large(bytes)), encodeExecute(''), SYNC);
      let before = -1;
      await waitFor(
        async () => {
          const { received } = session.activity;
          const still = received === before && received > MIB;
          before = received;
          await s.onShard(0, 'SELECT 1');
          return still;
        },
        { what: 'the proxy to stop reading' },
      );
      expect(session.activity.received).toBeLessThan(bytes / 2);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    expect(value(await peer.until('Z'))).toBe(String(bytes));
    peer.end();
  });
});

describe('on several shards', () => {
  beforeAll(async () => {
    await s.flipTo(100);
    await s.reloaded();
  });

  it('a Bind goes to its shard when the key comes before the large value', async () => {
    const peer = await login();
    for (const [shard, key] of [
      [0, 5],
      [1, 150],
    ] as const) {
      peer.send(encodeParse('', 'INSERT INTO tenants VALUES ($1, $2)'));
      peer.send(bind('', String(key), large()), encodeExecute(''), SYNC);
      expect(types(await peer.until('Z'))).toBe('12CZ');
      const rows = await s.onShard(shard, `SELECT length(name) FROM tenants WHERE tenant_id = ${key}`);
      expect(rows).toEqual([{ length: LARGE }]);
    }
    expect(s.proxy.largeMessages.used).toBe(0);
    peer.end();
  });

  it('it is held when the key comes behind, and refused when it is too large for that', async () => {
    const peer = await login();
    const session = lastSession();
    await query(peer, `INSERT INTO tenants VALUES (160, 't160')`);
    const message = bind('', large(6 * MIB), '160');
    const parse = encodeParse('', 'UPDATE tenants SET name = $1 WHERE tenant_id = $2');
    await sendPart(peer, session, Buffer.concat([parse, message.subarray(0, MIB)]));
    expect(s.proxy.largeMessages.used).toBe(message.length);
    peer.send(message.subarray(MIB), encodeExecute(''), SYNC);
    expect(types(await peer.until('Z'))).toBe('12CZ');
    expect(await s.onShard(1, 'SELECT length(name) FROM tenants WHERE tenant_id = 160')).toEqual([{ length: 6 * MIB }]);
    await waitFor(() => s.proxy.largeMessages.used === 0, { what: 'the room' });
    peer.send(parse, bind('', large(), '160'), encodeExecute(''), SYNC);
    const messages = await peer.until('Z');
    expect([types(messages), errorOf(messages).sqlstate]).toEqual(['1EZ', '54000']);
    expect(errorOf(messages).hint).toContain('proxy.limits.largeMessageBytes');
    expect(value(await query(peer, 'SELECT 1'))).toBe('1');
    peer.end();
  });

  it('a read with the key behind the large value is held too', async () => {
    const peer = await login();
    await query(peer, `INSERT INTO tenants VALUES (170, 't170')`);
    peer.send(encodeParse('', 'SELECT tenant_id FROM tenants WHERE name <> $1 AND tenant_id = $2'));
    peer.send(bind('', large(2 * MIB), '170'), encodeExecute(''), SYNC);
    const messages = await peer.until('Z');
    expect([types(messages), value(messages)]).toEqual(['12DCZ', '170']);
    peer.end();
  });

  it('a function call is refused, and its rest dropped', async () => {
    const peer = await login();
    peer.send(functionCall(large()), encodeQuery('SELECT 1'));
    expect(errorOf(await peer.until('Z')).sqlstate).toBe('0A000');
    expect(value(await peer.until('Z'))).toBe('1');
    expect(s.proxy.largeMessages.used).toBe(0);
    peer.end();
  });
});
