import type { CatalogStatement } from './action.js';

/** Time by which the hold must outlast the flip's commit, ms. */
const COMMIT_MARGIN_MS = 1000;

/**
 * The last statement before the commit of a flip: a proxy that reads the catalog after the hold's deadline lets statements start by the old map.
 */
export function endHold(migrationId: bigint): CatalogStatement {
  return {
    text: 'the hold still stands, and ends with the commit',
    sql: `DELETE FROM foreshard.hold WHERE migration_id = $1 AND deadline > clock_timestamp() + ${COMMIT_MARGIN_MS} * interval '1 ms'`,
    values: [migrationId.toString()],
    elseConflict: 'the hold ran out before the flip',
  };
}
