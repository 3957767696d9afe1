import type { PoolStatus } from '../backend/pool-status.js';
import { clientState } from './connection-views.js';
import { type ProcessState, totalActivity } from './process-state.js';
import type { AdminValue } from './siblings.js';
import { columns, groupRows, type Row, sumColumns, type View } from './view.js';

/** PgBouncer's names of our one way of pooling; sessions that are pinned are seen in SHOW CLIENTS. */
const POOL_MODE = 'transaction';

const POOL_COLUMNS = `cl_active:int4 cl_waiting:int4 cl_active_cancel_req:int4 cl_waiting_cancel_req:int4 sv_active:int4
  sv_active_cancel:int4 sv_being_canceled:int4 sv_idle:int4 sv_used:int4 sv_tested:int4 sv_login:int4 maxwait:int4
  maxwait_us:int4 pool_mode load_balance_hosts`;
const COUNTS = 11;

/** One row for a database and user, as PgBouncer has it: exporters want no two. */
export const POOLS: View<ProcessState> = {
  name: 'pools',
  about: 'server connections and clients by user, all shards together',
  columns: columns(`database user ${POOL_COLUMNS}`),
  rows: (state) => {
    const { database } = state.live.current;
    const clients = clientsByUser(state);
    const users = new Set([...clients.keys(), ...[...state.pools.all].map((pool) => pool.user)]);
    return [...users].sort().map((user) => {
      const pools = [...state.pools.all].filter((pool) => pool.user === user).map((pool) => pool.status);
      const { active, waiting } = clients.get(user) ?? { active: 0, waiting: 0 };
      const maxWaitMs = Math.max(0, ...pools.map((p) => p.maxWaitMs));
      return poolRow([database, user], active, waiting, pools, maxWaitMs);
    });
  },
  finish: (rows) => finishPools(rows, 2),
};

/** The same by shard, where POOLS has one row. */
export const SHARD_POOLS: View<ProcessState> = {
  name: 'shard_pools',
  about: 'server connections and waiting clients by shard and user',
  columns: columns(`shard user ${POOL_COLUMNS}`),
  rows: ({ pools }) =>
    [...pools.all].map((pool) => {
      const { status } = pool;
      return poolRow([status.shard, status.user], status.clActive, status.clWaiting, [status], status.maxWaitMs);
    }),
  finish: (rows) => finishPools(rows, 2),
};

function clientsByUser({ clients }: ProcessState): Map<string, { active: number; waiting: number }> {
  const users = new Map<string, { active: number; waiting: number }>();
  for (const client of clients) {
    const { user } = client.session;
    const counts = users.get(user) ?? { active: 0, waiting: 0 };
    // As in PgBouncer: idle clients count as active.
    if (clientState(client) === 'waiting') counts.waiting += 1;
    else counts.active += 1;
    users.set(user, counts);
  }
  return users;
}

/** Raw: `maxwait` is in ms, `maxwait_us` not there yet. */
function poolRow(
  names: readonly AdminValue[],
  active: number,
  waiting: number,
  pools: readonly PoolStatus[],
  maxWaitMs: number,
): Row {
  const sum = (f: (p: PoolStatus) => number) => pools.reduce((total, p) => total + f(p), 0);
  return [
    ...names,
    active,
    waiting,
    0,
    0,
    sum((p) => p.svActive),
    0,
    0,
    sum((p) => p.svIdle),
    sum((p) => p.svUsed),
    sum((p) => p.svTested),
    sum((p) => p.svLogin),
    maxWaitMs,
  ];
}

function finishPools(rows: readonly Row[], names: number): Row[] {
  const add = sumColumns(names, names + COUNTS);
  const wait = names + COUNTS;
  return groupRows(rows, names, (into, row) => {
    add(into, row);
    into[wait] = Math.max(Number(into[wait]), Number(row[wait]));
  }).map((row) => {
    const us = Math.round(Number(row[wait]) * 1000);
    return [...row.slice(0, wait), Math.floor(us / 1_000_000), us % 1_000_000, POOL_MODE, null];
  });
}

/** One row per shard: what a client calls one database is several here. */
export const DATABASES: View<ProcessState> = {
  name: 'databases',
  about: 'the database, one row for each shard of it',
  columns: columns(`name host port:int4 database force_user pool_size:int4 min_pool_size:int4 reserve_pool_size:int4
    server_lifetime:int4 pool_mode load_balance_hosts max_connections:int4 current_connections:int4
    max_client_connections:int4 current_client_connections:int4 paused:int4 disabled:int4 shard`),
  rows: (state) => {
    const { live, pools } = state;
    const limits = state.limits();
    return [...live.current.shards.values()].map((shard) => {
      const { host, port, database } = addressOf(shard.url);
      const open = [...pools.all].filter((p) => p.shard === shard.name).reduce((sum, p) => sum + p.counts.open, 0);
      const streams = state.streams().filter((stream) => stream.shard === shard.name).length;
      return [
        live.current.database,
        host,
        port,
        database,
        null,
        limits.poolSize,
        0,
        0,
        Math.round(limits.serverLifetimeMs / 1000),
        null,
        null,
        limits.maxPerShard,
        open + streams,
        limits.maxClients,
        state.clients.size + state.streams().length,
        pools.isPaused(shard.name) ? 1 : 0,
        pools.disabled ? 1 : 0,
        shard.name,
      ];
    });
  },
  finish: (rows) => {
    const shard = 17;
    // Keyed by the shard; limits are per process, so they add up too.
    const byShard = groupRows(
      rows.map((row) => [row[shard] ?? null, ...row]),
      1,
      (into, row) => {
        for (const i of [5, 11, 12, 13, 14]) into[i + 1] = Number(into[i + 1]) + Number(row[i + 1]);
        for (const i of [15, 16]) into[i + 1] = Math.max(Number(into[i + 1]), Number(row[i + 1]));
      },
    );
    return byShard.map((row) => row.slice(1));
  },
};

/** Where a shard is; never its password. */
export function addressOf(shardUrl: string): { host: string; port: number; database: string } {
  const url = new URL(shardUrl);
  return {
    host: url.searchParams.get('host') ?? decodeURIComponent(url.hostname.replace(/^\[|\]$/g, '')),
    port: Number(url.searchParams.get('port') ?? (url.port === '' ? 5432 : url.port)),
    database: decodeURIComponent(url.pathname.slice(1)),
  };
}

export const USERS: View<ProcessState> = {
  name: 'users',
  about: 'users with clients or server connections',
  columns: columns(`name pool_size reserve_pool_size pool_mode max_user_connections:int4 current_connections:int4
    max_user_client_connections:int4 current_client_connections:int4`),
  rows: (state) => {
    const users = new Map<string, { servers: number; clients: number }>();
    const of = (user: string) => {
      const found = users.get(user) ?? { servers: 0, clients: 0 };
      users.set(user, found);
      return found;
    };
    for (const pool of state.pools.all) of(pool.user).servers += pool.counts.open;
    for (const { session } of state.clients) of(session.user).clients += 1;
    for (const { user } of state.streams()) {
      of(user).clients += 1;
      of(user).servers += 1;
    }
    return [...users].map(([name, { servers, clients }]) => [name, '', '', null, 0, servers, 0, clients]);
  },
  finish: (rows) =>
    groupRows(rows, 1, (into, row) => {
      for (const i of [5, 7]) into[i] = Number(into[i]) + Number(row[i]);
    }),
};

export const LISTS: View<ProcessState> = {
  name: 'lists',
  about: 'how many there are of each thing',
  columns: columns('list items:int4'),
  rows: (state) => {
    const pools = [...state.pools.all];
    const streams = state.streams();
    const clientUsers = [...state.clients].map((c) => c.session.user);
    const servers = pools.reduce((sum, pool) => sum + pool.counts.open, streams.length);
    return [
      // What is the same in all processes comes from the one that was asked: see `finish`.
      ['databases', 1],
      ['shards', state.live.current.shards.size],
      ['keyspaces', state.live.current.keyspaces.size],
      ['users', JSON.stringify([...new Set([...[...pools, ...streams].map((p) => p.user), ...clientUsers])])],
      ['peers', 0],
      ['pools', JSON.stringify([...new Set(pools.map((p) => p.user))])],
      ['peer_pools', 0],
      ['free_clients', 0],
      ['used_clients', state.clients.size + state.consoles.size + streams.length],
      ['login_clients', state.loggingIn()],
      ['free_servers', 0],
      ['used_servers', servers],
      ['dns_names', 0],
      ['dns_zones', 0],
      ['dns_queries', 0],
      ['dns_pending', 0],
      ['processes', 1],
      ['pinned_clients', [...state.clients].filter((c) => c.session.lease.pinned !== null).length],
    ];
  },
  finish: (rows) => {
    const once = new Set<AdminValue>(['databases', 'shards', 'keyspaces']);
    const named = new Map<AdminValue, Set<string>>();
    for (const [list, items] of rows)
      if (typeof items === 'string')
        named.set(list ?? null, new Set([...(named.get(list ?? null) ?? []), ...(JSON.parse(items) as string[])]));
    return groupRows(rows, 1, (into, row) => {
      if (typeof row[1] === 'number' && !once.has(row[0] ?? null)) into[1] = Number(into[1]) + row[1];
    }).map(([list, items]) => [list ?? null, named.get(list ?? null)?.size ?? items ?? null]);
  },
};

export const STATE: View<ProcessState> = {
  name: 'state',
  about: 'whether everything is paused',
  columns: columns('key value'),
  rows: ({ pools }) => [
    ['active', pools.allPaused ? 'no' : 'yes'],
    ['paused', pools.allPaused ? 'yes' : 'no'],
    ['suspended', 'no'],
  ],
  finish: (rows) =>
    groupRows(rows, 2, () => undefined).filter((row, i, all) => all.findIndex((r) => r[0] === row[0]) === i),
};

export const PINS: View<ProcessState> = {
  name: 'pins',
  about: 'why clients keep a server connection: clients now, and how often since the start',
  columns: columns('reason clients:int8 total:int8'),
  rows: ({ clients, pins }) => {
    const reasons = new Map<string, [number, number]>();
    for (const [reason, total] of pins) reasons.set(reason, [0, total]);
    for (const { session } of clients) {
      const { pinned } = session.lease;
      if (pinned === null) continue;
      const [now, total] = reasons.get(pinned) ?? [0, 0];
      reasons.set(pinned, [now + 1, total]);
    }
    return [...reasons].map(([reason, [now, total]]) => [reason, now, total]);
  },
  finish: (rows) => groupRows(rows, 1, sumColumns(1, 3)).sort((a, b) => String(a[0]).localeCompare(String(b[0]))),
};

export const MEM: View<ProcessState> = {
  name: 'mem',
  about: 'memory of the process, and what is kept in it',
  columns: columns('name size:int8 used:int8 free:int8 memtotal:int8'),
  rows: (state) => {
    const { rss, heapTotal, heapUsed, external, arrayBuffers } = process.memoryUsage();
    const activity = totalActivity(state);
    return [
      ['rss', 1, rss, 0, rss],
      ['heap', 1, heapUsed, heapTotal - heapUsed, heapTotal],
      ['external', 1, external, 0, external],
      ['array_buffers', 1, arrayBuffers, 0, arrayBuffers],
      ['templates', 0, state.router.templates, 0, 0],
      ['queries', 0, activity.queries, 0, 0],
    ];
  },
  finish: (rows) => groupRows(rows, 2, sumColumns(2, 5)),
};
