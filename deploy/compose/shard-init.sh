#!/bin/sh
# Run once by the PostgreSQL image when a shard's data directory is made: the application's role and its database. The
# password's verifier becomes the same on all shards when they are added (foreshard shard add copies it from the first).
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres -v password="$APP_PASSWORD" <<'SQL'
CREATE ROLE app LOGIN PASSWORD :'password';
CREATE DATABASE app OWNER app;
SQL
