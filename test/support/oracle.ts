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

interface Heard {
  readonly replies: readonly string[];
  readonly parameters: ReadonlyMap<string, string>;
}

/** Says the same to PostgreSQL and to the proxy in front of it, and compares every message that comes back, and the rows that are left. */
export class Oracle {
  readonly sharded: Sharded;
  /** The second shard has the tenants from 100 on. */
  #split = false;

  private constructor(sharded: Sharded) {
    this.sharded = sharded;
  }

  static async start(options: Partial<ShardedOptions> = {}): Promise<Oracle> {
    return new Oracle(await Sharded.start({ splitAt: null, ...options }));
  }

  stop(): Promise<void> {
    return this.sharded.stop();
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
    await sharded.onShard(0, 'DELETE FROM tenants WHERE tenant_id >= 100');
    await waitFor(async () => (await client.query(`SELECT name FROM tenants WHERE tenant_id = 151`)).rowCount === 1, {
      what: 'the new epoch to be served',
    });
    await client.end();
  }

  async reset(): Promise<void> {
    for (const shard of [0, 1] as const) {
      await this.sharded.onShard(shard, 'TRUNCATE tenants, orders, items, settings CASCADE');
      const ids = shard === 0 ? (this.#split ? [1] : [1, 150, 151]) : [150, 151];
      for (const id of ids) await this.sharded.onShard(shard, `INSERT INTO tenants VALUES (${id}, 't${id}')`);
    }
  }

  /** `ordered`: parameters told are compared in their place among the replies, not only in the end. */
  async compare(conversation: Conversation, bytewise: boolean, ordered = false): Promise<void> {
    const { sharded } = this;
    await this.reset();
    const home = this.#split ? 1 : 0;
    const plain = await converse(sharded.clusters[home].port, conversation, false, ordered);
    // A server process outlives its client for a moment.
    await waitFor(async () => (await this.#active(home)) === 0, { what: 'the end of the plain session' });
    const after = await this.#state(home);
    await this.reset();
    const proxied = await converse(sharded.proxy.port, conversation, bytewise, ordered);
    expect(proxied.replies).toEqual(plain.replies);
    expect([...proxied.parameters].sort()).toEqual([...plain.parameters].sort());
    await waitFor(async () => (await this.#active(home)) === 0, { what: 'the end of the proxied session’s work' });
    expect(await this.#state(home)).toEqual(after);
  }

  /** What is there afterwards. */
  #state(shard: 0 | 1): Promise<unknown[]> {
    return this.sharded.onShard(shard, 'SELECT tenant_id, id FROM orders ORDER BY 1, 2');
  }

  /** Sessions of the client's user that run something or hold a transaction open. */
  async #active(shard: 0 | 1): Promise<number> {
    const [row] = await this.sharded.onShard<{ n: number }>(
      shard,
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`,
    );
    return row?.n ?? 0;
  }
}

async function converse(port: number, conversation: Conversation, bytewise: boolean, ordered: boolean): Promise<Heard> {
  const peer = await RawPeer.connect(port);
  const login = await peer.login({
    user: 'app',
    password: 'secret',
    database: 'shop',
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
      if (bytewise) {
        for (const byte of Buffer.concat(send)) {
          peer.send(Buffer.from([byte]));
          await new Promise((resolve) => setImmediate(resolve));
        }
      } else peer.send(...send);
      for (const type of until) {
        if (type === '.') {
          await drain(peer, replies);
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
  } catch (error) {
    replies.push(String(error));
  } finally {
    peer.destroy();
  }
  return { replies, parameters };
}

async function drain(peer: RawPeer, replies: string[]): Promise<void> {
  for (;;) {
    try {
      replies.push(show(await peer.receive()));
    } catch {
      return;
    }
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
