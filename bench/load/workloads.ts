import type { WorkloadName } from '../results/results.js';

/** A statement as a driver would hold it. */
export interface Statement {
  /** Under which it is prepared. */
  readonly name: string;
  /** With $1, $2 … */
  readonly sql: string;
  /** Sent as a simple query in every protocol, as drivers do with BEGIN and COMMIT. */
  readonly bare?: true;
}

/** One statement with its values, to be answered before the next is sent. */
export interface Step {
  readonly statement: Statement;
  readonly values: readonly (number | string)[];
}

/** A random whole number from 1 to `n`. */
export type Draw = (n: number) => number;

/** The steps of one transaction. */
export type Workload = (draw: Draw, scale: number) => readonly Step[];

/** As pgbench has them, for each unit of its scale. */
export const ACCOUNTS = 100_000;
export const TELLERS = 10;
/** Customers of the ORM-like mix, and how many orders each has at first. */
export const CUSTOMERS = 2_000;
export const ORDERS = 10;

const BEGIN: Step = { statement: { name: 'begin', sql: 'BEGIN', bare: true }, values: [] };
const COMMIT: Step = { statement: { name: 'commit', sql: 'COMMIT', bare: true }, values: [] };

const SELECT_ACCOUNT = { name: 'account', sql: 'SELECT abalance FROM pgbench_accounts WHERE aid = $1' };
const UPDATE_ACCOUNT = {
  name: 'update_account',
  sql: 'UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2',
};
const UPDATE_TELLER = {
  name: 'update_teller',
  sql: 'UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2',
};
const UPDATE_BRANCH = {
  name: 'update_branch',
  sql: 'UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2',
};
const INSERT_HISTORY = {
  name: 'insert_history',
  sql: 'INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)',
};

const FIND_ORDER = {
  name: 'find_order',
  sql: 'SELECT "o"."id", "o"."customer_id", "o"."note", "o"."total", "o"."created_at" FROM "orders" AS "o" WHERE "o"."id" = $1 LIMIT 1',
};
const ITEMS = {
  name: 'items_of_order',
  sql: 'SELECT "o"."id", "o"."total", "i"."id", "i"."product", "i"."quantity" FROM "orders" AS "o" LEFT JOIN "items" AS "i" ON "i"."order_id" = "o"."id" WHERE "o"."id" = $1',
};
const LATEST = {
  name: 'latest_orders',
  sql: 'SELECT "o"."id", "o"."note", "o"."total" FROM "orders" AS "o" WHERE "o"."customer_id" = $1 ORDER BY "o"."id" DESC LIMIT 10',
};
const COUNT = { name: 'count_orders', sql: 'SELECT count(*) FROM "orders" AS "o" WHERE "o"."customer_id" = $1' };
const LOCK = {
  name: 'lock_order',
  sql: 'SELECT "o"."id", "o"."total" FROM "orders" AS "o" WHERE "o"."id" = $1 FOR UPDATE',
};
const TOTAL = { name: 'update_total', sql: 'UPDATE "orders" SET "total" = "total" + $1 WHERE "id" = $2' };
const NEW_ITEMS = 5;
const ADD_ITEMS = {
  name: 'add_items',
  sql: `INSERT INTO "items" ("order_id", "product", "quantity") VALUES ${Array.from(
    { length: NEW_ITEMS },
    (_, i) => `($${i * 3 + 1}, $${i * 3 + 2}, $${i * 3 + 3})`,
  ).join(', ')} RETURNING "id"`,
};

function addItems(draw: Draw, order: number): Step[] {
  const values = Array.from({ length: NEW_ITEMS }, () => [order, `product ${draw(500)}`, draw(9)]).flat();
  return [
    BEGIN,
    { statement: LOCK, values: [order] },
    { statement: ADD_ITEMS, values },
    { statement: TOTAL, values: [draw(100), order] },
    COMMIT,
  ];
}

/** As an application behind an ORM: mostly look-ups, some lists, and transactions that read, insert several rows and update. */
function orm(draw: Draw): readonly Step[] {
  const order = draw(CUSTOMERS * ORDERS);
  const dice = draw(100);
  if (dice <= 40) return [{ statement: FIND_ORDER, values: [order] }];
  if (dice <= 65) return [{ statement: ITEMS, values: [order] }];
  if (dice <= 80) return [{ statement: LATEST, values: [draw(CUSTOMERS)] }];
  if (dice <= 85) return [{ statement: COUNT, values: [draw(CUSTOMERS)] }];
  return addItems(draw, order);
}

const randomDelta = (draw: Draw) => draw(10_001) - 5_001;

export const GENERATED: Readonly<Record<WorkloadName, Workload>> = {
  select: (draw, scale) => [{ statement: SELECT_ACCOUNT, values: [draw(ACCOUNTS * scale)] }],
  tpcb: (draw, scale) => {
    const [aid, tid, bid, delta] = [draw(ACCOUNTS * scale), draw(TELLERS * scale), draw(scale), randomDelta(draw)];
    return [
      BEGIN,
      { statement: UPDATE_ACCOUNT, values: [delta, aid] },
      { statement: SELECT_ACCOUNT, values: [aid] },
      { statement: UPDATE_TELLER, values: [delta, tid] },
      { statement: UPDATE_BRANCH, values: [delta, bid] },
      { statement: INSERT_HISTORY, values: [tid, bid, aid, delta] },
      COMMIT,
    ];
  },
  key: (draw, scale) => {
    const [aid, delta] = [draw(ACCOUNTS * scale), randomDelta(draw)];
    return [
      BEGIN,
      { statement: UPDATE_ACCOUNT, values: [delta, aid] },
      { statement: SELECT_ACCOUNT, values: [aid] },
      { statement: INSERT_HISTORY, values: [draw(TELLERS * scale), draw(scale), aid, delta] },
      COMMIT,
    ];
  },
  orm,
};

const SET_AID = `\\set aid random(1, ${ACCOUNTS} * :scale)\n`;
const SET_OTHERS = `\\set bid random(1, 1 * :scale)\n\\set tid random(1, ${TELLERS} * :scale)\n\\set delta random(-5000, 5000)\n`;
const UPDATE_AND_READ = `BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
`;
const HISTORY = `INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
`;

/** The same for pgbench: its built-in scripts, and `key`, its TPC-B without the tables that have other keys. */
export const PGBENCH_SCRIPTS: Readonly<Record<Exclude<WorkloadName, 'orm'>, string>> = {
  select: `${SET_AID}SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n`,
  tpcb: `${SET_AID}${SET_OTHERS}${UPDATE_AND_READ}UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
${HISTORY}`,
  key: `${SET_AID}${SET_OTHERS}${UPDATE_AND_READ}${HISTORY}`,
};
