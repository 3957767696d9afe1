-- While rows of a table move, TRUNCATE is refused on both sides: replicated, it would empty the destination's whole table; not
-- replicated, the rows it removed would live on at the destination.
CREATE OR REPLACE FUNCTION :function() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $truncate$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'object_in_use',
    MESSAGE = format('cannot truncate table "%s" while a part of it moves to another shard', TG_TABLE_NAME),
    HINT = 'Use DELETE, or wait for the migration to end (see "foreshard migrate list").';
END
$truncate$
