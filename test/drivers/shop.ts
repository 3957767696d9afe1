/** What the shop's tables hold, in JavaScript's own types, whatever a driver makes of them. */
export interface Tenant {
  readonly tenantId: bigint;
  readonly name: string;
  readonly plan: string | null;
}

export interface Order {
  readonly tenantId: bigint;
  readonly id: bigint;
  readonly note: string | null;
  /** numeric(12,2), in full. */
  readonly total: string;
  /** text[] */
  readonly tags: readonly string[];
  /** jsonb */
  readonly detail: unknown;
  /** bytea */
  readonly body: Buffer | null;
  /** timestamptz; JavaScript has milliseconds. */
  readonly placed: Date;
}

/** The shop's business, in the idiom of one driver or ORM. */
export interface Shop {
  addTenants(tenants: readonly Tenant[]): Promise<void>;
  /** In one go, as the driver does bulk loads. */
  addOrders(orders: readonly Order[]): Promise<void>;
  order(tenantId: bigint, id: bigint): Promise<Order | null>;
  /** By id, highest first. */
  orders(tenantId: bigint, page: { readonly skip: number; readonly take: number }): Promise<readonly Order[]>;
  /** By a list of ids, in any order. */
  ordersAmong(tenantId: bigint, ids: readonly bigint[]): Promise<readonly Order[]>;
  /** By a list of keys, in any order. */
  tenantsAmong(tenantIds: readonly bigint[]): Promise<readonly Tenant[]>;
  /** How many rows were changed. */
  setNote(tenantId: bigint, id: bigint, note: string): Promise<number>;
  /** Inserts, or gives the one that is there its name and plan. */
  putTenant(tenant: Tenant): Promise<void>;
  /** How many rows were removed. */
  removeOrder(tenantId: bigint, id: bigint): Promise<number>;
  /** Orders joined with their tenant, by id. */
  named(tenantId: bigint): Promise<readonly { readonly id: bigint; readonly name: string }[]>;
  totals(tenantId: bigint): Promise<{ readonly count: number; readonly sum: string }>;
  /** Reads a tenant FOR UPDATE; absent where the ORM has no locks. */
  lockTenant?(tenantId: bigint): Promise<Tenant | null>;
  /** Commits what `work` does, or rolls it back when that throws. */
  transaction<T>(work: (shop: Shop) => Promise<T>, isolation?: 'repeatable read'): Promise<T>;
  /** Inside a transaction: a savepoint around `work`; absent where the ORM has none. */
  nested?<T>(work: (shop: Shop) => Promise<T>): Promise<T>;
}

export interface ConnectedShop extends Shop {
  close(): Promise<void>;
}

export const SHOP_SCHEMA = `
CREATE TABLE tenants (tenant_id bigint PRIMARY KEY, name text NOT NULL, plan text);
CREATE TABLE orders (tenant_id bigint NOT NULL REFERENCES tenants, id bigint NOT NULL, note text,
  total numeric(12,2) NOT NULL DEFAULT 0, tags text[] NOT NULL DEFAULT '{}', detail jsonb, body bytea,
  placed timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant_id, id));
`;

/** An order with something of every type. */
export function anOrder(tenantId: bigint, id: bigint, more: Partial<Order> = {}): Order {
  return {
    tenantId,
    id,
    note: `order ${id} of ${tenantId}`,
    total: '1234567890.05',
    tags: ['red', 'with "quotes", commas', 'ümläut'],
    detail: { nested: { list: [1, 'two', null] }, text: 'naïve ✓' },
    body: Buffer.from([0, 1, 0xff, 0x5c, 0x27]),
    placed: new Date('2026-02-28T23:59:59.999Z'),
    ...more,
  };
}

/** The SQLSTATE of an error, wherever an ORM keeps the driver's error. */
export function sqlstate(error: unknown): string | null {
  for (const e of chain(error)) {
    for (const code of [e.code, e.sqlState, e.originalCode])
      if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && /\d/.test(code) && !/^P\d{4}$/.test(code))
        return code;
  }
  return null;
}

/** All that the error and those it was made from say. */
export function messages(error: unknown): string {
  return chain(error)
    .flatMap((e) => [e.message, e.originalMessage])
    .filter((m) => typeof m === 'string')
    .join('\n');
}

interface Caught {
  readonly code?: unknown;
  readonly sqlState?: unknown;
  readonly originalCode?: unknown;
  readonly originalMessage?: unknown;
  readonly message?: unknown;
}

const INNER = ['cause', 'original', 'parent', 'driverError', 'meta', 'driverAdapterError', 'error'];

function chain(error: unknown): Caught[] {
  const found: Caught[] = [];
  const look = (e: unknown) => {
    if (typeof e !== 'object' || e === null || found.includes(e)) return;
    found.push(e);
    for (const name of INNER) look((e as Record<string, unknown>)[name]);
  };
  look(error);
  return found;
}
