import { ForeshardError } from '../../topology/errors.js';
import { CLIENTS, SERVERS, SOCKETS } from './connection-views.js';
import { LANES } from './lane-view.js';
import { DATABASES, LISTS, MEM, PINS, POOLS, SHARD_POOLS, STATE, USERS } from './pool-views.js';
import type { ProcessState } from './process-state.js';
import { REPLICAS } from './replica-view.js';
import { STATS, STATS_AVERAGES, STATS_TOTALS, TOTALS_VIEW } from './stats-views.js';
import { TEMPLATES } from './template-view.js';
import { KEYSPACES, MIGRATIONS, PLANS, RANGES, SHARDS } from './topology-views.js';
import { columns, groupRows, type View } from './view.js';

/** Must be that of package.json; a test compares them. */
export const VERSION = '0.1.0';

const CONFIG: View<ProcessState> = {
  name: 'config',
  about: 'the configuration; what is changeable, RELOAD changes',
  columns: columns('key value default changeable'),
  shared: true,
  rows: ({ config, limits }) => [
    ...config().map((entry) => [entry.key, entry.value, entry.default, entry.changeable ? 'yes' : 'no']),
    // Under PgBouncer's names, for its exporters.
    ['max_client_conn', String(limits().maxClients), null, 'yes'],
    ['max_user_connections', '0', '0', 'no'],
    ['default_pool_size', String(limits().poolSize), null, 'yes'],
  ],
};

const VERSION_VIEW: View<ProcessState> = {
  name: 'version',
  about: 'the version of Foreshard',
  columns: columns('version'),
  rows: () => [[`Foreshard ${VERSION}`]],
  finish: (rows) => groupRows(rows, 1, () => undefined),
};

const COMMANDS_HELP: readonly (readonly [string, string])[] = [
  [
    'PAUSE [shard|database]',
    'let transactions end, start no new ones, close server connections; returns when they are closed',
  ],
  ['RESUME [shard|database]', 'go on after PAUSE or KILL'],
  ['RECONNECT [shard|database]', 'close server connections as they are given back'],
  ['WAIT_CLOSE [shard|database]', 'return when the connections that RECONNECT was about are closed'],
  ['KILL [shard|database]', 'cut clients and server connections now, and start nothing new until RESUME'],
  ['KILL_CLIENT id', 'cut one client, by its id in SHOW CLIENTS'],
  ['DISABLE database', 'let no new client in'],
  ['ENABLE database', 'let clients in again'],
  ['RELOAD', 'read the configuration again'],
  [
    'SHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]',
    'end the proxy: now, after open transactions, or when all clients have left',
  ],
];

const HELP: View<ProcessState> = {
  name: 'help',
  about: 'this',
  columns: columns('command meaning'),
  shared: true,
  rows: () => [
    ...VIEWS.map((view) => [`SHOW ${view.name.toUpperCase()}`, view.about]),
    ...COMMANDS_HELP.map(([command, meaning]) => [command, meaning]),
  ],
};

const VIEWS: readonly View<ProcessState>[] = [
  HELP,
  VERSION_VIEW,
  CLIENTS,
  SERVERS,
  SOCKETS,
  POOLS,
  SHARD_POOLS,
  LANES,
  PINS,
  STATS,
  STATS_TOTALS,
  STATS_AVERAGES,
  TOTALS_VIEW,
  LISTS,
  DATABASES,
  USERS,
  CONFIG,
  STATE,
  MEM,
  SHARDS,
  KEYSPACES,
  RANGES,
  REPLICAS,
  TEMPLATES,
  MIGRATIONS,
  PLANS,
];

const BY_NAME: ReadonlyMap<string, View<ProcessState>> = new Map(VIEWS.map((view) => [view.name, view]));

/** @throws ForeshardError 42601 when there is no such view */
export function viewOf(name: string): View<ProcessState> {
  const view = BY_NAME.get(name);
  if (view !== undefined) return view;
  throw new ForeshardError('42601', `invalid command 'SHOW ${name}', use SHOW HELP;`, {
    hint: `There are: ${VIEWS.map((v) => v.name.toUpperCase()).join(', ')}.`,
  });
}
