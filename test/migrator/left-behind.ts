import { withClient } from '../support/client.js';
import type { Setting } from './setting.js';

/** The objects of a migration, as one that was forgotten would have left them. */
export async function leaveBehind(s: Setting, id: bigint): Promise<void> {
  const meta = await s.catalog.pool.query<{ part: string }>(
    "SELECT left(replace(cluster_id::text, '-', ''), 8) AS part FROM foreshard.meta",
  );
  const suffix = `${meta.rows[0]?.part}_${id}`;
  await withClient(s.urlOne, async (c) => {
    await c.query('CREATE SCHEMA foreshard_shard');
    await c.query(`CREATE TABLE foreshard_shard.marker_${suffix} (id int PRIMARY KEY)`);
    await c.query(`CREATE SEQUENCE foreshard_shard.gate_${suffix}`);
    await c.query(
      `CREATE FUNCTION foreshard_shard.guard_${suffix}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`,
    );
    await c.query(
      `CREATE TRIGGER foreshard_guard_${suffix}_i BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION foreshard_shard.guard_${suffix}()`,
    );
    await c.query(`CREATE PUBLICATION foreshard_${suffix} FOR TABLE foreshard_shard.marker_${suffix}`);
    await c.query(`SELECT pg_create_logical_replication_slot('foreshard_${suffix}', 'pgoutput')`);
  });
  await withClient(s.urlTwo, async (c) => {
    await c.query('CREATE SCHEMA foreshard_shard');
    await c.query(`CREATE TABLE foreshard_shard.marker_${suffix} (id int PRIMARY KEY)`);
    await c.query(`CREATE SUBSCRIPTION foreshard_${suffix} CONNECTION '${s.urlOne}' PUBLICATION foreshard_${suffix}
      WITH (create_slot = false, slot_name = 'foreshard_${suffix}', copy_data = false)`);
  });
}
