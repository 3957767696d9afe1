/** SQLSTATE of `endHoldSql` when there is no hold any more, or not for long enough. */
export const HOLD_RAN_OUT = 'SH002';

/** Time by which the hold must outlast the flip's commit, ms. */
export const COMMIT_MARGIN_MS = 1000;

/**
 * Ends the hold of a migration, or raises HOLD_RAN_OUT: a proxy that reads the catalog after the deadline lets statements start by the
 * old map. Literals only, so that it can be sent in one message with the COMMIT of the flip.
 */
export function endHoldSql(migrationId: bigint): string {
  return `DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM foreshard.hold
                  WHERE migration_id = ${migrationId} AND deadline > clock_timestamp() + ${COMMIT_MARGIN_MS} * interval '1 ms') THEN
    RAISE EXCEPTION 'the hold ran out' USING ERRCODE = '${HOLD_RAN_OUT}';
  END IF;
  DELETE FROM foreshard.hold WHERE migration_id = ${migrationId};
END $$`;
}
