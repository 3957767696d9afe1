-- What somebody has asked of a migration between its flip and its end: 'finish' or 'rollback'.
ALTER TABLE foreshard.migration ADD COLUMN requested text CHECK (requested IN ('finish', 'rollback'));

-- It goes no further, and loads neither server, until it is resumed.
ALTER TABLE foreshard.migration ADD COLUMN paused boolean NOT NULL DEFAULT false;
