import pg from 'pg';
import { expect } from 'vitest';
import { decodeParameterStatus, decodeRowDescription } from '../../proxy/wire/backend.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import {
  encodeBind,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  SYNC,
  TERMINATE,
} from '../../proxy/wire/frontend.js';
import { type RawMessage, RawPeer } from './raw-peer.js';
import { Sharded, type ShardedOptions } from './sharded.js';
import { waitFor } from './wait-for.js';

/**
 * Message types to wait for, in this order (`.`: the end of the connection), after what is sent in one packet. A star
 * instead: wait for nothing.
 */
type Step = readonly [until: string, ...send: Buffer[]];

export interface Conversation {
  readonly name: string;
  readonly steps: readonly Step[];
  /** Needs all data on one shard. */
  readonly sole?: true;
  /** Says the same in pieces of one byte, but too slowly to be worth it. */
  readonly large?: true;
  /** Start-up parameters besides application_name and TimeZone. */
  readonly startup?: Readonly<Record<string, string>>;
}

export const Q = encodeQuery;
export const P = (name: string, sql: string, oids: number[] = []) => encodeParse(name, sql, oids);
export const B = (portal: string, statement: string, ...values: (string | null)[]) =>
  encodeBind({
    portal,
    statement,
    formats: [],
    values: values.map((v) => (v === null ? null : Buffer.from(v))),
    resultFormats: [],
  });
export const DS = (name: string) => encodeDescribe('statement', name);
export const DP = (name: string) => encodeDescribe('portal', name);
export const E = encodeExecute;
export const CS = (name: string) => encodeClose('statement', name);
export const CP = (name: string) => encodeClose('portal', name);
export const S = SYNC;
export const H = FLUSH;

/** How what is sent to the proxy in one go is cut: each piece is sent in a turn of its own. */
type Cut = (bytes: Buffer) => Iterable<Buffer>;

export const whole: Cut = (bytes) => [bytes];

export function* bytewise(bytes: Buffer): Iterable<Buffer> {
  for (let at = 0; at < bytes.length; at++) yield bytes.subarray(at, at + 1);
}

interface Heard {
  readonly replies: readonly string[];
  readonly parameters: ReadonlyMap<string, string>;
}

/** Says the same to PostgreSQL and to the proxy in front of it, and compares every message that comes back, and the rows that are left. */
export class Oracle {
  readonly sharded: Sharded;
  /** The second shard has the tenants from 100 on. */
  #split = false;

  /** Superusers of the shards. */
  readonly #shards: readonly [pg.Client, pg.Client];

  private constructor(sharded: Sharded, shards: readonly [pg.Client, pg.Client]) {
    this.sharded = sharded;
    this.#shards = shards;
  }

  static async start(options: Partial<ShardedOptions> = {}): Promise<Oracle> {
    const sharded = await Sharded.start({ splitAt: null, ...options });
    const [a, b] = sharded.clusters;
    const shards = [new pg.Client(a.url('shop')), new pg.Client(b.url('shop'))] as const;
    await Promise.all(shards.map((client) => client.connect()));
    return new Oracle(sharded, shards);
  }

  async stop(): Promise<void> {
    await Promise.all(this.#shards.map((client) => client.end()));
    await this.sharded.stop();
  }

  /** From here on tenant 150 is on the second shard. */
  async split(): Promise<void> {
    const { sharded } = this;
    await sharded.flipTo(100);
    this.#split = true;
    const client = await sharded.connect();
    await waitFor(
      async () => {
        await this.reset();
        return (
          (await client.query(`SELECT name FROM tenants WHERE tenant_id = 150`)).rowCount === 1 &&
          (await this.#state(0))
        );
      },
      { what: 'the new epoch' },
    );
    await this.#shards[0].query('DELETE FROM tenants WHERE tenant_id >= 100');
    await waitFor(async () => (await client.query(`SELECT name FROM tenants WHERE tenant_id = 151`)).rowCount === 1, {
      what: 'the new epoch to be served',
    });
    await client.end();
  }

  async reset(): Promise<void> {
    const reset = (shard: 0 | 1, ids: readonly number[]) =>
      this.#shards[shard].query(
        `DELETE FROM items; DELETE FROM orders; DELETE FROM tenants; DELETE FROM settings;
         INSERT INTO tenants SELECT id, 't' || id FROM unnest('{${ids}}'::int[]) AS id`,
      );
    await Promise.all([reset(0, this.#split ? [1] : [1, 150, 151]), reset(1, [150, 151])]);
  }

  /** `ordered`: parameters told are compared in their place among the replies, not only in the end. */
  async compare(conversation: Conversation, cut: Cut, ordered = false): Promise<void> {
    const { sharded } = this;
    await this.reset();
    const home = this.#split ? 1 : 0;
    const plain = await converse(sharded.clusters[home].port, conversation, whole, ordered);
    // A server process outlives its client for a moment.
    await waitFor(async () => (await this.#active(home)) === 0, { what: 'the end of the plain session' });
    const after = await this.#state(home);
    await this.reset();
    const proxied = await converse(sharded.proxy.port, conversation, cut, ordered);
    expect(proxied.replies).toEqual(plain.replies);
    expect([...proxied.parameters].sort()).toEqual([...plain.parameters].sort());
    await waitFor(async () => (await this.#active(home)) === 0, { what: 'the end of the proxied session’s work' });
    expect(await this.#state(home)).toEqual(after);
  }

  /** The same for what uses tenants of both shards: PostgreSQL has all of them. */
  async compareSpanning(conversation: Conversation, cut: Cut): Promise<void> {
    const { sharded } = this;
    await this.reset();
    await this.#shards[0].query(`INSERT INTO tenants VALUES (150, 't150'), (151, 't151')`);
    const plain = await converse(sharded.clusters[0].port, conversation, whole, true);
    await waitFor(async () => (await this.#active(0)) === 0, { what: 'the end of the plain session' });
    const after = [await this.#state(0), await this.#names(0)];
    await this.reset();
    const proxied = await converse(sharded.proxy.port, conversation, cut, true);
    expect(proxied.replies).toEqual(plain.replies);
    expect([...proxied.parameters].sort()).toEqual([...plain.parameters].sort());
    await waitFor(async () => (await this.#active(0)) + (await this.#active(1)) === 0, {
      what: 'the end of the proxied session’s work',
    });
    const all = async (what: (shard: 0 | 1) => Promise<unknown[]>) => [...(await what(0)), ...(await what(1))];
    expect([await all((shard) => this.#state(shard)), await all((shard) => this.#names(shard))]).toEqual(after);
    expect(await all((shard) => this.#prepared(shard))).toEqual([]);
  }

  async #names(shard: 0 | 1): Promise<unknown[]> {
    return (await this.#shards[shard].query('SELECT tenant_id, name FROM tenants ORDER BY 1')).rows;
  }

  /** Transactions that wait for a decision. */
  async #prepared(shard: 0 | 1): Promise<unknown[]> {
    return (await this.#shards[shard].query('SELECT gid FROM pg_prepared_xacts')).rows;
  }

  /** What is there afterwards. */
  async #state(shard: 0 | 1): Promise<unknown[]> {
    return (await this.#shards[shard].query('SELECT tenant_id, id FROM orders ORDER BY 1, 2')).rows;
  }

  /** Sessions of the client's user that run something or hold a transaction open. */
  async #active(shard: 0 | 1): Promise<number> {
    const { rows } = await this.#shards[shard].query<{ n: number }>(
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`,
    );
    return rows[0]?.n ?? 0;
  }
}

/** Says it to whoever listens there. @param ordered see `Oracle.compare` */
export async function converse(
  port: number,
  conversation: Conversation,
  cut: Cut,
  ordered: boolean,
  database = 'shop',
): Promise<Heard> {
  const peer = await RawPeer.connect(port);
  const login = await peer.login({
    user: 'app',
    password: 'secret',
    database,
    parameters: { application_name: 'oracle', TimeZone: 'Europe/Vienna', ...conversation.startup },
  });
  const parameters = new Map<string, string>();
  const replies: string[] = [];
  const note = (m: RawMessage) => {
    const { name, value } = decodeParameterStatus(m.frame);
    parameters.set(name, value);
  };
  for (const m of login) if (m.type === 'S') note(m);
  try {
    for (const [until, ...send] of conversation.steps) {
      for (const piece of cut(Buffer.concat(send))) {
        peer.send(piece);
        await new Promise((resolve) => setImmediate(resolve));
      }
      for (const type of until) {
        if (type === '.') {
          await drain(peer, replies, note);
          break;
        }
        const told: string[] = [];
        for (;;) {
          const m = await peer.receive();
          if (m.type === 'S') {
            note(m);
            told.push(show(m));
          } else {
            // In which order several are told nobody says.
            if (ordered) replies.push(...told.splice(0).sort());
            replies.push(show(m));
          }
          if (m.type === type) break;
        }
      }
    }
    if (conversation.steps.at(-1)?.[0] !== '.') {
      // What else it has to say is not missed.
      peer.send(TERMINATE);
      await drain(peer, replies, note);
    }
  } catch (error) {
    replies.push(String(error));
  } finally {
    peer.destroy();
  }
  return { replies, parameters };
}

async function drain(peer: RawPeer, replies: string[], note: (m: RawMessage) => void): Promise<void> {
  for (;;) {
    let m: RawMessage;
    try {
      m = await peer.receive();
    } catch (error) {
      if (peer.ended) return;
      throw error;
    }
    if (m.type === 'S') note(m);
    else replies.push(show(m));
  }
}

/** A message as text; what no proxy can know (object ids of relations, lines of the server's source) left out. */
function show({ type, body, frame }: RawMessage): string {
  switch (type) {
    case 'E':
    case 'N': {
      const { file: _f, line: _l, routine: _r, ...fields } = decodeErrorFields(frame);
      return `${type} ${JSON.stringify(fields).replace(/pg_temp_\d+/, 'pg_temp')}`;
    }
    case 'T':
      return `T ${JSON.stringify(decodeRowDescription(frame).map((f) => ({ ...f, tableOid: f.tableOid !== 0 })))}`;
    default:
      return body.length > 2000 ? `${type} ${body.length} bytes, ${hash(body)}` : `${type} ${body.toString('latin1')}`;
  }
}

function hash(b: Buffer): number {
  let h = 0;
  for (const byte of b) h = (h * 31 + byte) | 0;
  return h;
}
