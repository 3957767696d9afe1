// Proxies learn of what the catalog's triggers announce, and ask for the rest: sql/catalog/014_announce.sql.

/** What the same transaction does is announced by `ANNOUNCE`, behind it. */
export const ANNOUNCE_LATER = `SELECT set_config('foreshard.announce', 'later', true)`;

/** Has all proxies ask the catalog. Nothing is lost with it in a crash: it need not wait for the disk. */
export const ANNOUNCE = `SELECT set_config('synchronous_commit', 'off', true), pg_notify('foreshard_topology', '')`;
