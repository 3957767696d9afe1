-- Who decides over transactions on several shards: one per process of a proxy and lease. Its prepared transactions bear its id.
CREATE TABLE foreshard.coordinator (
  id uuid PRIMARY KEY,
  -- That of the lease. No foreign key: a proxy's row goes with its lease, what it has decided stays until it is carried out.
  proxy_id uuid NOT NULL,
  proxy_name text NOT NULL,
  enrolled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- It decides nothing any more: what it has not decided is rolled back, by whoever finds it. Never taken back.
  fenced_at timestamptz,
  -- Since when nothing of it was found on any shard.
  clean_since timestamptz,
  looked_at timestamptz
);

-- How a transaction on several shards ends. The first row for a number counts.
CREATE TABLE foreshard.decision (
  coordinator uuid NOT NULL REFERENCES foreshard.coordinator ON DELETE CASCADE,
  number bigint NOT NULL,
  -- false: written only where it was not certain whether the decision to commit had been recorded, so that it cannot be any more.
  committed boolean NOT NULL,
  shards text[] NOT NULL,
  decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (coordinator, number)
);
