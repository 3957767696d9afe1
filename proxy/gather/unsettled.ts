/**
 * Which transactions of a shard were prepared at a moment, so that they may have been decided over elsewhere, and which rows have their marks. A row's xmax is
 * the transaction that has locked, changed or deleted it, or one of its subtransactions, or a number that stands for several of these.
 */
export interface PreparedThen {
  /** What the shard was about to give as the next transaction id, when the others had been listed. */
  readonly next: bigint;
  /** Those that have locks on the tables in question; ids of transactions, without epochs. */
  readonly prepared: readonly bigint[];
  /** Those that were running, with their subtransactions: they were not prepared. */
  readonly running: readonly bigint[];
}

const MASK = 0xffffffffn;
/** The distance from `of` to `x`: ids of transactions go round. */
const after = (x: bigint, of: bigint) => (x - of) & MASK;

/**
 * A query whose one value {@link readPreparedThen} reads. Locks of prepared transactions have no process (PostgreSQL's documentation of pg_locks); they are looked
 * at only where something is prepared, for that holds up everybody who locks something. Not for a transaction that has an id: to that, age() tells the distance
 * from its own ("GetStableLatestTransactionId" in PostgreSQL's xact.c), and who was prepared behind it would be missed, or everybody else taken for it.
 * @param tables their names as text, quoted for SQL
 */
export function preparedThenSql(tables: readonly string[]): string {
  const relations = tables.map((table) => `CAST(${table} AS pg_catalog.regclass)`).join(', ');
  return `WITH l AS MATERIALIZED (
  SELECT locktype, database, relation, transactionid, virtualtransaction, pid FROM pg_catalog.pg_locks
   WHERE (SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_xact())) AND granted AND locktype IN ('relation', 'transactionid')),
p AS (
  SELECT DISTINCT t.transactionid FROM l t JOIN l r ON r.virtualtransaction = t.virtualtransaction AND r.pid IS NULL
   WHERE t.locktype = 'transactionid' AND t.pid IS NULL AND r.locktype = 'relation' AND r.relation IN (${relations})
     AND r.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
SELECT pg_catalog.concat_ws(';',
  (SELECT coalesce(pg_catalog.string_agg(CAST(transactionid AS pg_catalog.text), ','), '') FROM p),
  (SELECT coalesce(pg_catalog.string_agg(CAST(transactionid AS pg_catalog.text), ','), '') FROM l WHERE locktype = 'transactionid' AND pid IS NOT NULL),
  (CAST(pg_catalog.age(CAST('3' AS pg_catalog.xid)) AS pg_catalog.int8) + 3) & ${MASK})`;
}

export function readPreparedThen(value: string): PreparedThen {
  // Arguments are computed in their order: the next id is behind all that have been listed.
  const [prepared, running, next] = value.split(';') as [string, string, string];
  const listed = (text: string) => (text === '' ? [] : text.split(',').map(BigInt));
  return { next: BigInt(next), prepared: listed(prepared), running: listed(running) };
}

/**
 * A condition on a row's xmax, which is not 0: whether it may be of one of those that were prepared. Null: none was. Ids of committed subtransactions are nowhere
 * to be read: what is younger than the oldest that was prepared, and was not running, is taken for one of them.
 */
export function unsettledSql({ next, prepared, running }: PreparedThen): ((xmax: string) => string) | null {
  const [first] = prepared;
  if (first === undefined) return null;
  const oldest = prepared.reduce((least, x) => (after(next, x) > after(next, least) ? x : least), first);
  const others = running.filter((x) => !prepared.includes(x));
  const isOfThem = (xid: string) => {
    const x = `CAST(CAST(${xid} AS pg_catalog.text) AS pg_catalog.int8)`;
    const wasRunning = others.length === 0 ? '' : ` AND ${x} NOT IN (${others.join(', ')})`;
    return `(((${x} - ${oldest}) & ${MASK}) < ${after(next, oldest)}${wasRunning})`;
  };
  // Whether it is a number that stands for several is not told: if there is such a number, it is looked at as that, too.
  return (xmax) =>
    `(${isOfThem(xmax)} OR CASE WHEN pg_catalog.mxid_age(${xmax}) BETWEEN 1 AND (SELECT pg_catalog.max(pg_catalog.mxid_age(datminmxid)) FROM pg_catalog.pg_database) THEN EXISTS (SELECT FROM pg_catalog.pg_get_multixact_members(${xmax}) AS m WHERE ${isOfThem('m.xid')}) ELSE false END)`;
}
