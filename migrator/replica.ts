import { audit, type CatalogClient, raiseEpoch } from '../topology/catalog/change.js';
import { epochAckedByAll } from '../topology/catalog/leases.js';
import { readTopology } from '../topology/catalog/topology-reader.js';
import { positionToJson } from '../topology/key-codec.js';
import { type Epoch, rangesIn, type Topology } from '../topology/topology.js';
import type { CatalogStatement } from './action.js';
import { MigrationFailure } from './executor.js';
import { isReference, type Move } from './move.js';

/**
 * From here on proxies may read the interval at its destination. A clean-up record comes first. Repeated, it notes the generation alone.
 * @param generation of the schema, as of which (or a later one) the tables of both sides were seen to be alike
 */
export async function putInService(m: Move, generation: bigint): Promise<void> {
  const id = m.row.id.toString();
  await m.exec.record({ kind: 'replica', shard: m.spec.to, object: { migration: id } });
  m.exec.at('recorded:serve-replica');
  if (m.exec.dry) {
    await m.exec.wait(`reads of the interval may go to shard "${m.spec.to}", from a new epoch on`, async () => true);
    return;
  }
  await m.exec.inLease(m.row, async (client) => {
    // Whoever changes who owns what waits until this is committed.
    await client.query('SELECT FROM foreshard.meta FOR UPDATE');
    const topology = await readTopology(client);
    // The schema may have changed while no migrator was there to look at the tables.
    if (topology.replicas.some((r) => r.id === m.row.id)) return setGeneration(client, m, generation);
    checkOwner(m, topology);
    const epoch = await raiseEpoch(client, topology.epoch);
    const bound = (p: typeof m.spec.lo) => (p === null ? null : JSON.stringify(positionToJson(m.keyspace, p)));
    const { schema, table } = m.names.marker;
    await client.query(
      `UPDATE foreshard.range_replica SET since = $2, keyspace = $3, lo = $4, hi = $5, source = $6, shard = $7, marker_schema = $8,
              marker_table = $9, reference_tables = $10, schema_generation = $11 WHERE migration_id = $1`,
      [
        id,
        epoch.toString(),
        m.keyspace.name,
        bound(m.spec.lo),
        bound(m.spec.hi),
        m.spec.from,
        m.spec.to,
        schema,
        table,
        JSON.stringify(m.tables.filter(isReference).map((t) => ({ schema: t.schema, table: t.table }))),
        generation.toString(),
      ],
    );
    const detail = { epoch: epoch.toString(), keyspace: m.keyspace.name, shard: m.spec.to };
    await audit(client, { actor: 'migrator', action: 'replica.serve', object: `migration ${id}`, detail });
  });
  m.exec.at('after:serve-replica');
}

function checkOwner(m: Move, topology: Topology): void {
  const keyspace = topology.keyspaces.get(m.keyspace.name);
  const owners = keyspace === undefined ? [] : rangesIn(keyspace, m.spec).map((range) => range.shard);
  if (owners.length === 0 || owners.some((shard) => shard !== m.spec.from))
    throw new MigrationFailure(
      `the interval no longer belongs to shard "${m.spec.from}"`,
      'The topology has changed: make the replica again.',
    );
}

/** Nobody reads at the destination any more when this resolves. Also when it was never put in service. */
export async function takeOutOfService(m: Move): Promise<void> {
  const id = m.row.id.toString();
  m.exec.at('before:stop-replica');
  await m.exec.inLease(m.row, async (client) => {
    await client.query('SELECT FROM foreshard.meta FOR UPDATE');
    const topology = await readTopology(client);
    if (!topology.replicas.some((r) => r.id === m.row.id)) return;
    const epoch = await raiseEpoch(client, topology.epoch);
    await client.query(OUT_OF_SERVICE, [id]);
    const detail = { epoch: epoch.toString() };
    await audit(client, { actor: 'migrator', action: 'replica.stop', object: `migration ${id}`, detail });
  });
  m.exec.at('after:stop-replica');
  // One that died here before may have raised it; no earlier one will do.
  const { rows } = await m.catalog.pool.query<{ epoch: string }>('SELECT epoch::text FROM foreshard.meta');
  const epoch = BigInt((rows[0] as { epoch: string }).epoch) as Epoch;
  await m.exec.wait(
    'no proxy reads at the destination any more',
    async () => {
      await m.exec.progress({ note: 'waiting until no proxy reads at the destination' });
      return epochAckedByAll(m.catalog.pool, epoch);
    },
    { everyMs: 50 },
  );
}

const OUT_OF_SERVICE = `UPDATE foreshard.range_replica SET since = NULL, keyspace = NULL, lo = NULL, hi = NULL, source = NULL, shard = NULL,
  marker_schema = NULL, marker_table = NULL, reference_tables = NULL, schema_generation = NULL WHERE migration_id = $1`;

/** A part of the flip: who was followed until now is the owner's past. */
export function replacedByOwner(m: Move): CatalogStatement[] {
  if (m.row.replica === null) return [];
  return [
    {
      text: 'the destination is no replica any more',
      sql: OUT_OF_SERVICE,
      values: [m.row.id.toString()],
      elseConflict: null,
    },
  ];
}

/** The tables of both sides were seen to be alike again. */
export async function noteGeneration(m: Move, generation: bigint): Promise<void> {
  m.exec.at('before:note-generation');
  await m.exec.inLease(m.row, (client) => setGeneration(client, m, generation));
  m.exec.at('after:note-generation');
}

async function setGeneration(client: CatalogClient, m: Move, generation: bigint): Promise<void> {
  await client.query(
    'UPDATE foreshard.range_replica SET schema_generation = $2 WHERE migration_id = $1 AND since IS NOT NULL',
    [m.row.id.toString(), generation.toString()],
  );
}
