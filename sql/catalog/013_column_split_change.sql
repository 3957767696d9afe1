-- Columns of a table that get a table of their own and move to another shard, and the way back.
ALTER TABLE foreshard.change DROP CONSTRAINT change_kind_check;
ALTER TABLE foreshard.change ADD CHECK (kind IN ('move', 'split', 'merge', 'isolate', 'drain', 'rebalance', 'vertical', 'columns', 'unite'));
