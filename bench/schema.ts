/**
 * What a large schema costs: the reading of it, on the server and in the process, and the look whether it has changed.
 * Run: npx tsc && node dist/bench/schema.js [tables, default 10,000] [functions, default 5,000]
 */
import { cpus } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import pg from 'pg';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { EMPTY_METADATA, loadMetadata, type Metadata, schemaSignature } from '../proxy/router/metadata.js';

const tables = Number(process.argv[2] ?? 10_000);
const functions = Number(process.argv[3] ?? 5_000);
/** Of them one statement's worth: a transaction has only so many locks. */
const BATCH = 500;

const cluster = await EmbeddedCluster.start({ settings: { fsync: 'off' } });
try {
  const pool = new pg.Pool({ connectionString: cluster.url('postgres'), max: 1 });
  for (let from = 1; from <= tables; from += BATCH) {
    const to = Math.min(tables, from + BATCH - 1);
    await pool.query(`DO $$ BEGIN FOR i IN ${from} .. ${to} LOOP
      EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, tenant_id bigint NOT NULL DEFAULT 0, name text, at timestamptz DEFAULT now(), n int CHECK (n > 0))', i);
      EXECUTE format('CREATE INDEX ON t%s (tenant_id, at)', i);
      EXECUTE format('CREATE VIEW v%s AS SELECT id, upper(name) AS name FROM t%s WHERE n > 1', i, i);
    END LOOP; END $$`);
  }
  for (let from = 1; from <= functions; from += BATCH) {
    const to = Math.min(functions, from + BATCH - 1);
    await pool.query(`DO $$ BEGIN FOR i IN ${from} .. ${to} LOOP
      EXECUTE format('CREATE FUNCTION f%s(a bigint) RETURNS bigint LANGUAGE plpgsql AS %L', i,
        'DECLARE r bigint; BEGIN ' || repeat(format('SELECT count(*) INTO r FROM t%s WHERE tenant_id = a; ', i), 20) || 'RETURN r; END');
    END LOOP; END $$`);
  }
  await pool.query('VACUUM ANALYZE');
  const log = (line: string) => process.stdout.write(`${line}\n`);
  log(
    `${cpus()[0]?.model.trim()}, ${cpus().length} processors, Node ${process.version}; ${tables} tables with an index and a view each, ${functions} functions`,
  );
  let last: Metadata = EMPTY_METADATA;
  for (let i = 0; i < 6; i++) {
    const delay = monitorEventLoopDelay({ resolution: 1 });
    delay.enable();
    const began = performance.now();
    await schemaSignature(pool);
    const looked = performance.now();
    // To the first three it is new.
    last = await loadMetadata(pool, i < 3 ? EMPTY_METADATA : last);
    const read = performance.now();
    delay.disable();
    log(
      `${i < 3 ? 'new' : 'as before'}: looked in ${(looked - began).toFixed(0)} ms, read ${(last.json.length / 1e6).toFixed(1)} MB in ${(read - looked).toFixed(0)} ms; ` +
        `the event loop stood still for up to ${(delay.max / 1e6).toFixed(0)} ms; RSS ${(process.memoryUsage().rss / 1e6).toFixed(0)} MB`,
    );
  }
  await pool.end();
} finally {
  await cluster.stop();
}
