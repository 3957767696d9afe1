-- Clients wait while a range flips, and every proxy that asks the catalog meanwhile keeps them waiting longer. So a new hold is announced with all that there is to know of it; and what is done with
-- foreshard.announce = 'later' is announced by whoever does it, behind it.
CREATE OR REPLACE FUNCTION foreshard.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('foreshard.announce', true) IS DISTINCT FROM 'later' THEN
    PERFORM pg_notify('foreshard_topology', TG_TABLE_NAME);
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION foreshard.announce_hold() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  told text := jsonb_build_object(
    'epoch', (SELECT m.epoch::text FROM foreshard.meta m),
    'hold', jsonb_build_object('id', NEW.id::text, 'keyspace', NEW.keyspace, 'lo', NEW.lo, 'hi', NEW.hi, 'referenceTables', NEW.reference_tables,
      'endsTransactions', NEW.ends_transactions, 'remainingMs', extract(epoch FROM NEW.deadline - clock_timestamp()) * 1000));
BEGIN
  -- What NOTIFY takes is shorter than 8,000 bytes, and bounds may be long.
  PERFORM pg_notify('foreshard_topology', CASE WHEN octet_length(told) < 8000 THEN told ELSE TG_TABLE_NAME::text END);
  RETURN NULL;
END
$$;

DROP TRIGGER announce ON foreshard.hold;
CREATE TRIGGER announce AFTER UPDATE OR DELETE ON foreshard.hold FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();
CREATE TRIGGER announce_new AFTER INSERT ON foreshard.hold FOR EACH ROW EXECUTE FUNCTION foreshard.announce_hold();
