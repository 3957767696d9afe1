import { positionToJson } from '../../topology/key-codec.js';
import type { ProcessState } from './process-state.js';
import { columns, groupRows, type Row, sumColumns, type View } from './view.js';

/** Where in a row stands how far behind it is, and from where on there are counts. */
const BEHIND = 8;
const COUNTS = 9;

/** Intervals that are read at another shard than their owner. */
export const REPLICAS: View<ProcessState> = {
  name: 'replicas',
  about:
    'intervals that may be read at another shard, and how many reads were; behind_ms is empty while nobody wants to read there',
  columns:
    columns(`migration:int8 keyspace lo hi source shard max_staleness_ms:int4 read_percent:int4 behind_ms:float8 reads:int8
    behind:int8 failed:int8`),
  rows: ({ replicas, live }) =>
    replicas.served.map(({ replica, follower, counts }): Row => {
      const keyspace = live.current.keyspaces.get(replica.keyspace);
      const bound = (p: typeof replica.lo) =>
        keyspace === undefined ? null : (positionToJson(keyspace, p)?.join(', ') ?? null);
      return [
        String(replica.id),
        replica.keyspace,
        bound(replica.lo),
        bound(replica.hi),
        replica.source,
        replica.shard,
        replica.maxStalenessMs,
        replica.readPercent,
        follower.progress === null ? null : performance.now() - follower.progress.asOf,
        counts.reads,
        counts.behind,
        counts.failed,
      ];
    }),
  finish: (rows) =>
    groupRows(rows, BEHIND, (into, row) => {
      if (row[BEHIND] !== null) into[BEHIND] = Math.max(Number(into[BEHIND] ?? 0), Number(row[BEHIND]));
      sumColumns(COUNTS, COUNTS + 3)(into, row);
    }),
};
