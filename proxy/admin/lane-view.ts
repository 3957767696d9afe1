import { LatencySketch } from '../telemetry/latency-sketch.js';
import type { ProcessState } from './process-state.js';
import { columns, groupRows, type Row, type View } from './view.js';

const QUANTILES = [0.5, 0.95, 0.99];
/** Raw rows: shard, user, lanes, in line, reads, joined, late, rescued, lost, sketch of waits. */
const SKETCH = 9;

/** Server connections that several clients' reads share. */
export const LANES: View<ProcessState> = {
  name: 'lanes',
  about:
    'server connections that reads of several clients share, and how long reads wait there for those ahead of them, in microseconds',
  columns:
    columns(`shard user lanes:int4 in_line:int4 reads:int8 joined:int8 late:int8 rescued:int8 lost:int8 p50_wait:int8
    p95_wait:int8 p99_wait:int8`),
  rows: ({ pools }) =>
    [...pools.all].map((pool): Row => {
      const lanes = pools.lanesOf(pool);
      const { reads, joined, late, rescued, lost } = lanes.totals;
      return [
        pool.shard,
        pool.user,
        pool.status.lanes,
        lanes.depth,
        reads,
        joined,
        late,
        rescued,
        lost,
        lanes.waits.encode(),
      ];
    }),
  finish: (rows) =>
    groupRows(rows, 2, (into, row) => {
      for (let i = 2; i < SKETCH; i++) into[i] = Number(into[i]) + Number(row[i]);
      const sketch = LatencySketch.decode(String(into[SKETCH]));
      sketch.merge(LatencySketch.decode(String(row[SKETCH])));
      into[SKETCH] = sketch.encode();
    }).map((row) => {
      const sketch = LatencySketch.decode(String(row[SKETCH]));
      return [...row.slice(0, SKETCH), ...QUANTILES.map((q) => Math.round(sketch.quantileUs(q)))];
    }),
};
