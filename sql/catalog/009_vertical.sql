-- Tables that get a keyspace of their own and move to another shard.
ALTER TABLE foreshard.change DROP CONSTRAINT change_kind_check;
ALTER TABLE foreshard.change ADD CHECK (kind IN ('move', 'split', 'merge', 'isolate', 'drain', 'rebalance', 'vertical'));

-- Tables that had no keyspace get one without a key: one range, in which all their rows are.
ALTER TABLE foreshard.keyspace DROP CONSTRAINT keyspace_key_types_check;
ALTER TABLE foreshard.keyspace ADD CHECK (cardinality(key_types) > 0 OR method = 'range');
