import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { Lexer } from '../../../proxy/router/lexer.js';
import { parseMetadata } from '../../../proxy/router/metadata.js';
import { readText } from '../../../proxy/router/reading.js';
import { registryOf } from '../../../proxy/router/registry.js';
import type { KeySource, StatementPlan } from '../../../proxy/router/route.js';
import { METADATA, makeRouter, SESSION, spreadTopology, summary, texts } from './setting.js';
import { SqlGenerator } from './sql-generator.js';

beforeAll(() => loadModule());

const topology = spreadTopology();
const metadata = parseMetadata(JSON.stringify(METADATA));

function key(sql: string): string {
  const lexer = new Lexer();
  expect(lexer.scan(Buffer.from(sql)), sql).toBe(true);
  return lexer.key();
}

describe('lists in a template', () => {
  it.each([
    [
      'select * from orders where id in (1)',
      ['select * from orders where id in (2, 3)', 'select * from orders where id in (4, 5, 6, 7)'],
    ],
    [
      "select 1 where a in ('x', 'y') and b = 5",
      ["select 1 where a in ('z') and b = 7", "select 1 where a in (E'x', $$y$$, 'z') and b = 0"],
    ],
    ['select 1 where a in ($1) and b = $2', ['select 1 where a in ($1, $2, $3) and b = $4']],
    ['select 1 where (a, b) in ((1, 2))', ['select 1 where (a, b) in ((3, 4), (5, 6))']],
    ['select 1 where (a, b) in (($1, $2)) and c = $3', ['select 1 where (a, b) in (($1, $2), ($3, $4)) and c = $5']],
    ['select 1 where a not in (-1, -2)', ['select 1 where a not in (-1)']],
    ["insert into t values (1, 'a')", ["insert into t values (2, 'b'), (3, 'c'), (4, 'd')"]],
    [
      'insert into t (a, b) values ($1, $2) returning a',
      ['insert into t (a, b) values ($1, $2), ($3, $4), ($5, $6) returning a'],
    ],
    [
      'insert into t values ($1, now(), $2::jsonb) on conflict (a) do update set b = $3',
      ['insert into t values ($1, now(), $2::jsonb), ($3, now(), $4::jsonb) on conflict (a) do update set b = $5'],
    ],
    [
      'select 1 where a in (select b from t where c in (1, 2))',
      ['select 1 where a in (select b from t where c in (1))'],
    ],
    [
      'select 1 where a in ($1) and b in ($2) and c = $3',
      ['select 1 where a in ($1, $2) and b in ($3, $4, $5) and c = $6'],
    ],
    [
      "insert into t values (1, 'a', 2)",
      [
        "insert into t values ('1', null, TRUE), (NULL /* it */ , E'b', 1.5), (False, 99999999999, $$c$$)",
        'INSERT INTO t VALUES ( NULL , NULL , NULL )',
      ],
    ],
    ["begin; insert into t values (1), ('a')", ['begin; insert into t values (null)']],
    ['insert into t values (array[1, 2, 3], f(1, 2), 1)', ['insert into t values (array[1, 2, 3], f(1, 2), null)']],
    // $1 is what it was before the list.
    ['select $1 where a in ($2) and b = $1', ['select $1 where a in ($2, $3, $4) and b = $1']],
  ] as [string, string[]][])('%s has the template of longer ones', (one, others) => {
    for (const other of others) expect(key(other)).toBe(key(one));
  });

  it.each([
    ['select 1 where a in (1, 2)', 'select f(1, 2)'],
    ['select f(1)', 'select f(1, 2)'],
    ['select public.in(1)', 'select public.in(1, 2)'],
    ['select public.values(1)', 'select public.values(1), (2)'],
    ['select 1 where a in (1, b)', 'select 1 where a in (1, 2, b, c)'],
    ['select 1 where a in (select 1, 2, 3, 4)', 'select 1 where a in (select 1, 2, 3)'],
    ['select 1 where a in (array[1, 2, 3, 4])', 'select 1 where a in (array[1, 2, 3])'],
    ['insert into t values (1), (1, 2)', 'insert into t values (1), (2)'],
    ['insert into t values ((select 1)), ((select 2))', 'insert into t values ((select 1))'],
    ['select 1 where a in ((select 1), (select 2))', 'select 1 where a in ((select 1))'],
    ['select 1 where a in ($1, $2) and b = $2', 'select 1 where a in ($1, $2) and b = $3'],
    ['select 1 where a in ($1) and b = $1', 'select 1 where a in ($1, $2) and b = $1'],
    ['select 1 where a in ($1, $1)', 'select 1 where a in ($1, $2)'],
    ['insert into t values ($1, $1), ($2, $1)', 'insert into t values ($1, $1), ($2, $2)'],
    ['insert into t values ($1, $2), ($3, $1)', 'insert into t values ($1, $2), ($3, $4)'],
    // What the plan may depend on.
    ['insert into t values (1)', 'insert into t values (default)'],
    ['insert into t values (1)', "insert into t values (x'01')"],
    ['insert into t values (1)', 'insert into t values (-1)'],
    ['insert into t values (1)', 'insert into t values ("null")'],
    ['insert into t values (1 + 1)', "insert into t values (1 + '1')"],
    ['insert into t values (1::int8)', 'insert into t values (null::int8)'],
    ['insert into t values (f(1, 2, 3))', 'insert into t values (f(1, null, 3))'],
    ['insert into t values (array[1, 2, 3])', 'insert into t values (array[1, null, 3])'],
    ['insert into t select * from (values (1)) v', 'insert into t select * from (values (null)) v'],
    ['values (1)', 'values (null)'],
    ['select * from (values (1)) v', "select * from (values ('1')) v"],
    ['select $2, 1 where a in ($1)', 'select $1, 1 where a in ($2)'],
    ["select 1 where a in (U&'x', U&'y' uescape '!')", "select 1 where a in (U&'x' uescape '!')"],
    ['select "$+", $1', 'select "$1", $1'],
    ['select $ + 1', 'select $1'],
  ])('%s has another than %s', (one, other) => {
    expect(key(one)).not.toBe(key(other));
  });

  it('is shown with the numbers that parameters would have', () => {
    const router = makeRouter(() => topology);
    const template = (sql: string) => router.analyze(Buffer.from(sql), SESSION).template;
    expect(template('SELECT "$+", $1 FROM orders WHERE tenant_id IN ($2, $3) AND id = $4 AND total = $1')).toBe(
      'select "$+", $1 from orders where tenant_id in($2) and id = $3 and total = $1',
    );
  });
});

/** Statements with lists of every kind, over all keyspaces; parameters as drivers number them, or not. */
class Lists extends SqlGenerator {
  #numbers = 0;
  #inOrder = true;
  readonly values: string[] = [];

  statement(): string {
    this.#numbers = 0;
    this.#inOrder = this.int(5) > 0;
    this.values.length = 0;
    switch (this.int(8)) {
      case 0:
        return `INSERT INTO orders (id, tenant_id, note) VALUES ${this.#rows(() => [this.#scalar(), this.#key(), this.#text()])}${this.pick(['', ' RETURNING id', ` ON CONFLICT (tenant_id, id) DO UPDATE SET note = ${this.#text()}`])}`;
      case 1:
        return `INSERT INTO docs (owner, day, body) VALUES ${this.#rows(() => [this.#text(), this.#day(), this.pick(['NULL', 'now()', 'TRUE', '7', '2.5', this.#text()])])}`;
      case 2:
        return `SELECT * FROM docs WHERE (owner, day) IN (${this.#list(() => `(${this.#text()}, ${this.#day()})`)})${this.#more('body')}`;
      case 3:
        return `SELECT * FROM docs WHERE owner IN (${this.#list(() => this.#text())}) AND day IN (${this.#list(() => this.#day())})${this.#more('body')}`;
      case 4:
        return `UPDATE orders SET note = ${this.#text()} WHERE tenant_id IN (${this.#list(() => this.#key())})${this.#more('id')}`;
      case 5:
        return `SELECT * FROM orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id IN (${this.#list(() => this.#scalar())}) WHERE o.tenant_id IN (${this.#list(() => this.#key())})${this.pick(['', ' OFFSET 0', ` OFFSET ${this.#param('0')}`])}`;
      case 6:
        return `SELECT * FROM orders WHERE id IN (${this.#list(() => this.#scalar())}) AND tenant_id IN (SELECT tenant_id FROM items WHERE tenant_id IN (${this.#list(() => this.#key())})); DELETE FROM items WHERE tenant_id = ${this.#key()}`;
      default:
        return `WITH n AS (INSERT INTO items (tenant_id, sku) VALUES ${this.#rows(() => [this.#key(), this.#text()])} RETURNING *) SELECT * FROM orders WHERE tenant_id = ${this.#key()} AND id IN (${this.#list(() => this.#scalar())})`;
    }
  }

  #rows(row: () => string[]): string {
    return Array.from({ length: 1 + this.int(4) }, () => `(${row().join(this.pick([', ', ',', ', /* c */ ']))})`).join(
      ', ',
    );
  }

  #list(item: () => string): string {
    return Array.from({ length: 1 + this.int(5) }, item).join(this.pick([', ', ',', ', -- c\n']));
  }

  #more(column: string): string {
    return this.pick(['', ` AND ${column} = ${this.#text()}`, ` AND ${column} IN (${this.#list(() => this.#text())})`]);
  }

  #param(value: string): string {
    if (!this.#inOrder && this.int(3) === 0) {
      const number = 1 + this.int(this.#numbers + 2);
      this.#numbers = Math.max(this.#numbers, number);
      this.values[number - 1] = value;
      return `$${number}`;
    }
    this.#numbers += 1;
    this.values[this.#numbers - 1] = value;
    return `$${this.#numbers}`;
  }

  #scalar(): string {
    const n = String(this.int(300));
    return this.pick([n, n, this.#param(n)]);
  }

  #key(): string {
    const n = String(this.pick([150, 150, 150, 151, 5, 250]));
    return this.pick([n, n, `'${n}'`, this.int(2) === 0 ? this.#param(n) : n, `-${n}`, 'NULL', `${n}::int8`]);
  }

  #text(): string {
    const s = this.pick(['a', 'b', 'z']);
    return this.pick([`'${s}'`, `'${s}'`, `E'${s}'`, this.int(2) === 0 ? this.#param(s) : `'${s}'`, `$$${s}$$`]);
  }

  #day(): string {
    return this.int(3) === 0 ? this.#param('2026-01-02') : `'2026-01-0${1 + this.int(3)}'`;
  }
}

/** What a plan says, whatever the order in which it names its keys. */
function plain(plan: StatementPlan): unknown {
  const sorted = (keys: readonly KeySource[]) => [...new Set(keys.map((k) => JSON.stringify(k)))].sort();
  const { target } = plan;
  if (target.kind !== 'keys') return plan;
  const also = target.also?.map((o) => ({ ...o, keys: sorted(o.keys) }));
  return { ...plan, target: { ...target, keys: sorted(target.keys), also } };
}

describe('a plan for lists of any length', () => {
  it('is what the planner makes of each text by itself, for 8,000 random statements', () => {
    const router = makeRouter(() => topology);
    const lists = new Lists(20261121, []);
    const context = { registry: registryOf(topology), metadata, searchPath: ['app', 'public'] };
    let hits = 0;
    let shards = 0;
    for (let i = 0; i < 8_000; i++) {
      const sql = lists.statement();
      const text = Buffer.from(sql);
      const before = router.counters.hits;
      const analyzed = router.analyze(text, SESSION);
      const own = readText(text, context);
      expect(own, sql).not.toBeNull();
      hits += router.counters.hits - before;
      const found = analyzed.statements.map(({ plan }) => plain(plan));
      const expected = own?.plans.map(plain);
      if (JSON.stringify(found) !== JSON.stringify(expected)) expect({ sql, found }).toEqual({ sql, found: expected });
      // The values too are those of the text's own keys.
      const route = summary(router.route(analyzed, 0, texts(...Array.from(lists.values, (v) => v ?? null)), topology));
      if (/^[abc]$/.test(route)) shards++;
    }
    expect(hits).toBeGreaterThan(2_000);
    expect(shards).toBeGreaterThan(1_000);
  });

  it('is made once', () => {
    const router = makeRouter(() => topology);
    const go = (sql: string, ...params: string[]) =>
      summary(router.route(router.analyze(Buffer.from(sql), SESSION), 0, texts(...params), topology));
    const rows = (n: number, tenant: (i: number) => number) =>
      `INSERT INTO orders (tenant_id, id) VALUES ${Array.from({ length: n }, (_, i) => `(${tenant(i)}, ${i})`).join(', ')}`;
    for (let n = 1; n < 200; n++) expect(go(rows(n, (i) => 100 + (i % 100)))).toBe('b');
    expect(go(rows(3, (i) => 100 * i))).toMatch(/^refused 0A000: INSERT of rows on several shards/);
    for (let n = 1; n < 200; n++) {
      const numbers = Array.from({ length: n }, (_, i) => `$${i + 1}`).join(', ');
      const values = Array.from({ length: n }, (_, i) => String(200 + i));
      expect(go(`SELECT * FROM orders WHERE tenant_id IN (${numbers})`, ...values)).toBe('c');
    }
    expect(router.counters.parses).toBe(2);
  });

  it('is made once for rows that differ in the kinds of their constants', () => {
    const router = makeRouter(() => topology);
    const generator = new SqlGenerator(20261124, []);
    const note = () =>
      generator.pick(['NULL', 'true', 'False', '1', '2.5', "'a'", "E'b'", '$$c$$', '12345678901234567890']);
    for (let i = 0; i < 2000; i++) {
      const tenant = 1 + generator.int(99);
      const key = generator.pick([String(tenant), `'${tenant}'`]);
      const rows = Array.from({ length: 1 + generator.int(5) }, () => `(${key}, ${note()}, ${note()})`);
      const analyzed = router.analyze(Buffer.from(`INSERT INTO orders (tenant_id, id, note) VALUES ${rows}`), SESSION);
      expect(summary(router.route(analyzed, 0, null, topology))).toBe('a');
    }
    expect(router.counters.parses).toBe(1);
    expect(router.templates).toBe(1);
  });

  it('is not taken for a row whose key is NULL, nor made of one', () => {
    const router = makeRouter(() => topology);
    const go = (key: string) => {
      const analyzed = router.analyze(Buffer.from(`INSERT INTO orders (tenant_id, id) VALUES (${key}, 1)`), SESSION);
      return summary(router.route(analyzed, 0, null, topology));
    };
    for (let i = 0; i < 2; i++) {
      expect(go('NULL')).toMatch(/^refused 0A000: INSERT into "orders" does not give its sharding key/);
      expect(go('true')).toMatch(/^refused 0A000: the "tenant_id" of a row inserted into "orders" is an expression/);
      expect(go('1')).toBe('a');
      expect(go('NULL, 1), (1')).toMatch(/^refused 0A000/);
      expect(go('1, 1), (NULL')).toMatch(/^refused 0A000/);
    }
    expect(router.templates).toBe(1);
  });

  it('follows no list that the planner does not follow', () => {
    const router = makeRouter(() => topology);
    const list = (n: number) => Array.from({ length: n }, () => '150').join(', ');
    const go = (n: number) =>
      summary(
        router.route(
          router.analyze(Buffer.from(`SELECT * FROM orders WHERE tenant_id IN (${list(n)})`), SESSION),
          0,
          null,
          topology,
        ),
      );
    expect(go(10_000)).toBe('b');
    expect(go(10_001)).toBe('fanout a b c');
    expect(go(3)).toBe('b');
    expect(router.counters.parses).toBe(1);
  });
});
