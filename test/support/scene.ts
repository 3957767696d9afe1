import { decodeBackendKeyData, decodeNotification } from '../../proxy/wire/backend.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeQuery } from '../../proxy/wire/frontend.js';
import { type RawMessage, RawPeer } from './raw-peer.js';

/** One client says something, and what it hears up to and with the last of these message types is noted (`''`: nothing is waited for). */
export interface Line {
  readonly who: string;
  readonly until: string;
  readonly send: readonly Buffer[];
}

/** A Query, heard up to its ReadyForQuery. */
export function say(who: string, ...sql: string[]): Line {
  return { who, until: 'Z'.repeat(sql.length), send: sql.map((s) => encodeQuery(s)) };
}

/** Waits for messages of these types, saying nothing. */
export function hear(who: string, until: string): Line {
  return { who, until, send: [] };
}

/** Plays the lines one after the other, each client on a connection of its own to this port. Gives what each line heard. */
export async function play(
  port: number,
  lines: readonly Line[],
  parameters: Readonly<Record<string, string>> = {},
): Promise<string[]> {
  const peers = new Map<string, RawPeer>();
  const names = new Map<number, string>();
  const heard: string[] = [];
  try {
    for (const name of new Set(lines.map((l) => l.who))) {
      const peer = await RawPeer.connect(port);
      peers.set(name, peer);
      const messages = await peer.login({ user: 'app', password: 'secret', database: 'shop', parameters });
      const key = messages.find((m) => m.type === 'K');
      if (key) names.set(decodeBackendKeyData(key.frame).processId, name);
    }
    for (const { who, until, send } of lines) {
      const peer = peers.get(who) as RawPeer;
      if (send.length > 0) peer.send(...send);
      for (const type of until) {
        const messages = (await peer.until(type)).filter((m) => m.type !== 'S');
        // Another's notification comes when it comes, but before the next ReadyForQuery.
        const ready = type === 'Z' ? messages.splice(-1) : [];
        const sorted = [...messages.filter((m) => m.type !== 'A'), ...messages.filter((m) => m.type === 'A'), ...ready];
        for (const message of sorted) heard.push(`${who} ${show(message, names)}`);
      }
    }
  } finally {
    for (const peer of peers.values()) peer.end();
  }
  return heard;
}

/** A message as text: process ids as the name of the client that was told them. */
function show({ type, body, frame }: RawMessage, names: ReadonlyMap<number, string>): string {
  if (type === 'A') {
    const { processId, channel, payload } = decodeNotification(frame);
    return `A from ${names.get(processId) ?? 'nobody'} on ${channel}: ${payload}`;
  }
  if (type === 'E' || type === 'N') {
    const { file: _f, line: _l, routine: _r, ...fields } = decodeErrorFields(frame);
    return `${type} ${JSON.stringify(fields).replace(/pg_temp_\d+/, 'pg_temp')}`;
  }
  if (type === 'T') return 'T';
  return `${type} ${body.toString('latin1')}`;
}
