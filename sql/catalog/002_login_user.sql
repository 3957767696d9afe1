-- Users of the proxy whose passwords are checked against the catalog. Verifiers only, as in pg_authid.rolpassword: nobody who reads this
-- table learns a password.
CREATE TABLE foreshard.login_user (
  name        text PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 63),
  verifier    text NOT NULL CHECK (verifier ~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$'),
  valid_until timestamptz,
  changed_at  timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON foreshard.login_user FROM PUBLIC;
