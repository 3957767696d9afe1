import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { type MetadataJson, parseMetadata } from '../../../proxy/router/metadata.js';
import { Router } from '../../../proxy/router/router.js';
import type { Keyspace, KeyspaceName, ShardName, Topology } from '../../../topology/topology.js';
import { tableId } from '../../../topology/topology.js';
import { METADATA, SESSION, spreadTopology, summary, texts } from './setting.js';

beforeAll(() => loadModule());

const base = spreadTopology();
const shop = base.keyspaces.get('shop' as KeyspaceName) as Keyspace;

/** Items in a keyspace of their own, whose ranges are on these shards: below 100, below 200, the rest. */
function separated(...shards: string[]): Topology {
  const name = 'parts' as KeyspaceName;
  const tables = shop.tables.filter((t) => t.table === 'items').map((t) => ({ ...t, keyspace: name }));
  const ranges = shop.ranges.map((r, i) => ({ ...r, keyspace: name, shard: shards[i] as ShardName }));
  return {
    ...base,
    keyspaces: new Map(base.keyspaces)
      .set(shop.name, { ...shop, tables: shop.tables.filter((t) => t.table !== 'items') })
      .set(name, { ...shop, name, tables, ranges }),
    shardedTables: new Map([...base.shardedTables, ...tables.map((t) => [tableId(t), t] as const)]),
  };
}

const together = separated('a', 'b', 'c');
const apart = separated('a', 'a', 'c');

function go(
  topology: Topology,
  sql: string,
  params: (string | null)[] = [],
  metadata: MetadataJson = METADATA,
): string {
  const parsed = parseMetadata(JSON.stringify(metadata));
  const router = new Router({ topology: () => topology, metadata: () => parsed });
  return summary(router.route(router.analyze(Buffer.from(sql), SESSION), 0, texts(...params), topology));
}

const APART = 'refused 0A000: this statement uses tables of keyspaces';

describe('tables of two keyspaces', () => {
  it.each([
    ['SELECT * FROM orders o JOIN items i ON i.tenant_id = o.tenant_id WHERE o.tenant_id = 5', 'a', 'a'],
    ['SELECT * FROM orders o JOIN items i ON i.tenant_id = o.tenant_id WHERE o.tenant_id = 150', 'b', 'gather b a'],
    ['SELECT * FROM orders o JOIN items i USING (tenant_id) WHERE tenant_id = $1 ORDER BY 1', 'b', 'gather b a', '150'],
    ['SELECT * FROM orders o JOIN items i USING (tenant_id) WHERE tenant_id = $1 FOR UPDATE', 'b', APART, '150'],
    ['EXPLAIN SELECT * FROM orders o JOIN items i USING (tenant_id) WHERE tenant_id = $1', 'b', APART, '150'],
    [
      'SELECT count(*) FROM orders WHERE tenant_id = 150 AND id IN (SELECT order_id FROM items WHERE tenant_id = 150)',
      'b',
      'gather b a',
    ],
    [
      'SELECT count(*) FROM orders o, items i WHERE o.tenant_id = 150 AND i.tenant_id = 250',
      'gather b c',
      'gather b c',
    ],
    ['SELECT count(*) FROM orders o, items i WHERE o.tenant_id = 5 AND i.tenant_id = 150', 'gather a b', 'a'],
    ['INSERT INTO items SELECT tenant_id, id, note, 1 FROM orders WHERE tenant_id = 150', 'b', APART],
    ['UPDATE items SET qty = 1 FROM orders o WHERE o.tenant_id = items.tenant_id AND o.tenant_id = 150', 'b', APART],
    ['DELETE FROM items USING orders o WHERE o.tenant_id = items.tenant_id AND items.tenant_id = 150', 'b', APART],
    [
      'WITH i AS (DELETE FROM items WHERE tenant_id = 150 RETURNING *) INSERT INTO orders SELECT tenant_id, 1 FROM i',
      'refused 0A000',
      'refused 0A000',
    ],
    // Without a key, and of several
    ['SELECT o.id, i.sku FROM orders o JOIN items i USING (tenant_id)', 'fanout a b c', 'gather a b c'],
    [
      'SELECT o.id, i.sku FROM orders o LEFT JOIN items i ON i.tenant_id = o.tenant_id WHERE o.tenant_id IN (5, 150)',
      'fanout a b',
      'gather a b',
    ],
    ['SELECT o.id FROM orders o, items i', 'gather a b c', 'gather a b c'],
    ['SELECT o.id FROM orders o JOIN items i USING (tenant_id) ORDER BY 1', 'gather a b c', 'gather a b c'],
    [
      'DELETE FROM items USING orders o WHERE o.tenant_id = items.tenant_id',
      'refused 0A000: DELETE does not say',
      APART,
    ],
    // A NULL does not say where the tables of its keyspace are.
    [
      'SELECT count(*) FROM orders o, items i WHERE o.tenant_id = $1 AND i.tenant_id = $1',
      'any a b c',
      'any a c',
      null,
    ],
    ['SELECT count(*) FROM orders o, items i WHERE o.tenant_id = 150 AND i.tenant_id = $1', 'b', APART, null],
    ['SELECT count(*) FROM orders o, items i WHERE o.tenant_id = 250 AND i.tenant_id = $1', 'c', 'c', null],
    // One of them
    ['SELECT * FROM items WHERE tenant_id = 150', 'b', 'a'],
    ['SELECT * FROM orders WHERE tenant_id = 150', 'b', 'b'],
    ['SELECT sku FROM items', 'fanout a b c', 'fanout a c'],
  ] as [string, string, string, ...(string | null)[]][])('%s', (sql, before, after, ...params) => {
    expect(go(together, sql, params).slice(0, before.length)).toBe(before);
    expect(go(apart, sql, params).slice(0, after.length)).toBe(after);
  });

  it('are told of by their names, in the refusal', () => {
    const router = new Router({ topology: () => apart, metadata: () => parseMetadata(JSON.stringify(METADATA)) });
    const text = Buffer.from('SELECT * FROM orders o JOIN items i USING (tenant_id) WHERE tenant_id = 150 FOR SHARE');
    expect(router.route(router.analyze(text, SESSION), 0, null, apart)).toMatchObject({
      kind: 'refused',
      refusal: {
        sqlstate: '0A000',
        message: 'this statement uses tables of keyspaces "shop" and "parts", whose rows are on different shards',
        hint: 'Use the tables of each keyspace in a statement of its own: "shop" has tenants, orders, Notes; "parts" has items.',
      },
    });
  });
});

describe('what a sharded table runs behind a statement’s back', () => {
  const fires = (table: string, name: string, text: string): MetadataJson => ({
    ...METADATA,
    functions: [
      ...METADATA.functions,
      { schema: 'public', name, immutable: false, native: false, opaque: false, body: text },
    ],
    runs: [...(METADATA.runs ?? []), { schema: 'public', table, kind: 'fires', name }],
  });
  const write = 'UPDATE orders SET note = NULL WHERE tenant_id = 5';
  const BEHIND = 'refused 0A000: "orders" has triggers';

  it.each([
    ['BEGIN NEW.note := 1; RETURN NEW; END', 'a', 'a'],
    ['BEGIN INSERT INTO settings VALUES (1); RETURN NEW; END', 'a', 'a'],
    ['BEGIN UPDATE tenants SET name = 1 WHERE id = NEW.tenant_id; RETURN NEW; END', 'a', 'a'],
    // In its own keyspace until they are separated.
    ['BEGIN INSERT INTO items VALUES (NEW.tenant_id); RETURN NEW; END', 'a', BEHIND],
    ['BEGIN INSERT INTO docs VALUES (1); RETURN NEW; END', BEHIND, BEHIND],
    ['BEGIN INSERT INTO countries VALUES (1); RETURN NEW; END', BEHIND, BEHIND],
    ["BEGIN EXECUTE 'x'; RETURN NEW; END", BEHIND, BEHIND],
  ])('%s', (text, before, after) => {
    const metadata = fires('orders', 'on_order', text);
    expect(go(base, write, [], metadata).slice(0, before.length)).toBe(before);
    expect(go(together, write, [], metadata).slice(0, after.length)).toBe(after);
    expect(go(together, 'SELECT * FROM orders WHERE tenant_id = 5', [], metadata)).toBe('a');
    expect(go(together, 'UPDATE tenants SET name = NULL WHERE id = 5', [], metadata)).toBe('a');
  });

  // tgtype of a trigger on it: INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32.
  const INSERT = 'INSERT INTO orders (tenant_id, id) VALUES (5, 1)';
  const DELETE = 'DELETE FROM orders WHERE tenant_id = 5';
  const MERGE =
    'MERGE INTO orders o USING (SELECT 5 AS t) s ON o.tenant_id = s.t AND o.tenant_id = 5 WHEN MATCHED THEN DELETE';
  const UPSERT = `${INSERT} ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'x'`;
  it.each([
    [4, [INSERT, UPSERT, MERGE, `${INSERT} ON CONFLICT DO NOTHING`], [write, DELETE]],
    [8, [DELETE, MERGE], [INSERT, UPSERT, write]],
    [16, [write, UPSERT, MERGE], [INSERT, `${INSERT} ON CONFLICT DO NOTHING`, DELETE]],
    [4 | 16, [write, INSERT, UPSERT], [DELETE]],
    [32, [MERGE], [INSERT, UPSERT, write, DELETE]],
  ])('a trigger for %s is a reason only where it fires', (events, refused, goes) => {
    const all = fires('orders', 'on_order', 'BEGIN INSERT INTO docs VALUES (1); RETURN NEW; END');
    const runs = all.runs?.map((r) => (r.name === 'on_order' ? { ...r, events } : r)) ?? [];
    const metadata = { ...all, runs };
    for (const text of refused) expect(go(base, text, [], metadata)).toContain(BEHIND);
    for (const text of goes) expect(go(base, text, [], metadata)).toBe('a');
    // Of a partitioned table an update may move rows: it inserts and deletes.
    const relations = all.relations.map((r) => (r.table === 'orders' ? { ...r, kind: 'p' } : r));
    const partitioned = go(base, write, [], { ...metadata, relations });
    if (events === 32) expect(partitioned).toBe('a');
    else expect(partitioned).toContain(BEHIND);
  });

  it('a foreign key that cascades runs the triggers for what it does', () => {
    const all = fires('orders', 'on_order', 'BEGIN INSERT INTO docs VALUES (1); RETURN NEW; END');
    const edges = [
      ...(METADATA.edges ?? []),
      { schema: 'public', table: 'tenants', kind: 'writes' as const, to: ['public', 'orders'] as const },
    ];
    const at = (events: number, text: string) =>
      go(base, text, [], {
        ...all,
        edges,
        runs: (all.runs ?? []).map((r) => (r.name === 'on_order' ? { ...r, events } : r)),
      });
    const [insert, update, del] = [
      'INSERT INTO tenants (id) VALUES (5)',
      'UPDATE tenants SET name = NULL WHERE id = 5',
      'DELETE FROM tenants WHERE id = 5',
    ];
    const REFUSED = /^refused 0A000: "tenants" has triggers/;
    for (const text of [insert, update, del]) expect(at(4, text)).toBe('a');
    for (const text of [insert, update]) expect(at(8, text)).toBe('a');
    expect(at(8, del)).toMatch(REFUSED);
    expect(at(16, insert)).toBe('a');
    // ON UPDATE CASCADE, ON DELETE SET NULL.
    for (const text of [update, del]) expect(at(16, text)).toMatch(REFUSED);
  });

  it.each([
    ['uuid_generate_v4', 'a'],
    ['nextval', 'a'],
    ['now', 'a'],
    ['in_c', BEHIND],
    ['nobody_knows_it', BEHIND],
  ])('a default that calls %s()', (name, expected) => {
    const metadata = { ...METADATA, runs: [{ schema: 'public', table: 'orders', kind: 'fires' as const, name }] };
    metadata.builtins = { ...METADATA.builtins, nextval: 'other' };
    expect(go(base, write, [], metadata).slice(0, expected.length)).toBe(expected);
  });

  it.each([
    ['SELECT max(body) FROM docs', BEHIND],
    ['SELECT $1 IN (TABLE docs)', BEHIND],
    ['SELECT looks_up($1)', BEHIND],
    ["BEGIN EXECUTE 'x'; END", BEHIND],
    // A query that reads no table, whatever words it has; one in its own keyspace; and what cannot be read.
    ["SELECT CASE docs WHEN 'create' THEN 'reset' END", 'a'],
    ['SELECT min(id) FROM tenants', 'a'],
    ['', 'a'],
  ])('a function that is declared IMMUTABLE is read: %s', (text, expected) => {
    const all = fires('orders', 'allowed', text);
    const functions = all.functions.map((f) => (f.name === 'allowed' ? { ...f, immutable: true, opaque: !text } : f));
    const looksUp = { ...functions.at(-1), name: 'looks_up', body: 'SELECT 1 FROM docs' } as (typeof functions)[number];
    const metadata = { ...all, functions: [...functions, looksUp] };
    expect(go(base, write, [], metadata).slice(0, expected.length)).toBe(expected);
    expect(go(base, 'SELECT * FROM orders WHERE tenant_id = 5', [], metadata)).toBe('a');
  });

  it.each([
    ['INSERT INTO orders (tenant_id, id) VALUES (%, 1)', 'orders', 'orders'],
    ['UPDATE orders SET note = NULL WHERE tenant_id = %', 'orders', 'orders'],
    // It deletes orders.
    ['DELETE FROM tenants WHERE id = %', 'orders', 'tenants'],
    ['INSERT INTO tenants (id) VALUES (%)', 'orders', null],
    ['SELECT * FROM orders WHERE tenant_id = %', 'orders', null],
    ['INSERT INTO orders (tenant_id, id) VALUES (%, 1)', 'tenants', null],
  ])('a function that uses a table of no keyspace is for the home shard: %s', (text, firing, refused) => {
    const edges = [{ schema: 'public', table: 'tenants', kind: 'writes' as const, to: ['public', 'orders'] as const }];
    for (const body of ['SELECT value FROM settings', 'SELECT read_value()', 'SELECT name FROM setting_names']) {
      const all = fires(firing, 'looks', body);
      const metadata = { ...all, edges: [...(METADATA.edges ?? []), ...edges] };
      expect(go(base, text.replace('%', '5'), [], metadata)).toBe('a');
      expect(go(base, text.replace('%', '150'), [], metadata)).toBe(
        refused === null
          ? 'b'
          : `refused 0A000: "${refused}" has triggers, rules, policies, defaults, checks or other parts that may use tables that only shard "a" has, and the rows are on another shard`,
      );
    }
  });

  it('is no reason while one shard has everything', () => {
    const sole: Topology = {
      ...together,
      keyspaces: new Map(
        [...together.keyspaces].map(([name, k]) => [
          name,
          { ...k, ranges: k.ranges.map((r) => ({ ...r, shard: 'a' as ShardName })) },
        ]),
      ),
    };
    const metadata = fires('orders', 'on_order', 'BEGIN INSERT INTO docs VALUES (1); RETURN NEW; END');
    expect(go(sole, write, [], metadata)).toBe('a');
  });

  it('follows the foreign keys that cascade', () => {
    const metadata: MetadataJson = {
      ...fires('orders', 'on_order', 'BEGIN INSERT INTO docs VALUES (1); RETURN NEW; END'),
      edges: [
        ...(METADATA.edges ?? []),
        { schema: 'public', table: 'tenants', kind: 'writes', to: ['public', 'orders'] },
        { schema: 'public', table: 'orders', kind: 'checks', to: ['public', 'countries'] },
      ],
    };
    expect(go(base, 'DELETE FROM tenants WHERE id = 5', [], metadata)).toMatch(
      /^refused 0A000: "tenants" has triggers/,
    );
    expect(go(base, 'DELETE FROM tenants WHERE id = 5', [], { ...metadata, runs: [] })).toBe('a');
  });
});
