import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { encodeQuery } from '../../proxy/wire/frontend.js';
import { RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// All that comes from servers and clients is read into the same memory, which tests have overwritten after each read (FORESHARD_POISON_MEMORY in vitest.config.ts).
let s: Sharded;
const POOL = { size: 8, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 10_000 };

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 8 });
  await s.onShard(0, `INSERT INTO tenants SELECT n, 'tenant ' || n FROM generate_series(0, 99) n`);
  await s.onShard(1, `INSERT INTO tenants SELECT n, 'tenant ' || n FROM generate_series(100, 199) n`);
});
beforeEach(() => s.proxy.reload({ pool: { ...POOL, lanes: 'off' } }));
afterAll(() => s.stop());

const peers: RawPeer[] = [];
/** One that has failed in the middle of something is in nobody's way. */
afterEach(() => {
  for (const { socket } of peers.splice(0)) socket.destroy();
});

async function login(): Promise<RawPeer> {
  const peer = await RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
  peers.push(peer);
  return peer;
}

/** The values of one column. */
async function column(peer: RawPeer, sql: string): Promise<string[]> {
  peer.send(encodeQuery(sql));
  return rows(peer);
}

async function rows(peer: RawPeer): Promise<string[]> {
  const messages = await peer.until('Z');
  expect(messages.filter((m) => m.type === 'E').map((m) => m.body.toString())).toEqual([]);
  return messages.filter((m) => m.type === 'D').map((m) => m.body.subarray(6).toString());
}

/** Longer than what a server sends in one go. */
const long = (word: string, times: number) => word.repeat(times);

describe('what a server has sent is what the client gets', () => {
  it('when clients read it late, and others are answered meanwhile', async () => {
    const slow = await Promise.all(Array.from({ length: 4 }, () => login()));
    for (const [i, peer] of slow.entries()) {
      peer.socket.pause();
      peer.send(encodeQuery(`SELECT n || repeat('-${i}-', 500) FROM generate_series(1, 10000) n`));
    }
    const clogged = () => [...s.proxy.clients].filter(({ session }) => session.backends.length > 0).length;
    await waitFor(() => clogged() === slow.length, { what: 'the answers to be under way' });
    const other = await login();
    for (let i = 0; i < 200; i++)
      expect(await column(other, `SELECT repeat('${i}', 3000)`)).toEqual([long(String(i), 3000)]);
    for (const [i, peer] of slow.entries()) {
      peer.socket.resume();
      const got = await rows(peer);
      expect(got.length).toBe(10_000);
      expect(got.every((value, n) => value === `${n + 1}${long(`-${i}-`, 500)}`)).toBe(true);
    }
    for (const peer of [...slow, other]) peer.end();
  });

  it('when a write is answered in pieces, and told once it is done', async () => {
    const peer = await login();
    for (let i = 0; i < 20; i++) {
      const returned = await column(
        peer,
        `UPDATE tenants SET name = 'n${i}' WHERE tenant_id = ${i} RETURNING repeat(name || '.', 10000)`,
      );
      expect(returned).toEqual([long(`n${i}.`, 10_000)]);
    }
    peer.end();
  });

  it('when reads in lanes are answered in pieces', async () => {
    await s.proxy.reload({ pool: { ...POOL, lanes: 'auto', lanesMax: 1, laneLateMs: 60_000 } });
    const peers = await Promise.all(Array.from({ length: 8 }, () => login()));
    const reads = () => [...s.proxy.pools.all].reduce((sum, p) => sum + s.proxy.pools.lanesOf(p).totals.reads, 0);
    for (let i = 0; reads() < 100; i++) {
      const got = await Promise.all(peers.map((peer, p) => column(peer, `SELECT repeat('${p}:${i}|', 2500)`)));
      expect(got).toEqual(peers.map((_, p) => [long(`${p}:${i}|`, 2500)]));
    }
    for (const peer of peers) peer.end();
  });

  it('when several shards answer at the same time', async () => {
    const peer = await login();
    const got = await column(peer, `SELECT tenant_id || ':' || repeat('*', 3000) FROM tenants WHERE tenant_id < 200`);
    const ids = got.map((value) => Number(value.split(':')[0])).sort((a, b) => a - b);
    expect(ids).toEqual(Array.from({ length: 200 }, (_, n) => n));
    expect(got.every((value) => value.endsWith(`:${long('*', 3000)}`))).toBe(true);
    peer.end();
  });
});

describe('what a client has sent is what the server gets', () => {
  it('when it has to wait for a connection', async () => {
    const holders = await Promise.all(Array.from({ length: POOL.size }, () => login()));
    // A login takes a connection, too.
    const waiting = await Promise.all(Array.from({ length: 4 }, () => login()));
    for (const [i, peer] of holders.entries()) {
      await column(peer, 'BEGIN');
      await column(peer, `UPDATE tenants SET name = 'held' WHERE tenant_id = ${i}`);
    }
    const answers = waiting.map((peer, i) => column(peer, `SELECT 'waited ${i}' FROM tenants WHERE tenant_id = 1`));
    const queued = () => [...s.proxy.pools.all].reduce((sum, pool) => sum + pool.counts.waiting, 0);
    await waitFor(() => queued() === waiting.length, { what: 'all of them to wait' });
    for (const peer of holders) await column(peer, 'ROLLBACK');
    expect(await Promise.all(answers)).toEqual(waiting.map((_, i) => [`waited ${i}`]));
    for (const peer of [...holders, ...waiting]) peer.end();
  });

  it('when it comes in pieces, others in between', async () => {
    const [peer, other] = [await login(), await login()];
    const query = encodeQuery(`SELECT 'whole', '${long('x', 100)}'`);
    await waitFor(() => s.proxy.clients.size === 2, { what: 'those of other tests to be gone' });
    const received = () => [...s.proxy.clients].reduce((sum, { session }) => sum + session.activity.received, 0);
    for (const cut of [1, 4, 5, 20, query.length - 1]) {
      const before = received();
      peer.send(query.subarray(0, cut));
      await waitFor(() => received() === before + cut, { what: 'the first piece to be read' });
      expect(await column(other, `SELECT 'between'`)).toEqual(['between']);
      peer.send(query.subarray(cut));
      const messages = await peer.until('Z');
      expect(messages.map((m) => m.type).join('')).toBe('TDCZ');
      expect(String(messages[1]?.body)).toContain(long('x', 100));
    }
    for (const one of [peer, other]) one.end();
  });

  it('when much of it comes at once, and is looked at one by one', async () => {
    const peer = await login();
    const words = Array.from({ length: 3000 }, (_, i) => `word ${i} ${long('-', i % 60)}`);
    peer.send(...words.map((word) => encodeQuery(`SELECT '${word}'`)));
    for (const word of words) expect(await rows(peer)).toEqual([word]);
    peer.end();
  });
});
