-- Raised when DDL has been committed through a proxy, and when tables are declared: every proxy then looks at the home shard's schema again.
ALTER TABLE foreshard.meta ADD COLUMN schema_generation bigint NOT NULL DEFAULT 0;
CREATE TRIGGER announce_schema AFTER UPDATE OF schema_generation ON foreshard.meta
  FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();

-- The last generation that the proxy has heard of: from then on it routes by no schema from before.
ALTER TABLE foreshard.proxy ADD COLUMN schema_heard bigint NOT NULL DEFAULT 0;
