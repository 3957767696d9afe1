import type pg from 'pg';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { ForeshardError } from '../../topology/errors.js';
import { overlaps } from '../../topology/key.js';
import { positionToJson } from '../../topology/key-codec.js';
import { addressOf } from './pool-views.js';
import type { ProcessState } from './process-state.js';
import { columns, groupRows, type Row, sumColumns, type View } from './view.js';

/** How long the catalog has for an answer. */
const CATALOG_MS = 2000;

export const SHARDS: View<ProcessState> = {
  name: 'shards',
  about: 'shards, with what they own and their server connections',
  columns: columns(`name host port:int4 database home:bool capacity_ms_per_second:float8 ranges:int8 paused:bool
    servers:int8 servers_active:int8 clients_waiting:int8`),
  rows: ({ live, pools }) => {
    const { shards, keyspaces } = live.current;
    return [...shards.values()].map((shard) => {
      const { host, port, database } = addressOf(shard.url);
      const own = [...pools.all].filter((pool) => pool.shard === shard.name).map((pool) => pool.counts);
      const ranges = [...keyspaces.values()].flatMap((k) => k.ranges).filter((r) => r.shard === shard.name);
      return [
        shard.name,
        host,
        port,
        database,
        shard.home,
        shard.capacityMsPerSecond,
        ranges.length,
        pools.isPaused(shard.name),
        own.reduce((sum, c) => sum + c.open, 0),
        own.reduce((sum, c) => sum + c.inUse, 0),
        own.reduce((sum, c) => sum + c.waiting, 0),
      ];
    });
  },
  finish: (rows) =>
    groupRows(rows, 1, (into, row) => {
      into[7] = into[7] === true || row[7] === true;
      sumColumns(8, 11)(into, row);
    }),
};

export const KEYSPACES: View<ProcessState> = {
  name: 'keyspaces',
  about: 'keyspaces, with their keys and tables',
  shared: true,
  columns: columns('name method key_types tables:int8 table_names ranges:int8 shards epoch:int8'),
  rows: ({ live }) =>
    [...live.current.keyspaces.values()].map((k) => [
      k.name,
      k.method,
      k.keyTypes.join(', '),
      k.tables.length,
      k.tables.map((t) => `${t.schema}.${t.table}`).join(', '),
      k.ranges.length,
      [...new Set(k.ranges.map((r) => r.shard))].join(', '),
      String(live.current.epoch),
    ]),
};

export const RANGES: View<ProcessState> = {
  name: 'ranges',
  about: 'who owns which range; a bound that is missing is infinity',
  shared: true,
  columns: columns('id:int8 keyspace lo hi shard held:bool'),
  rows: ({ live }) =>
    [...live.current.keyspaces.values()].flatMap((keyspace) =>
      keyspace.ranges.map((range): Row => {
        const held = live.holds.some((hold) => hold.keyspace === keyspace.name && overlaps(hold, range));
        return [
          String(range.id),
          keyspace.name,
          positionToJson(keyspace, range.lo)?.join(', ') ?? null,
          positionToJson(keyspace, range.hi)?.join(', ') ?? null,
          range.shard,
          held,
        ];
      }),
    ),
};

export const MIGRATIONS: View<ProcessState> = {
  name: 'migrations',
  about: 'migrations, newest first (from the catalog)',
  shared: true,
  columns: columns(`id:int8 plan_id:int8 kind state keyspace from_shard to_shard rows_copied:int8 rows_total:int8
    bytes_copied:int8 bytes_total:int8 lag_bytes:int8 eta_seconds:float8 pause_ms:float8 error created_at updated_at`),
  rows: ({ catalog }) =>
    ask(
      catalog,
      `SELECT id::text, plan_id::text, kind, state, spec->>'keyspace', spec->>'from', spec->>'to', progress->>'rowsCopied',
              progress->>'rowsTotal', progress->>'bytesCopied', progress->>'bytesTotal', progress->>'lagBytes',
              progress->>'etaSeconds', progress->>'pauseMs', error, ${utc('created_at')}, ${utc('updated_at')}
         FROM foreshard.migration ORDER BY id DESC LIMIT 1000`,
    ),
};

export const PLANS: View<ProcessState> = {
  name: 'plans',
  about: 'plans, newest first (from the catalog)',
  shared: true,
  columns: columns('id:int8 status epoch:int8 hash created_at decided_by decided_at expires_at'),
  rows: ({ catalog }) =>
    ask(
      catalog,
      `SELECT id::text, status, epoch::text, hash, ${utc('created_at')}, decided_by, ${utc('decided_at')}, ${utc('expires_at')}
         FROM foreshard.plan ORDER BY id DESC LIMIT 1000`,
    ),
};

/** As PgBouncer writes times. */
function utc(column: string): string {
  return `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')`;
}

/** Rows of text. @throws ForeshardError 57P03 when there is no answer in time */
async function ask(catalog: Catalog, sql: string): Promise<readonly Row[]> {
  const query = { text: sql, rowMode: 'array' as const, query_timeout: CATALOG_MS };
  const asked = catalog.pool.query<(string | null)[]>(query as pg.QueryArrayConfig);
  // It may fail after nobody waits for it any more.
  asked.catch(() => undefined);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${CATALOG_MS} ms`)), CATALOG_MS);
  });
  try {
    return (await Promise.race([asked, late])).rows;
  } catch (error) {
    throw new ForeshardError('57P03', 'the catalog cannot be asked', {
      detail: error instanceof Error ? error.message : String(error),
      hint: 'Everything that is not from the catalog is still shown; the catalog must be reachable for this.',
      cause: error,
    });
  } finally {
    clearTimeout(timer);
  }
}
