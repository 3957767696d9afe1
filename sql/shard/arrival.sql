-- Guard of updates that bring a row into the moving interval from outside. Replication turns them into an INSERT, but a TOASTed
-- value that did not change is not in the log: it would arrive as NULL. Every such value is therefore made anew, which
-- writes it to the log: one assignment per column that can be stored out of line.
CREATE OR REPLACE FUNCTION :function() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1
AS $arrival$
BEGIN
:assignments
  RETURN NEW;
END
$arrival$;
-- Asked for when a trigger is made, not when it fires: nobody else has it called by a trigger of his own.
REVOKE ALL ON FUNCTION :function() FROM PUBLIC
