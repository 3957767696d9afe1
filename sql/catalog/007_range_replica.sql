-- Intervals that are kept up to date on another shard, to be read there. One row per migration that is to rest in the state `following`. While reads may
-- go there, `since` has the epoch from which on they may, and all the columns behind it are set; they are a part of the topology.
CREATE TABLE foreshard.range_replica (
  migration_id      bigint PRIMARY KEY REFERENCES foreshard.migration,
  max_staleness_ms  int NOT NULL CHECK (max_staleness_ms > 0),
  read_percent      int NOT NULL DEFAULT 0 CHECK (read_percent BETWEEN 0 AND 100),  -- of the clients, whatever they asked for
  since             bigint,
  keyspace          text REFERENCES foreshard.keyspace,
  lo                jsonb,
  hi                jsonb,
  source            text REFERENCES foreshard.shard,
  shard             text REFERENCES foreshard.shard,
  marker_schema     text,
  marker_table      text,
  reference_tables  jsonb,   -- [{"schema": …, "table": …}]: those that are kept up to date with it
  schema_generation bigint,  -- its tables are as they are at the source as of this one
  CHECK (since IS NULL OR num_nulls(keyspace, source, shard, marker_schema, marker_table, reference_tables, schema_generation) = 0)
);
CREATE TRIGGER announce AFTER UPDATE ON foreshard.range_replica FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();

-- Also: that a replica becomes the owner.
ALTER TABLE foreshard.migration DROP CONSTRAINT migration_requested_check,
  ADD CONSTRAINT migration_requested_check CHECK (requested IN ('finish', 'rollback', 'promote'));
