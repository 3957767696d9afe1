-- Columns of a table that are kept in another one, which is of a keyspace of its own with the same key.
CREATE TABLE foreshard.column_split (
  schema_name  text NOT NULL,
  table_name   text NOT NULL,
  hot_schema   text NOT NULL,
  hot_table    text NOT NULL,
  columns      text[] NOT NULL CHECK (cardinality(columns) > 0),
  primary_key  text[] NOT NULL CHECK (cardinality(primary_key) > 0),
  PRIMARY KEY (schema_name, table_name),
  UNIQUE (hot_schema, hot_table),
  FOREIGN KEY (schema_name, table_name) REFERENCES foreshard.sharded_table,
  FOREIGN KEY (hot_schema, hot_table) REFERENCES foreshard.sharded_table
);
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON foreshard.column_split FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();
