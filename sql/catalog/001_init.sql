-- The catalog: one schema in one PostgreSQL database. Bounds and keys are jsonb arrays of strings, one element per key
-- column, each in PostgreSQL's own text form (uuid with dashes, timestamps in ISO 8601, hashes as decimal bigints);
-- SQL NULL is minus infinity for lo, plus infinity for hi.
CREATE SCHEMA foreshard;

CREATE TABLE foreshard.meta (
  singleton      boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  cluster_id     uuid NOT NULL DEFAULT gen_random_uuid(),
  schema_version int NOT NULL,
  epoch          bigint NOT NULL DEFAULT 1,
  database       text NOT NULL,
  created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE foreshard.shard (
  name                   text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,39}$'),
  url                    text NOT NULL,
  home                   boolean NOT NULL DEFAULT false,
  capacity_ms_per_second double precision CHECK (capacity_ms_per_second > 0),
  added_at               timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX shard_one_home ON foreshard.shard (home) WHERE home;

CREATE TABLE foreshard.keyspace (
  name       text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
  method     text NOT NULL CHECK (method IN ('range', 'hash')),
  key_types  text[] NOT NULL CHECK (cardinality(key_types) > 0),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE foreshard.sharded_table (
  schema_name text NOT NULL,
  table_name  text NOT NULL,
  keyspace    text NOT NULL REFERENCES foreshard.keyspace,
  key_columns text[] NOT NULL,
  PRIMARY KEY (schema_name, table_name)
);

CREATE TABLE foreshard.reference_table (
  schema_name text NOT NULL,
  table_name  text NOT NULL,
  PRIMARY KEY (schema_name, table_name)
);

CREATE TABLE foreshard.reference_copy (
  schema_name text NOT NULL,
  table_name  text NOT NULL,
  shard       text NOT NULL REFERENCES foreshard.shard,
  PRIMARY KEY (schema_name, table_name, shard),
  FOREIGN KEY (schema_name, table_name) REFERENCES foreshard.reference_table ON DELETE CASCADE
);

CREATE TABLE foreshard.range (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  keyspace text NOT NULL REFERENCES foreshard.keyspace,
  lo       jsonb,
  hi       jsonb,
  shard    text NOT NULL REFERENCES foreshard.shard
);
CREATE UNIQUE INDEX range_lo ON foreshard.range (keyspace, lo) NULLS NOT DISTINCT;

-- Proxies and their leases. A proxy serves only while its lease lasts, counted from before it asked.
CREATE TABLE foreshard.proxy (
  id          uuid PRIMARY KEY,
  name        text NOT NULL,
  listen      text NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  lease_until timestamptz NOT NULL,
  epoch_acked bigint NOT NULL
);

CREATE TABLE foreshard.hold (
  id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  migration_id     bigint NOT NULL,
  keyspace         text NOT NULL REFERENCES foreshard.keyspace,
  lo               jsonb,
  hi               jsonb,
  reference_tables boolean NOT NULL,
  deadline         timestamptz NOT NULL
);

-- A proxy has acknowledged a hold: it lets nothing new start on the interval and has no transaction open on it.
CREATE TABLE foreshard.hold_ack (
  hold_id  bigint NOT NULL REFERENCES foreshard.hold ON DELETE CASCADE,
  proxy_id uuid NOT NULL REFERENCES foreshard.proxy ON DELETE CASCADE,
  acked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (hold_id, proxy_id)
);

-- Load history. A segment is a finer interval inside a range, the unit in which load is counted.
CREATE TABLE foreshard.segment (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  keyspace text NOT NULL REFERENCES foreshard.keyspace,
  lo       jsonb,
  hi       jsonb
);
CREATE UNIQUE INDEX segment_lo ON foreshard.segment (keyspace, lo) NULLS NOT DISTINCT;

CREATE TABLE foreshard.load (
  step_seconds int NOT NULL CHECK (step_seconds IN (10, 60, 3600)),
  at           timestamptz NOT NULL,            -- start of the step
  segment_id   bigint NOT NULL REFERENCES foreshard.segment ON DELETE CASCADE,
  reads        bigint NOT NULL DEFAULT 0,       -- statements
  writes       bigint NOT NULL DEFAULT 0,       -- statements
  rows         bigint NOT NULL DEFAULT 0,       -- returned or changed
  bytes        bigint NOT NULL DEFAULT 0,       -- sent to clients
  server_ms    double precision NOT NULL DEFAULT 0,  -- busy backend
  PRIMARY KEY (step_seconds, segment_id, at)
);
CREATE INDEX load_at ON foreshard.load (step_seconds, at);

-- Sampled keys per segment, weighted by server time: where to cut inside a segment.
CREATE TABLE foreshard.key_sample (
  segment_id bigint NOT NULL REFERENCES foreshard.segment ON DELETE CASCADE,
  key        jsonb NOT NULL,
  weight     double precision NOT NULL,
  seen_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (segment_id, key)
);

CREATE TABLE foreshard.template_stat (
  hour      timestamptz NOT NULL,
  template  text NOT NULL,
  route     text NOT NULL,
  calls     bigint NOT NULL,
  rows      bigint NOT NULL,
  server_ms double precision NOT NULL,
  PRIMARY KEY (hour, template, route)
);

CREATE TABLE foreshard.plan (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at  timestamptz NOT NULL DEFAULT now(),
  epoch       bigint NOT NULL,
  hash        text NOT NULL,
  status      text NOT NULL CHECK (status IN ('proposed', 'approved', 'rejected', 'expired', 'done')),
  body        jsonb NOT NULL,
  decided_by  text,
  decided_at  timestamptz,
  expires_at  timestamptz NOT NULL
);

CREATE TABLE foreshard.migration (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  plan_id         bigint REFERENCES foreshard.plan,
  kind            text NOT NULL,
  spec            jsonb NOT NULL,
  state           text NOT NULL,
  generation      bigint NOT NULL DEFAULT 0,
  facts           jsonb NOT NULL DEFAULT '{}',
  progress        jsonb NOT NULL DEFAULT '{}',
  abort_requested boolean NOT NULL DEFAULT false,
  error           text,
  lease_owner     uuid,
  lease_until     timestamptz,
  created_at      timestamptz NOT NULL DEFAULT now(),
  updated_at      timestamptz NOT NULL DEFAULT now()
);

-- Each written, and committed, before the object it names is created.
CREATE TABLE foreshard.migration_cleanup (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  migration_id bigint NOT NULL REFERENCES foreshard.migration,
  kind         text NOT NULL,
  shard        text NOT NULL,
  object       jsonb NOT NULL,
  done_at      timestamptz
);

CREATE TABLE foreshard.migration_event (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  migration_id bigint NOT NULL REFERENCES foreshard.migration,
  at           timestamptz NOT NULL DEFAULT clock_timestamp(),
  state        text NOT NULL,
  detail       jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE foreshard.audit (
  id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor  text NOT NULL,
  action text NOT NULL,
  object text NOT NULL,
  detail jsonb NOT NULL DEFAULT '{}'
);

-- Everything a proxy must know at once is announced on one channel; a poll stands behind it.
CREATE FUNCTION foreshard.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('foreshard_topology', TG_TABLE_NAME);
  RETURN NULL;
END
$$;
CREATE TRIGGER announce AFTER UPDATE OF epoch ON foreshard.meta FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON foreshard.hold FOR EACH STATEMENT EXECUTE FUNCTION foreshard.announce();
