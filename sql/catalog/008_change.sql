-- What people ask for in one go (a split, a drain …): several migrations with an order. Its number is of the same sequence as theirs, so that
-- one number never names two things.
CREATE TABLE foreshard.change (
  id          bigint PRIMARY KEY DEFAULT nextval(pg_get_serial_sequence('foreshard.migration', 'id')),
  kind        text NOT NULL CHECK (kind IN ('move', 'split', 'merge', 'isolate', 'drain', 'rebalance')),
  request     jsonb NOT NULL,           -- as it was asked for
  epoch       bigint NOT NULL,          -- at which it was planned; it is approved and started at no other
  concurrency int NOT NULL CHECK (concurrency > 0),  -- of its migrations at work at once
  created_by  text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  approved_by text,
  approved_at timestamptz,
  started_by  text,
  started_at  timestamptz
);

-- A member is 'planned' until its change is started. Members begin by position.
ALTER TABLE foreshard.migration ADD COLUMN change_id bigint REFERENCES foreshard.change;
ALTER TABLE foreshard.migration ADD COLUMN position int;
ALTER TABLE foreshard.migration ADD CONSTRAINT migration_member CHECK ((change_id IS NULL) = (position IS NULL));
CREATE UNIQUE INDEX migration_position ON foreshard.migration (change_id, position);
