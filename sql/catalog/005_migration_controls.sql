-- How a migration is to be carried out, as people want it: topology/migration-controls.ts. Read with the lease, so that it may change while the migration runs.
ALTER TABLE foreshard.migration ADD COLUMN controls jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(controls) = 'object');
