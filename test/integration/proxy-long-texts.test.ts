import { afterAll, beforeAll, expect, it } from 'vitest';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import { buildCli } from '../cli/run-cli.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';

let s: Sharded;

// Long texts are read by a thread that runs what is built.
beforeAll(async () => {
  await buildCli();
  s = await Sharded.start({ splitAt: 100 });
}, 300_000);
afterAll(() => s.stop());

function login(): Promise<RawPeer> {
  return RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
}

function types(messages: readonly RawMessage[]): string {
  return messages.map((m) => m.type).join('');
}

/** INSERT of so many tenants from this one on. */
function rows(first: number, count: number): string {
  const values = Array.from({ length: count }, (_, i) => `(${first + i}, 'the name of tenant ${first + i}')`);
  return `INSERT INTO tenants VALUES ${values.join(', ')}`;
}

async function count(shard: 0 | 1, from: number, below: number): Promise<number> {
  const found = await s.onShard<{ n: number }>(
    shard,
    `SELECT count(*)::int AS n FROM tenants WHERE tenant_id >= ${from} AND tenant_id < ${below}`,
  );
  return found[0]?.n ?? -1;
}

it('a long INSERT runs where its rows belong, in both protocols', async () => {
  const peer = await login();
  peer.send(encodeQuery(rows(1_000_000, 9_000)));
  expect(types(await peer.until('Z'))).toBe('CZ');
  expect(await count(1, 1_000_000, 2_000_000)).toBe(9_000);
  const bind = encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] });
  peer.send(encodeParse('', rows(2_000_000, 9_000)), bind, encodeExecute(''), SYNC);
  expect(types(await peer.until('Z'))).toBe('12CZ');
  expect(await count(1, 2_000_000, 3_000_000)).toBe(9_000);
  peer.end();
});

it('a long INSERT of two shards is refused, and what is sent behind it comes after it', async () => {
  const peer = await login();
  peer.send(encodeQuery(rows(-4_000, 8_000)), encodeQuery('SELECT 1'));
  expect(types(await peer.until('Z'))).toBe('EZ');
  expect(types(await peer.until('Z'))).toBe('TDCZ');
  expect(await count(0, -4_000, 0)).toBe(0);
  peer.end();
});

it('a client that goes while its text is read leaves nothing behind', async () => {
  const peer = await login();
  const before = [...s.proxy.clients].length;
  peer.send(encodeQuery(rows(5_000_000, 9_000)));
  peer.socket.destroy();
  const other = await login();
  other.send(encodeQuery(rows(6_000_000, 9_000)));
  expect(types(await other.until('Z'))).toBe('CZ');
  // Texts are read in their order: the first one has been read too.
  expect([...s.proxy.clients].length).toBe(before);
  expect(await count(1, 6_000_000, 7_000_000)).toBe(9_000);
  other.end();
});
