-- Guard of one migration on one shard; the names, and which rows it is about, are filled in by migrator/guards.ts.
--
-- The shared lock comes first: once the fence holds it exclusively, every writer that went before has ended and every later
-- one sees the closed gate. The gate is a sequence because its value is seen by every snapshot, also by that of a
-- REPEATABLE READ transaction that began before the fence; a table is not. A gate that cannot be read is closed.
--
-- The lock is none of the application's: its lock_timeout, meant for its own locks, would end writes (55P03) that only have to wait for the short
-- while in which a flip holds it. How long that is the migrator bounds; statement_timeout counts as ever.
--
-- This runs for every row that is written: its expressions are such as PL/pgSQL evaluates without a query, and it has no SET clauses (docs/benchmarks.md). So all names have their schemas here, also those of operators.
CREATE OR REPLACE FUNCTION :function() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $guard$
DECLARE
  own pg_catalog.text;
BEGIN
  IF :moves THEN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(:class, :operation) THEN
      own := pg_catalog.current_setting('lock_timeout');
      PERFORM pg_catalog.set_config('lock_timeout', '0', true);
      PERFORM pg_catalog.pg_advisory_xact_lock_shared(:class, :operation);
      PERFORM pg_catalog.set_config('lock_timeout', own, true);
    END IF;
    IF coalesce(pg_catalog.pg_sequence_last_value(:gate) OPERATOR(pg_catalog.<>) 1, true) THEN
      RAISE EXCEPTION USING ERRCODE = 'SH001',
        MESSAGE = pg_catalog.format('rows of table "%s" in this interval are not written on this shard', TG_TABLE_NAME),
        HINT = 'Their owner has changed or is changing: reload the topology and try again.';
    END IF;
  END IF;
  RETURN :row;
END
$guard$;
-- Asked for when a trigger is made, not when it fires: nobody else has it called by a trigger of his own.
REVOKE ALL ON FUNCTION :function() FROM PUBLIC
