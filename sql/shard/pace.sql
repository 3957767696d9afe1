-- Paces the copy of one migration into one shard; the names are filled in, quoted, by migrator/pace.ts.
--
-- Called in the WHEN clause of a trigger on rows that arrive, for one in so many of them: there it runs while PostgreSQL's own workers
-- copy (an AFTER trigger itself would only run at the end of the copy, a BEFORE trigger would make each row be inserted by itself). Never true, so that the
-- trigger never fires. The limit, in bytes a second for one worker, is the sequence's last_value, which every snapshot sees; 0: none. A limit of 1 stops the
-- copy where it is. When the last row was let pass is kept in the session's setting, and looked at again so often that a new limit is soon heeded.
CREATE OR REPLACE FUNCTION :function(bytes bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pace$
DECLARE
  rate bigint;
  due float8;
  now float8;
BEGIN
  LOOP
    SELECT last_value INTO rate FROM :pace;
    IF rate = 0 THEN
      RETURN false;
    END IF;
    -- What is applied behind the copy is never kept waiting.
    IF due IS NULL AND NOT EXISTS (SELECT FROM pg_stat_progress_copy WHERE pid = pg_backend_pid()) THEN
      RETURN false;
    END IF;
    now := extract(epoch FROM clock_timestamp());
    due := coalesce(nullif(current_setting('foreshard.paced_at', true), '')::float8, 0) + bytes / rate::float8;
    EXIT WHEN now >= due;
    PERFORM pg_sleep(least(due - now, 0.2));
  END LOOP;
  -- What was late by little is made up for.
  PERFORM set_config('foreshard.paced_at', greatest(due, now - 0.1)::text, false);
  RETURN false;
END
$pace$
