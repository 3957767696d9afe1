import type { Value } from './connection.js';
import { accountKey } from './history.js';
import { ACCOUNTS, TENANTS } from './world.js';

// What clients ask of the tables; pure.

/** The tenant whose accounts and ledger are tables of their own, which belong to no keyspace, or to one without a key. */
export const HOUSE = 0;

export interface Statement {
  readonly text: string;
  readonly values: readonly Value[];
}

const ACCOUNT = 'version::int, balance::int, op';
const OF_HOUSE = `SELECT ${HOUSE} AS tenant, id::int, ${ACCOUNT} FROM stock`;
const OF_TENANTS = `SELECT tenant::int, id::int, ${ACCOUNT} FROM accounts`;

export function writeAccount(tenant: number, id: number, amount: number, op: string): Statement {
  const set = 'SET version = version + 1, balance = balance +';
  return tenant === HOUSE
    ? { text: `UPDATE stock ${set} $2, op = $3 WHERE id = $1 RETURNING version::int`, values: [id, amount, op] }
    : {
        text: `UPDATE accounts ${set} $3, op = $4 WHERE tenant = $1 AND id = $2 RETURNING version::int`,
        values: [tenant, id, amount, op],
      };
}

export function readAccount(tenant: number, id: number): Statement {
  return tenant === HOUSE
    ? { text: `${OF_HOUSE} WHERE id = $1`, values: [id] }
    : { text: `${OF_TENANTS} WHERE tenant = $1 AND id = $2`, values: [tenant, id] };
}

export function readAccounts(tenant: number): Statement {
  return tenant === HOUSE
    ? { text: `${OF_HOUSE} ORDER BY id`, values: [] }
    : { text: `${OF_TENANTS} WHERE tenant = $1 ORDER BY id`, values: [tenant] };
}

/** Of all tenants but the house: as the shards have them, in one order, by rows that are brought together; and with the house's. */
export const READ_ALL_ACCOUNTS: readonly { readonly text: string; readonly house: boolean }[] = [
  { text: OF_TENANTS, house: false },
  { text: `${OF_TENANTS} ORDER BY balance, op, tenant, id LIMIT ${TENANTS * ACCOUNTS + 1}`, house: false },
  { text: OF_TENANTS.replace(/FROM accounts$/, 'FROM (SELECT *, count(*) OVER () FROM accounts) a'), house: false },
  { text: `${OF_HOUSE} UNION ALL ${OF_TENANTS}`, house: true },
];

/** Rows of the ledger. */
export function enter(tenant: number, ids: readonly string[], body: string): Statement {
  if (tenant === HOUSE) {
    const rows = ids.map((_, n) => `($${n + 2}, $1)`).join(', ');
    return { text: `INSERT INTO receipts (id, body) VALUES ${rows}`, values: [body, ...ids] };
  }
  const rows = ids.map((_, n) => `($1, $${n + 3}, $2)`).join(', ');
  return { text: `INSERT INTO ledger (tenant, id, body) VALUES ${rows}`, values: [tenant, body, ...ids] };
}

/** A row of the ledger that tells of an account. */
export function enterVersion(tenant: number, row: string, account: number, version: number): Statement {
  return tenant === HOUSE
    ? {
        text: "INSERT INTO receipts (id, account, version, body) VALUES ($1, $2, $3, 'transfer')",
        values: [row, account, version],
      }
    : {
        text: "INSERT INTO ledger (tenant, id, account, version, body) VALUES ($1, $2, $3, $4, 'transfer')",
        values: [tenant, row, account, version],
      };
}

export function readEntry(tenant: number, id: string): Statement {
  return tenant === HOUSE
    ? { text: 'SELECT id FROM receipts WHERE id = $1', values: [id] }
    : { text: 'SELECT id FROM ledger WHERE tenant = $1 AND id = $2', values: [tenant, id] };
}

/** Of all accounts, the house's too. */
export function allAccountKeys(): string[] {
  return Array.from({ length: TENANTS + 1 - HOUSE }, (_, t) =>
    Array.from({ length: ACCOUNTS }, (_, a) => accountKey({ tenant: HOUSE + t, id: a + 1 })),
  ).flat();
}
