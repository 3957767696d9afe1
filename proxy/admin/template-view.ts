import { LatencySketch } from '../telemetry/latency-sketch.js';
import type { ProcessState } from './process-state.js';
import { columns, groupRows, type Row, type View } from './view.js';

const QUANTILES = [0.5, 0.95, 0.99];
/** Raw rows: template, route, calls, writes, rows, bytes, ms, spread, lanes, sketch. */
const SKETCH = 9;

/** Statements by template, the most expensive first. */
export const TEMPLATES: View<ProcessState> = {
  name: 'templates',
  about: 'statements without their literals: calls, latency in microseconds, where they run',
  columns: columns(`template calls:int8 writes:int8 rows:int8 bytes:int8 total_time:int8 avg_time:int8 p50_time:int8
    p95_time:int8 p99_time:int8 route way spread_calls:int8 lane_calls:int8`),
  rows: ({ templates }) =>
    [...templates].map(
      (t): Row => [
        t.template,
        t.route,
        t.calls,
        t.writes,
        t.rows,
        t.bytes,
        t.ms,
        t.spread,
        t.lanes,
        t.latency.encode(),
      ],
    ),
  finish: (rows) =>
    groupRows(rows, 1, (into, row) => {
      if (into[1] !== row[1]) into[1] = null;
      for (let i = 2; i < SKETCH; i++) into[i] = Number(into[i]) + Number(row[i]);
      const sketch = LatencySketch.decode(String(into[SKETCH]));
      sketch.merge(LatencySketch.decode(String(row[SKETCH])));
      into[SKETCH] = sketch.encode();
    })
      .sort((a, b) => Number(b[6]) - Number(a[6]))
      .map(finishOne),
};

function finishOne([template, route, calls, writes, rows, bytes, ms, spread, lanes, encoded]: Row): Row {
  const sketch = LatencySketch.decode(String(encoded));
  return [
    template ?? null,
    calls ?? null,
    writes ?? null,
    rows ?? null,
    bytes ?? null,
    Math.round(Number(ms) * 1000),
    Math.round((Number(ms) * 1000) / Number(calls)),
    ...QUANTILES.map((q) => Math.round(sketch.quantileUs(q))),
    route ?? '(several)',
    spread === calls ? 'fan-out' : 2 * Number(lanes) > Number(calls) ? 'lane' : 'lease',
    spread ?? null,
    lanes ?? null,
  ];
}
