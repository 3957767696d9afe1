#!/bin/sh
# Makes the catalog and enters the shards. May run again at every start: what is there stays as it is.
set -eu
foreshard init
foreshard shard add s1 postgresql://postgres@shard1:5432/app --home
foreshard shard add s2 postgresql://postgres@shard2:5432/app
foreshard shard add s3 postgresql://postgres@shard3:5432/app
