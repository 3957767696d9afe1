-- One kind of migration moves an interval, another changes the bounds of ranges ('recut').
UPDATE foreshard.migration SET kind = 'move', spec = spec || '{"kind": "move"}' WHERE kind = 'split_move';
-- What is approved is hashed with its spec.
UPDATE foreshard.plan SET status = 'expired' WHERE status = 'proposed';
