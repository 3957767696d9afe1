import type { Backend } from '../backend/backend.js';
import type { Client } from '../clients.js';
import type { Stream } from '../replication.js';
import { ADMIN_DATABASE } from './admin-database.js';
import { clientsByBackend, type ProcessState } from './process-state.js';
import type { AdminSession } from './session.js';
import type { AdminValue } from './siblings.js';
import { columns, type Row, type View } from './view.js';

/** PgBouncer's, in its order. */
const SOCKET = `type user database replication state addr port:int4 local_addr local_port:int4 connect_time request_time
  wait:int4 wait_us:int4 close_needed:int4 ptr link remote_pid:int4 tls application_name prepared_statements:int4 id:int8`;

const FAILED = 0x45;
const IDLE = 0x49;

export const CLIENTS: View<ProcessState> = {
  name: 'clients',
  about: 'clients that are logged in, those of this database included',
  columns:
    columns(`${SOCKET} activity activity_since pinned shard server_pid:int4 queries:int8 bytes_in:int8 bytes_out:int8
    protocol process:int4`),
  rows: (state) => [
    ...[...state.clients].map((client) => clientRow(client, state)),
    ...[...state.consoles].map((session) => consoleRow(session, state.slot)),
    ...state.streams().map((stream) => streamClientRow(stream, state)),
  ],
};

export const SERVERS: View<ProcessState> = {
  name: 'servers',
  about: 'connections to the shards',
  columns: columns(`${SOCKET} shard client_id:int8 process:int4`),
  rows: (state) => {
    const owners = clientsByBackend(state.clients);
    const rows: Row[] = [];
    for (const pool of state.pools.all)
      for (const { backend, state: what, closeNeeded } of pool.servers())
        rows.push(serverRow(backend, what, closeNeeded, pool.user, owners.get(backend) ?? null, state));
    for (const stream of state.streams()) rows.push(streamServerRow(stream, state));
    return rows;
  },
};

export const SOCKETS: View<ProcessState> = {
  name: 'sockets',
  about: 'clients and servers together',
  columns: columns(`${SOCKET} process:int4`),
  rows: (state) => {
    const width = SOCKET.split(/\s+/).length;
    const part = (prefix: string) => (row: Row) => {
      const head: AdminValue[] = row.slice(0, width);
      head[4] = `${prefix}_${head[4]}`;
      return [...head, state.slot];
    };
    return [
      ...(CLIENTS.rows(state) as readonly Row[]).map(part('cl')),
      ...(SERVERS.rows(state) as readonly Row[]).map(part('sv')),
    ];
  },
};

/** `active`: it has a server connection; `waiting`: it asked for something and has none yet. */
export function clientState({ session }: Client): 'active' | 'waiting' | 'idle' {
  if (session.activity.waitingSince > 0) return 'waiting';
  return session.backends.length > 0 ? 'active' : 'idle';
}

/** As pg_stat_activity.state says it, and `waiting`. */
function activityOf(client: Client): { readonly name: string; readonly since: number } {
  const { session } = client;
  const { activity, lease } = session;
  if (activity.waitingSince > 0) return { name: 'waiting', since: ago(activity.waitingSince) };
  if (session.working) return { name: 'active', since: activity.requestAt };
  const since = Math.max(activity.answeredAt, client.connectedAt);
  const { backend } = lease;
  if (backend?.status === FAILED) return { name: 'idle in transaction (aborted)', since };
  if (lease.transaction !== null && (lease.transaction.deferred || (backend !== null && backend.status !== IDLE)))
    return { name: 'idle in transaction', since };
  return { name: 'idle', since };
}

function clientRow(client: Client, state: ProcessState): Row {
  const { session, peer } = client;
  const { activity, lease, lookup } = session;
  const backend = session.backends[0] ?? null;
  const waitedMs = activity.waitingSince > 0 ? performance.now() - activity.waitingSince : 0;
  const what = activityOf(client);
  return [
    'C',
    session.user,
    client.database,
    'none',
    clientState(client),
    peer.address,
    peer.port,
    peer.localAddress,
    peer.localPort,
    time(client.connectedAt),
    time(activity.requestAt),
    ...seconds(waitedMs),
    0,
    pointer(client.key.processId),
    backend === null ? '' : pointer(state.ids.of(backend)),
    0,
    peer.tls,
    lookup.known.get('application_name') ?? '',
    session.preparedStatements,
    client.key.processId,
    what.name,
    time(what.since),
    lease.pinned,
    session.backends.map((b) => b.shard).join(',') || null,
    backend?.connection.processId ?? null,
    activity.queries,
    activity.received,
    activity.sent,
    version(client.protocol),
    state.slot,
  ];
}

function consoleRow(session: AdminSession, slot: number): Row {
  const { key, peer } = session;
  const state = session.working ? 'active' : 'idle';
  return [
    'C',
    session.administrator.user,
    ADMIN_DATABASE,
    'none',
    state,
    peer.address,
    peer.port,
    peer.localAddress,
    peer.localPort,
    time(session.connectedAt),
    time(session.requestAt),
    0,
    0,
    0,
    pointer(key.processId),
    '',
    0,
    peer.tls,
    session.applicationName,
    session.preparedStatements,
    key.processId,
    state,
    time(session.requestAt),
    null,
    null,
    null,
    session.queries,
    session.bytes.received,
    session.bytes.sent,
    version(session.protocol),
    slot,
  ];
}

function serverRow(
  backend: Backend,
  what: string,
  closeNeeded: boolean,
  user: string,
  owner: Client | null,
  { ids, slot }: Pick<ProcessState, 'ids' | 'slot'>,
): Row {
  const { connection } = backend;
  const local = connection.localAddress;
  return [
    'S',
    user,
    connection.options.database,
    'none',
    what,
    connection.options.host,
    connection.options.port,
    local.address,
    local.port,
    time(ago(backend.connectedAt)),
    time(ago(backend.clock.since === 0 ? backend.connectedAt : backend.clock.since)),
    0,
    0,
    closeNeeded ? 1 : 0,
    pointer(ids.of(backend)),
    owner === null ? '' : pointer(owner.key.processId),
    connection.processId,
    connection.tls,
    owner?.session.lookup.known.get('application_name') ?? '',
    backend.prepared.size,
    ids.of(backend),
    backend.shard,
    owner?.key.processId ?? null,
    slot,
  ];
}

/** A replication client: always active, for its server may send at any moment. */
function streamClientRow(stream: Stream, { ids, slot }: Pick<ProcessState, 'ids' | 'slot'>): Row {
  const { key, peer, server, bytes } = stream;
  const since = time(stream.connectedAt);
  return [
    'C',
    stream.user,
    stream.database ?? '',
    stream.kind,
    'active',
    peer.address,
    peer.port,
    peer.localAddress,
    peer.localPort,
    since,
    since,
    0,
    0,
    0,
    pointer(key.processId),
    pointer(ids.of(stream)),
    0,
    peer.tls,
    stream.applicationName,
    0,
    key.processId,
    'active',
    since,
    'replication',
    stream.shard,
    server.processId,
    0,
    bytes.received,
    bytes.sent,
    version(stream.protocol),
    slot,
  ];
}

function streamServerRow(stream: Stream, { ids, slot }: Pick<ProcessState, 'ids' | 'slot'>): Row {
  const { key, server } = stream;
  const since = time(stream.connectedAt);
  return [
    'S',
    stream.user,
    stream.kind === 'logical' ? server.database : '',
    stream.kind,
    'active',
    server.host,
    server.port,
    server.localAddress,
    server.localPort,
    since,
    since,
    0,
    0,
    0,
    pointer(ids.of(stream)),
    pointer(key.processId),
    server.processId,
    server.tls,
    stream.applicationName,
    0,
    ids.of(stream),
    stream.shard,
    key.processId,
    slot,
  ];
}

/** ms since 1970 of a moment on `performance.now()`'s clock. */
const ago = (at: number): number => Date.now() - (performance.now() - at);

/** As PgBouncer writes times. @param at ms since 1970 */
function time(at: number): string {
  return `${new Date(at).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
}

/** Whole seconds, and the microseconds of the rest. */
function seconds(ms: number): [number, number] {
  const us = Math.round(ms * 1000);
  return [Math.floor(us / 1_000_000), us % 1_000_000];
}

/** As PgBouncer writes addresses of its objects: stays the same for as long as the object lives. */
const pointer = (id: number): string => `0x${id.toString(16).padStart(8, '0')}`;

/** Of the protocol, as people write it. */
const version = (protocol: number): string => `${protocol >>> 16}.${protocol & 0xffff}`;
