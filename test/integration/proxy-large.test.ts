import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Session } from '../../proxy/session/session.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import { withClient } from '../support/client.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
const MIB = 1024 * 1024;
const BUDGET = 32 * MIB;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, limits: { largeMessageBytes: BUDGET } });
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 't1')`);
});
afterAll(() => s.stop());

function login(): Promise<RawPeer> {
  return RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
}

function types(messages: readonly RawMessage[]): string {
  return messages.map((m) => m.type).join('');
}

async function query(peer: RawPeer, sql: string): Promise<RawMessage[]> {
  peer.send(encodeQuery(sql));
  return peer.until('Z');
}

function bind(bytes: number): Buffer {
  const values = [Buffer.alloc(bytes, 'x')];
  return encodeBind({ portal: '', statement: 'len', formats: [], values, resultFormats: [] });
}

function sqlstate(messages: readonly RawMessage[]): string {
  return decodeErrorFields((messages.find((m) => m.type === 'E') as RawMessage).frame).sqlstate;
}

function sessions(): Session[] {
  return [...s.proxy.clients].map((client) => client.session);
}

describe('a message larger than all clients may have', () => {
  it('is refused by name of the limit, and the session goes on', async () => {
    const peer = await login();
    peer.send(encodeQuery(`SELECT '${'x'.repeat(BUDGET)}'`), encodeQuery('SELECT 1'));
    const error = decodeErrorFields((await peer.expect('E')).frame);
    expect(error).toMatchObject({ severity: 'ERROR', sqlstate: '54000' });
    expect(error.hint).toContain('proxy.limits.largeMessageBytes');
    await peer.expect('Z');
    expect(types(await peer.until('Z'))).toBe('TDCZ');
    peer.send(encodeParse('len', 'SELECT length($1::text)'), encodeParse('', `SELECT '${'x'.repeat(BUDGET)}'`), SYNC);
    expect(types(await peer.until('Z'))).toBe('1EZ');
    peer.send(encodeParse('len', 'SELECT length($1::text)'), bind(3), encodeExecute(''), SYNC);
    // The statement that was parsed before the error is there, as on PostgreSQL.
    expect(sqlstate(await peer.until('Z'))).toBe('42P05');
    expect(s.proxy.largeMessages.used).toBe(0);
    peer.end();
  });

  it('fails the transaction it is sent in', async () => {
    const peer = await login();
    await query(peer, 'BEGIN');
    const messages = await query(peer, `SELECT '${'x'.repeat(BUDGET)}'`);
    expect([sqlstate(messages), messages.at(-1)?.body.toString()]).toEqual(['54000', 'E']);
    expect(sqlstate(await query(peer, 'SELECT 1'))).toBe('25P02');
    peer.end();
  });
});

describe('large messages of several clients', () => {
  it('wait until there is room, while others go on', async () => {
    const text = `SELECT length('${'x'.repeat(20 * MIB)}'), count(*) FROM settings`;
    const [first, second, small] = [await login(), await login(), await login()];
    await withClient(s.clusters[0].url('shop'), async (c) => {
      await c.query('BEGIN; LOCK TABLE settings');
      first.send(encodeQuery(text));
      await waitFor(() => s.proxy.largeMessages.used > 20 * MIB, { what: 'the first message' });
      second.send(encodeQuery(text));
      await waitFor(() => s.proxy.largeMessages.waiting === 1, { what: 'the second message to wait' });
      expect(types(await query(small, 'SELECT 1'))).toBe('TDCZ');
    });
    expect(types(await first.until('Z'))).toBe('TDCZ');
    expect(types(await second.until('Z'))).toBe('TDCZ');
    expect(s.proxy.largeMessages.used).toBe(0);
    for (const peer of [first, second, small]) peer.end();
  });

  it('leave room behind when their client goes away', async () => {
    const text = `SELECT length('${'x'.repeat(20 * MIB)}'), count(*) FROM settings`;
    const [first, second] = [await login(), await login()];
    await withClient(s.clusters[0].url('shop'), async (c) => {
      await c.query('BEGIN; LOCK TABLE settings');
      first.send(encodeQuery(text));
      await waitFor(() => s.proxy.largeMessages.used > 20 * MIB, { what: 'the first message' });
      second.send(encodeQuery(text));
      await waitFor(() => s.proxy.largeMessages.waiting === 1, { what: 'the second message to wait' });
      second.destroy();
      first.destroy();
      await waitFor(() => s.proxy.largeMessages.used === 0 && s.proxy.largeMessages.waiting === 0, {
        what: 'the room',
      });
    });
  });

  it('pass in one batch, although they are more than the limit together', async () => {
    const peer = await login();
    const many = Array.from({ length: 8 }, () => [bind(9 * MIB), encodeExecute('')]).flat();
    peer.send(encodeParse('len', 'SELECT length($1::text)'), ...many, SYNC);
    expect(types(await peer.until('Z'))).toBe(`1${'2DC'.repeat(8)}Z`);
    await waitFor(() => s.proxy.largeMessages.used === 0, { what: 'the room' });
    peer.end();
  });
});

describe('a client that does not read', () => {
  it('is not read from, even when the proxy answers by itself', async () => {
    const peer = await login();
    const session = sessions().at(-1) as Session;
    const other = await login();
    peer.socket.pause();
    const count = 1_000_000;
    const total = count * encodeQuery('').length;
    peer.send(Buffer.concat(Array.from({ length: count }, () => encodeQuery(''))));
    let before = -1;
    await waitFor(
      async () => {
        const { received } = session.activity;
        const still = received === before && received > 0;
        before = received;
        for (let i = 0; i < 20; i++) await query(other, 'SELECT 1');
        return still;
      },
      { what: 'the proxy to stop reading' },
    );
    expect(session.activity.received).toBeLessThan(total);
    peer.destroy();
    other.end();
  });

  it('of a batch without Sync is not read from either, and gets all its answers when it reads', async () => {
    const peer = await login();
    const session = sessions().at(-1) as Session;
    peer.socket.pause();
    const row = [bind(1000), encodeExecute('')];
    const count = 20_000;
    const batch = Buffer.concat([
      encodeParse('len', 'SELECT repeat($1::text, 2)'),
      ...Array.from({ length: count }, () => row).flat(),
      SYNC,
    ]);
    peer.send(batch);
    const other = await login();
    let before = -1;
    await waitFor(
      async () => {
        const { received } = session.activity;
        const still = received === before && received > 0;
        before = received;
        for (let i = 0; i < 20; i++) await query(other, 'SELECT 1');
        return still;
      },
      { what: 'the proxy to stop reading' },
    );
    expect(session.activity.received).toBeLessThan(batch.length);
    peer.socket.resume();
    let rows = 0;
    for (let message = await peer.receive(); message.type !== 'Z'; message = await peer.receive())
      if (message.type === 'D') rows += 1;
    expect(rows).toBe(count);
    peer.end();
    other.end();
  });
});

describe('a text too long to be parsed', () => {
  it('runs while all data is on one shard, and is refused on several', async () => {
    const peer = await login();
    const sql = `SELECT length('${'x'.repeat(17 * MIB)}')`;
    const messages = await query(peer, sql);
    expect(types(messages)).toBe('TDCZ');
    expect(messages[1]?.body.subarray(6).toString()).toBe(String(17 * MIB));
    peer.end();
    await s.flipTo(100);
    await s.reloaded();
    const later = await login();
    expect(sqlstate(await query(later, sql))).toBe('0A000');
    expect(types(await query(later, 'SELECT 1'))).toBe('TDCZ');
    later.end();
  });
});
