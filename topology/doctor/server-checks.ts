import { quoteIdent } from '../quote.js';
import { error, type Finding, ok, warning } from './finding.js';
import { numberSetting, type ServerReport } from './server-report.js';

/** One forward and one reverse stream: what a move keeps open on a server. */
const STREAMS = 2;

/** Each holds a place from its PREPARE TRANSACTION to its end: some milliseconds. */
const PREPARED_TRANSACTIONS = 100;

type ServerCheck = (object: string, report: ServerReport) => Finding[];

/** Everything about one server that decides whether data can move from it and to it. */
export const SERVER_CHECKS: readonly ServerCheck[] = [
  checkVersion,
  checkPrimary,
  checkWalLevel,
  checkSlots,
  checkSenders,
  checkSyncWorkers,
  checkLogicalWorkers,
  checkWorkerProcesses,
  checkOrigins,
  checkRetryInterval,
  checkSlotRetention,
  checkPreparedTransactions,
  checkEndsPrepared,
  checkPrivileges,
  checkLargeObjects,
];

function restart(setting: string, value: number | string): string {
  return `ALTER SYSTEM SET ${setting} = ${value}, then restart the server`;
}

function checkVersion(object: string, { version }: ServerReport): Finding[] {
  const major = Math.floor(version / 10000);
  if (major < 15) return [error(object, `runs PostgreSQL ${major}`, 'upgrade it to 15 or later')];
  return [ok(object, `runs PostgreSQL ${major}`)];
}

function checkPrimary(object: string, { standby }: ServerReport): Finding[] {
  return standby ? [error(object, 'is a standby', "correct the shard's URL to the primary's")] : [];
}

function checkWalLevel(object: string, report: ServerReport): Finding[] {
  const level = report.settings.wal_level;
  if (level === 'logical') return [ok(object, 'wal_level is logical')];
  return [error(object, `wal_level is ${level}: nothing can be replicated logically`, restart('wal_level', 'logical'))];
}

/** A source serves a slot per stream, and one per table that is being copied. */
function neededAtSource(report: ServerReport): number {
  return STREAMS + Math.max(1, numberSetting(report, 'max_sync_workers_per_subscription'));
}

function checkSlots(object: string, report: ServerReport): Finding[] {
  return checkFree(
    object,
    'max_replication_slots',
    numberSetting(report, 'max_replication_slots'),
    report.slotsInUse,
    neededAtSource(report),
  );
}

function checkSenders(object: string, report: ServerReport): Finding[] {
  return checkFree(
    object,
    'max_wal_senders',
    numberSetting(report, 'max_wal_senders'),
    report.sendersInUse,
    neededAtSource(report),
  );
}

function checkFree(object: string, setting: string, limit: number, inUse: number, needed: number): Finding[] {
  const free = limit - inUse;
  const what = `${setting} is ${limit}, ${inUse} in use; a move needs ${needed}`;
  if (free >= needed) return [ok(object, what)];
  const remedy = restart(setting, inUse + needed);
  // One stream and one table at a time is the least that works.
  return [free >= STREAMS ? warning(object, what, remedy) : error(object, what, remedy)];
}

function checkSyncWorkers(object: string, report: ServerReport): Finding[] {
  const workers = numberSetting(report, 'max_sync_workers_per_subscription');
  const what = `max_sync_workers_per_subscription is ${workers}`;
  if (workers > 0) return [ok(object, what)];
  return [
    error(
      object,
      `${what}: no table is ever copied`,
      'ALTER SYSTEM SET max_sync_workers_per_subscription = 2, then reload',
    ),
  ];
}

function neededWorkers(report: ServerReport): number {
  return STREAMS + Math.max(1, numberSetting(report, 'max_sync_workers_per_subscription'));
}

function checkLogicalWorkers(object: string, report: ServerReport): Finding[] {
  const limit = numberSetting(report, 'max_logical_replication_workers');
  const needed = neededWorkers(report);
  const what = `max_logical_replication_workers is ${limit}; a move needs ${needed}`;
  if (limit >= needed) return [ok(object, what)];
  const remedy = restart('max_logical_replication_workers', needed);
  return [limit >= STREAMS ? warning(object, what, remedy) : error(object, what, remedy)];
}

/** The launcher is a worker process too. */
function checkWorkerProcesses(object: string, report: ServerReport): Finding[] {
  const limit = numberSetting(report, 'max_worker_processes');
  const needed = numberSetting(report, 'max_logical_replication_workers') + 1;
  const what = `max_worker_processes is ${limit}; max_logical_replication_workers and the launcher take ${needed}`;
  if (limit >= needed) return [ok(object, what)];
  const remedy = restart('max_worker_processes', needed);
  return [limit > neededWorkers(report) ? warning(object, what, remedy) : error(object, what, remedy)];
}

/** A setting of its own since 18; before, origins share max_replication_slots. */
function checkOrigins(object: string, report: ServerReport): Finding[] {
  const setting = report.version >= 180000 ? 'max_active_replication_origins' : 'max_replication_slots';
  return checkFree(object, setting, numberSetting(report, setting), report.originsInUse, neededWorkers(report)).map(
    (f) => ({
      ...f,
      what: `as a destination: ${f.what} replication origins`,
    }),
  );
}

function checkRetryInterval(object: string, report: ServerReport): Finding[] {
  const ms = numberSetting(report, 'wal_retrieve_retry_interval');
  const what = `wal_retrieve_retry_interval is ${ms} ms`;
  if (report.version >= 160000 || ms <= 1000) return [ok(object, what)];
  return [
    warning(
      object,
      `${what}: PostgreSQL 15 begins to copy only one table in that time`,
      "ALTER SYSTEM SET wal_retrieve_retry_interval = '200ms', then reload",
    ),
  ];
}

function checkSlotRetention(object: string, report: ServerReport): Finding[] {
  const findings: Finding[] = [];
  const keepMegabytes = numberSetting(report, 'max_slot_wal_keep_size', -1);
  if (keepMegabytes !== -1)
    findings.push(
      warning(
        object,
        `max_slot_wal_keep_size is ${keepMegabytes} MB: a copy during which more WAL is written loses its slot`,
        'ALTER SYSTEM SET max_slot_wal_keep_size = -1, then reload, at least while data moves',
      ),
    );
  if (numberSetting(report, 'idle_replication_slot_timeout') > 0)
    findings.push(
      warning(
        object,
        'idle_replication_slot_timeout is set: a move that pauses longer loses its slot',
        'ALTER SYSTEM SET idle_replication_slot_timeout = 0, then reload, at least while data moves',
      ),
    );
  return findings;
}

/** Not needed to move data. */
function checkPreparedTransactions(object: string, report: ServerReport): Finding[] {
  const limit = numberSetting(report, 'max_prepared_transactions');
  const what = `max_prepared_transactions is ${limit}`;
  if (limit > 0) return [ok(object, what)];
  return [
    warning(
      object,
      `${what}: no transaction that writes here and on another shard can be committed`,
      restart('max_prepared_transactions', PREPARED_TRANSACTIONS),
    ),
  ];
}

/** PostgreSQL lets a superuser end a prepared transaction, and whoever has prepared it: a client, as who the proxy has been logged in. */
function checkEndsPrepared(object: string, report: ServerReport): Finding[] {
  const { user, notToBecome: roles } = report;
  if (numberSetting(report, 'max_prepared_transactions') === 0) return [];
  if (roles.length === 0) return [ok(object, `user "${user}" may end what clients have prepared`)];
  const [first, ...others] = roles;
  const whose = others.length === 0 ? `"${first}" has` : `"${first}" and ${others.length} other role(s) have`;
  return [
    warning(
      object,
      `user "${user}" may not end what ${whose} prepared: after a crash, transactions on several shards would keep their locks`,
      `GRANT ${roles.map(quoteIdent).join(', ')} TO ${quoteIdent(user)}, as far as they are clients of the proxy`,
    ),
  ];
}

function checkPrivileges(object: string, report: ServerReport): Finding[] {
  const { user, database } = report;
  if (report.superuser) return [ok(object, `user "${user}" is a superuser`)];
  if (report.version < 160000)
    return [
      error(
        object,
        `user "${user}" is not a superuser: PostgreSQL 15 lets nobody else create subscriptions`,
        'use a superuser, or upgrade to 16 or later',
      ),
    ];
  const findings: Finding[] = [];
  if (!report.replication)
    findings.push(error(object, `user "${user}" lacks REPLICATION`, `ALTER ROLE "${user}" REPLICATION`));
  if (!report.createSubscription)
    findings.push(
      error(object, `user "${user}" may not create subscriptions`, `GRANT pg_create_subscription TO "${user}"`),
    );
  if (!report.createOnDatabase)
    findings.push(
      error(
        object,
        `user "${user}" may not create in database "${database}"`,
        `GRANT CREATE ON DATABASE "${database}" TO "${user}"`,
      ),
    );
  return findings.length > 0 ? findings : [ok(object, `user "${user}" may replicate and create subscriptions`)];
}

function checkLargeObjects(object: string, report: ServerReport): Finding[] {
  if (!report.largeObjects) return [];
  return [
    warning(
      object,
      `database "${report.database}" has large objects: they are not replicated`,
      'store the data in bytea columns before rows that name large objects move',
    ),
  ];
}
