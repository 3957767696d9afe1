-- What somebody has asked of a migration between its flip and its end: 'finish' or 'rollback'.
ALTER TABLE foreshard.migration ADD COLUMN requested text CHECK (requested IN ('finish', 'rollback'));
