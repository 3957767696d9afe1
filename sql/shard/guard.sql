-- Guard of one migration on one shard; the names are filled in, quoted, by migrator/guards.ts.
--
-- The shared lock comes first: once the fence holds it exclusively, every writer that went before has ended and every later
-- one sees the closed gate. The gate is a sequence because last_value is seen by every snapshot, also by that of a
-- REPEATABLE READ transaction that began before the fence; a table is not.
--
-- The lock is none of the application's: its lock_timeout, meant for its own locks, would end writes (55P03) that only have to wait for the short
-- while in which a flip holds it. How long that is the migrator bounds; statement_timeout counts as ever.
CREATE OR REPLACE FUNCTION :function() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = 0 AS $guard$
DECLARE
  gate bigint;
BEGIN
  PERFORM pg_advisory_xact_lock_shared(:class, :operation);
  SELECT last_value INTO gate FROM :gate;
  IF gate <> 1 THEN
    RAISE EXCEPTION USING ERRCODE = 'SH001',
      MESSAGE = format('rows of table "%s" in this interval are not written on this shard', TG_TABLE_NAME),
      HINT = 'Their owner has changed or is changing: reload the topology and try again.';
  END IF;
  IF TG_OP = 'DELETE' THEN
    RETURN OLD;
  END IF;
  RETURN NEW;
END
$guard$;
-- Asked for when a trigger is made, not when it fires: nobody else has it called by a trigger of his own.
REVOKE ALL ON FUNCTION :function() FROM PUBLIC
