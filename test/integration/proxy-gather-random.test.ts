import pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { generator, oneOf, type Random } from '../support/random.js';
import { SHOP_SCHEMA, Sharded } from '../support/sharded.js';

// Random queries over rows of two shards, answered by the home shard, and by one database that has all rows.

const COUNT = Number(process.env.GATHER_QUERIES ?? 250);
const SEED = Number(process.env.GATHER_SEED ?? 20261122);

let s: Sharded;
let whole: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 10 });
  await withClient(s.clusters[0].url('postgres'), (c) => c.query('CREATE DATABASE whole'));
  whole = new pg.Client({ connectionString: s.clusters[0].url('whole') });
  await whole.connect();
  await whole.query(`${SHOP_SCHEMA} INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland')`);
  const home = `INSERT INTO settings VALUES ('a', '1'), ('b', '11'), ('c', NULL)`;
  await whole.query(home);
  await s.onShard(0, home);
  const random = generator(7);
  const value = (of: number, text = (n: number) => String(n)) => (random(4) === 0 ? 'NULL' : text(random(of)));
  for (let tenant = 1; tenant < 20; tenant++) {
    const rows = [`INSERT INTO tenants VALUES (${tenant}, '${oneOf(random, ['p', 'q', 'r'])}')`];
    for (let id = random(2); id < 3; id++) {
      rows.push(`INSERT INTO orders VALUES (${tenant}, ${id}, ${value(4, (n) => `'${'pqrs'[n]}'`)})`);
      for (let n = random(3); n < 3; n++) rows.push(`INSERT INTO items VALUES (${tenant}, ${id}, ${n}, ${value(4)})`);
    }
    const sql = rows.join(';');
    await whole.query(sql);
    await s.onShard(tenant < 10 ? 0 : 1, sql);
    // While ranges move, others have rows, too.
    await s.onShard(tenant < 10 ? 1 : 0, sql.replace(/'[pqrs]'/g, `'foreign'`));
  }
  client = await s.connect();
}, 120_000);
afterAll(async () => {
  await whole?.end();
  await s?.stop();
});

const TABLES = {
  tenants: { numbers: ['tenant_id'], texts: ['name'] },
  orders: { numbers: ['tenant_id', 'id'], texts: ['note'] },
  items: { numbers: ['tenant_id', 'order_id', 'n', 'qty'], texts: [] },
  countries: { numbers: [], texts: ['code', 'name'] },
  settings: { numbers: [], texts: ['name', 'value'] },
} as const;

interface Source {
  readonly alias: string;
  readonly numbers: readonly string[];
  readonly texts: readonly string[];
}

/** Queries of every form, some of which PostgreSQL itself refuses. */
class Queries {
  readonly #random: Random;
  #next = 0;

  constructor(seed: number) {
    this.#random = generator(seed);
  }

  #pick<T>(list: readonly T[]): T {
    return oneOf(this.#random, list);
  }

  #chance(of: number): boolean {
    return this.#random(of) === 0;
  }

  query(): string {
    this.#next = 0;
    switch (this.#random(8)) {
      case 0: {
        const [l, r] = [this.#select(1, 1), this.#select(1, 1)];
        return `${l} ${this.#pick(['UNION', 'UNION ALL', 'EXCEPT', 'INTERSECT', 'EXCEPT ALL'])} ${r}`;
      }
      case 1:
        return `WITH c AS ${this.#pick(['', 'MATERIALIZED ', 'NOT MATERIALIZED '])}(${this.#rows()}) ${this.#rows(undefined, [{ alias: 'c', numbers: ['x'], texts: ['y'] }])}`;
      default:
        return this.#select(0, 2);
    }
  }

  /** Shows a number x and a text y. */
  #rows(outer: readonly Source[] = [], extra: readonly Source[] = []): string {
    const { from, sources } = this.#from(1 + this.#random(2), outer);
    const all = [...sources, ...extra];
    const list = `${this.#number(all)} AS x, ${this.#text(all)} AS y`;
    return `SELECT ${list} FROM ${[from, ...extra.map((e) => e.alias)].join(', ')} WHERE ${this.#condition([...all, ...outer], 1)}`;
  }

  #select(fewest: number, depth: number): string {
    const { from, sources } = this.#from(1 + this.#random(3), [], depth);
    const where = this.#chance(4) ? '' : ` WHERE ${this.#condition(sources, depth)}`;
    if (fewest === 1) return `SELECT ${this.#number(sources)}, ${this.#text(sources)} FROM ${from}${where}`;
    switch (this.#random(6)) {
      case 0: {
        const aggregates = Array.from({ length: 1 + this.#random(3) }, () => this.#aggregate(sources)).join(', ');
        const having = this.#chance(3) ? ` HAVING ${this.#aggregate(sources, true)} > ${this.#random(6)}` : '';
        return `SELECT ${aggregates} FROM ${from}${where}${having}`;
      }
      case 1:
      case 2: {
        const keys = Array.from({ length: 1 + this.#random(2) }, () =>
          this.#chance(2) ? this.#text(sources) : this.#number(sources),
        ).filter((key) => !/^[0-9'(]/.test(key) && !key.startsWith('CAST'));
        const aggregate = this.#aggregate(sources);
        const having = this.#chance(3) ? ` HAVING ${this.#aggregate(sources, true)} > ${this.#random(4)}` : '';
        const by =
          keys.length === 0
            ? ''
            : ` GROUP BY ${this.#chance(6) ? `ROLLUP (${keys.join(', ')})` : this.#chance(3) ? keys.map((_, i) => i + 1).join(', ') : keys.join(', ')}`;
        const width = keys.length + 1;
        return `SELECT ${[...keys, aggregate].join(', ')} FROM ${from}${where}${by}${having}${this.#cut(width, true)}`;
      }
      case 3: {
        const shown = [this.#number(sources), this.#text(sources)];
        return `SELECT DISTINCT ${shown.join(', ')} FROM ${from}${where}${this.#cut(shown.length, true)}`;
      }
      case 4: {
        const by = this.#text(sources);
        const order = `${this.#number(sources)}, ${sources.flatMap((x) => [...x.numbers, ...x.texts].map((c) => `${x.alias}.${c}`)).join(', ')}`;
        const over = `${this.#pick(['row_number()', 'rank()', `sum(${this.#number(sources)})`, 'count(*)'])} OVER (PARTITION BY ${by} ORDER BY ${order})`;
        return `SELECT ${over}, ${by} FROM ${from}${where}`;
      }
      default: {
        const shown = [this.#number(sources), this.#text(sources), this.#number(sources)];
        return `SELECT ${shown.join(', ')} FROM ${from}${where}${this.#cut(shown.length, true)}`;
      }
    }
  }

  /** By all that is shown, so that the order, and what is cut, is told. */
  #cut(width: number, total: boolean): string {
    if (!total || this.#chance(3)) return '';
    const by = Array.from(
      { length: width },
      (_, i) => `${i + 1}${this.#pick(['', ' DESC', ' NULLS FIRST', ' DESC NULLS LAST'])}`,
    );
    const limit = this.#pick(['', ` LIMIT ${this.#random(7)}`, ' LIMIT NULL', ` LIMIT ${this.#random(3)}.5`]);
    const offset = this.#pick(['', '', ` OFFSET ${this.#random(5)}`, ` OFFSET ${this.#random(3)}.5`]);
    return ` ORDER BY ${by.join(', ')}${limit}${offset}`;
  }

  #from(size: number, outer: readonly Source[] = [], depth = 0): { from: string; sources: Source[] } {
    if (size === 1) {
      const alias = `t${this.#next++}`;
      if (depth > 0 && this.#chance(5)) {
        const columns = this.#pick(['', ' (x, y)']);
        return { from: `(${this.#rows()}) AS ${alias}${columns}`, sources: [{ alias, numbers: ['x'], texts: ['y'] }] };
      }
      const table = this.#pick(['tenants', 'orders', 'items', 'orders', 'items', 'countries', 'settings'] as const);
      const { numbers, texts } = TABLES[table];
      if (table === 'orders' && this.#chance(4))
        return {
          from: `orders AS ${alias} (k, id, note)`,
          sources: [{ alias, numbers: ['k', 'id'], texts: ['note'] }],
        };
      return { from: `${this.#pick(['', 'public.'])}${table} ${alias}`, sources: [{ alias, numbers, texts }] };
    }
    const left = this.#from(1 + this.#random(size - 1), outer, depth);
    const right = this.#from(1, outer, depth);
    const sources = [...left.sources, ...right.sources];
    const type = this.#pick(['JOIN', 'JOIN', 'LEFT JOIN', 'LEFT JOIN', 'RIGHT JOIN', 'FULL JOIN']);
    const [l, r] = [left.sources, right.sources].map((side) =>
      side.flatMap((x) => x.numbers.slice(0, 1).map((c) => `${x.alias}.${c}`)),
    );
    const equal = l?.length && r?.length ? `${this.#pick(l)} = ${this.#pick(r)}` : 'false';
    // FULL JOIN takes only conditions that can be merged or hashed.
    const on =
      type === 'FULL JOIN' || this.#chance(3)
        ? equal
        : `${this.#chance(3) ? this.#condition(sources, 0) : equal} AND ${this.#condition(sources, 0)}`;
    return { from: `(${left.from} ${type} ${right.from} ON ${on})`, sources };
  }

  #number(sources: readonly Source[]): string {
    const having = sources.filter((x) => x.numbers.length > 0);
    if (having.length === 0 || this.#chance(15)) return `${this.#random(5)}`;
    const source = this.#pick(having);
    const column = `${source.alias}.${this.#pick(source.numbers)}`;
    switch (this.#random(12)) {
      case 0:
        return `coalesce(${column}, 0)`;
      case 1:
        return `(${column} + 1)`;
      case 2:
        return `abs(${column})`;
      default:
        return column;
    }
  }

  #text(sources: readonly Source[]): string {
    const having = sources.filter((x) => x.texts.length > 0);
    if (having.length === 0 || this.#chance(15)) return `CAST(${this.#number(sources)} AS text)`;
    const source = this.#pick(having);
    const column = `${source.alias}.${this.#pick(source.texts)}`;
    return this.#pick([column, column, column, `upper(${column})`, `coalesce(${column}, 'none')`]);
  }

  #aggregate(sources: readonly Source[], number = false): string {
    const n = this.#number(sources);
    const filter = this.#chance(5) ? ` FILTER (WHERE ${this.#condition(sources, 0)})` : '';
    const numbers = ['count(*)', `count(${this.#text(sources)})`, `sum(${n})`, `avg(${n})`, `count(DISTINCT ${n})`];
    const text = this.#text(sources);
    if (number) return `${this.#pick([...numbers, `max(${n})`])}${filter}`;
    return `${this.#pick([...numbers, `min(${this.#text(sources)})`, `max(${n})`, `bool_or(${n} > 1)`, `string_agg(${text}, ',' ORDER BY ${text})`])}${filter}`;
  }

  #condition(sources: readonly Source[], depth: number): string {
    const count = 1 + this.#random(3);
    return Array.from({ length: count }, () => this.#test(sources, depth)).join(this.#chance(4) ? ' OR ' : ' AND ');
  }

  #test(sources: readonly Source[], depth: number): string {
    const number = this.#number(sources);
    const text = this.#text(sources);
    const sub = () => this.#rows(this.#chance(2) ? sources : []);
    switch (this.#random(depth > 0 ? 15 : 12)) {
      case 0:
        return `${number} IN (${this.#random(6)}, ${10 + this.#random(4)})`;
      case 1:
        return `${text} IS ${this.#pick(['', 'NOT '])}NULL`;
      case 2:
        return `NOT (${text} = '${this.#pick(['p', 'q'])}')`;
      case 3:
        return `(${number} > 2 OR ${text} IS NULL)`;
      case 4:
        return `${text} IS DISTINCT FROM ${this.#text(sources)}`;
      case 5:
        return `CASE WHEN ${number} = 0 THEN false ELSE 6 / ${number} > 1 END`;
      case 6:
        return `6 / nullif(${number}, 0) > 1`;
      case 7:
        return `${text} LIKE '${this.#pick(['p', 'q%', '%'])}'`;
      case 8:
        return `${number} BETWEEN ${this.#random(4)} AND ${8 + this.#random(8)}`;
      case 9:
        return `coalesce(${text}, 'q') = 'q'`;
      case 10:
        return `(${number} = 1) IS NOT TRUE`;
      case 11:
        return `${number} <> ${this.#number(sources)}`;
      case 12:
        return `${this.#pick(['', 'NOT '])}EXISTS (${sub()})`;
      case 13:
        return `${number} ${this.#pick(['', 'NOT '])}IN (SELECT x FROM (${sub()}) AS i${this.#next++})`;
      default:
        return `${number} > (SELECT count(*) FROM (${sub()}) AS i${this.#next++})`;
    }
  }
}

type Answer = { readonly rows: readonly string[] } | { readonly code: string; readonly message: string };

async function ask(on: pg.Client, text: string, extended: boolean): Promise<Answer> {
  const query = extended ? { text, values: [], rowMode: 'array' as const } : { text, rowMode: 'array' as const };
  try {
    const { rows } = await on.query(query);
    const shown = rows.map((row) => JSON.stringify(row));
    return { rows: / ORDER BY 1[^()]*$/.test(text) ? shown : shown.sort() };
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error;
    return { code: error.code ?? '', message: error.message };
  }
}

it('random queries are answered as by one database that has all rows', async () => {
  const queries = new Queries(SEED);
  const counts = { alike: 0, refused: 0, wrong: 0, rows: 0 };
  const differences: object[] = [];
  const refusals = new Map<string, string>();
  for (let i = 0; i < COUNT; i++) {
    const sql = queries.query();
    const expected = await ask(whole, sql, false);
    const found = await ask(client, sql, i % 2 === 1);
    if ('code' in found && found.code === '0A000' && !('code' in expected && expected.code === '0A000')) {
      counts.refused++;
      refusals.set(found.message, sql);
      continue;
    }
    if (JSON.stringify(found) !== JSON.stringify(expected)) differences.push({ sql, found, expected });
    if ('code' in expected) counts.wrong++;
    else {
      counts.alike++;
      if (expected.rows.length > 0) counts.rows++;
    }
  }
  if (process.env.GATHER_SHOW) console.log(counts, refusals);
  expect(differences).toEqual([]);
  expect(counts.rows).toBeGreaterThan(COUNT / 3);
  expect(counts.refused).toBeLessThan(COUNT / 10);
}, 280_000);
