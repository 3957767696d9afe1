import { loadModule } from 'libpg-query';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { EMPTY_METADATA } from '../../../proxy/router/metadata.js';
import type { Router } from '../../../proxy/router/router.js';
import { TextReader } from '../../../proxy/router/text-reader.js';
import type { Topology } from '../../../topology/topology.js';
import { buildCli } from '../../cli/run-cli.js';
import { makeRouter, SESSION, soleTopology, spreadTopology, summary } from './setting.js';

const readers: TextReader[] = [];

function reader(program?: string): TextReader {
  const made =
    program === undefined
      ? new TextReader()
      : new TextReader(new URL(`data:text/javascript,${encodeURIComponent(program)}`));
  readers.push(made);
  return made;
}

/** INSERT of so many rows, each with the next of these tenants; neighbours are not alike, so that the template is as long as the text. */
function rows(count: number, tenants: readonly number[]): Buffer {
  const note = (i: number) => (i % 2 === 0 ? `'note ${i}'` : 'DEFAULT');
  const values = Array.from({ length: count }, (_, i) => `(${tenants[i % tenants.length]}, ${i}, ${note(i)})`);
  return Buffer.from(`INSERT INTO orders (tenant_id, id, note) VALUES ${values.join(', ')}`);
}

function goesTo(router: Router, text: Buffer, topology: Topology): string[] {
  const analyzed = router.analyze(text, SESSION);
  return analyzed.statements.map((_, i) => summary(router.route(analyzed, i, null, topology)));
}

// The thread runs what is built.
beforeAll(async () => {
  await buildCli();
  await loadModule();
}, 300_000);
afterEach(() => {
  for (const r of readers.splice(0)) r.close();
});

describe('a text of more than 4 MiB', () => {
  const router = () => makeRouter(() => spreadTopology());
  const insert = (values: string) => Buffer.from(`INSERT INTO orders (tenant_id, id, note) VALUES ${values}`);

  it('is parsed when it is that long by a large literal', () => {
    const text = insert(`(150, 1, '${'x'.repeat(5_000_000)}')`);
    expect(goesTo(router(), text, spreadTopology())).toEqual(
      goesTo(router(), insert(`(150, 1, 'x')`), spreadTopology()),
    );
  });

  it('is not when it is so by many small ones', () => {
    const text = insert(
      Array.from({ length: 600_000 }, (_, i) => (i % 2 === 0 ? `(1, 2, 3)` : `(1, 2, DEFAULT)`)).join(),
    );
    const routed = router();
    expect(goesTo(routed, text, spreadTopology()).join()).toMatch(/as long as this is not supported on several shards/);
    expect(routed.counters.parses).toBe(0);
  });
});

describe('a long text is read in another thread', () => {
  const topology = spreadTopology();
  const several = `SET application_name = 'x'; ${'SELECT 1; '.repeat(20_000)} SELECT * FROM orders WHERE tenant_id = 150`;
  it.each([
    ['rows of one shard', rows(5000, [1, 2, 3])],
    ['rows of two shards', rows(5000, [1, 150])],
    ['several statements', Buffer.from(several)],
    ['a text that does not parse', Buffer.concat([rows(5000, [1]), Buffer.from(' nonsense nonsense')])],
    [
      'a body with statements inside',
      Buffer.from(`CREATE FUNCTION f() RETURNS int BEGIN ATOMIC ${several}; END; SELECT 1`),
    ],
  ])('as it would be here: %s', async (_, text) => {
    const here = makeRouter(() => topology);
    const ahead = makeRouter(() => topology, reader());
    await ahead.readAhead(text, SESSION);
    expect(goesTo(ahead, text, topology)).toEqual(goesTo(here, text, topology));
    expect(ahead.counters.parses).toBe(0);
    expect(here.counters.parses).toBe(1);
    expect(ahead.analyze(text, SESSION).statements).toEqual(here.analyze(text, SESSION).statements);
  });

  it('and this one serves others meanwhile', async () => {
    const router = makeRouter(() => topology, reader());
    let turns = 0;
    let done = false;
    const reading = router.readAhead(rows(50_000, [1]), SESSION)?.then(() => {
      done = true;
    });
    while (!done) {
      turns += 1;
      await new Promise((resolve) => setImmediate(resolve));
    }
    await reading;
    expect(turns).toBeGreaterThan(10);
  });

  it('for the tables of then: with others it is read again', async () => {
    let now = soleTopology();
    const router = makeRouter(() => now, reader());
    const text = rows(5000, [1]);
    await router.readAhead(text, SESSION);
    now = { ...topology, shardedTables: new Map(), keyspaces: new Map() };
    router.analyze(text, SESSION);
    expect(router.counters.parses).toBe(1);
  });

  it('unless it is short, or its template is known', async () => {
    const router = makeRouter(() => topology, reader());
    const note = (length: number) => Buffer.from(`SELECT * FROM orders WHERE note = '${'x'.repeat(length)}'`);
    expect(router.readAhead(Buffer.from('SELECT 1'), SESSION)).toBeNull();
    await router.readAhead(note(100_000), SESSION);
    router.analyze(note(1), SESSION);
    expect(router.readAhead(note(100_000), SESSION)).toBeNull();
    // Nor if it is long only because it has many rows.
    const same = Array.from({ length: 5000 }, (_, i) => `(1, ${i}, 'note ${i}')`).join(', ');
    const text = Buffer.from(`INSERT INTO orders (tenant_id, id, note) VALUES ${same}`);
    expect(text.length).toBeGreaterThan(64 * 1024);
    expect(router.readAhead(text, SESSION)).toBeNull();
    expect(goesTo(router, text, topology)).toEqual(['a']);
  });
});

describe('the thread', () => {
  const topology = spreadTopology();
  const text = rows(5000, [1]);

  it('whose end is a text: that text is taken for one too long to be read', async () => {
    const dies = reader(`import { parentPort } from 'node:worker_threads';
      parentPort.on('message', () => process.exit(1)); parentPort.postMessage('ready');`);
    const router = makeRouter(() => topology, dies);
    await router.readAhead(text, SESSION);
    expect(goesTo(router, text, topology)).toEqual([expect.stringContaining('refused 0A000')]);
    expect(router.counters.parses).toBe(0);
    expect(dies.waiting).toBe(0);
  });

  it('whose heap a text has filled is followed by another for those that wait', async () => {
    const dies = reader(`import { parentPort } from 'node:worker_threads';
      parentPort.on('message', ({ id, text }) => {
        for (const all = []; text.length > 1_000_000; ) all.push(new Array(100_000).fill(id));
        parentPort.postMessage({ id, reading: null });
      });
      parentPort.postMessage('ready');`);
    const large = Buffer.alloc(1_500_000, 0x20);
    const about = { topology, metadata: EMPTY_METADATA, searchPath: ['public'] };
    const outcomes = [large, text, large, text].map((one) => dies.read(one, about));
    expect(await Promise.all(outcomes)).toEqual(['too large', null, 'too large', null]);
  });

  it('that cannot be started: texts are read here', async () => {
    const router = makeRouter(() => topology, reader(`throw new Error('no');`));
    await router.readAhead(text, SESSION);
    expect(goesTo(router, text, topology)).toEqual(['a']);
    expect(router.counters.parses).toBe(1);
  });

  it('that is closed with texts to read leaves nobody waiting', async () => {
    const closed = reader();
    const router = makeRouter(() => topology, closed);
    const reading = router.readAhead(text, SESSION);
    closed.close();
    await reading;
    expect(goesTo(router, text, topology)).toEqual(['a']);
  });
});
