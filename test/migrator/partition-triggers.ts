import { withClient } from '../support/client.js';
import { partitionOrders } from './partitioned.js';
import type { Setting } from './setting.js';
import type { Writers } from './writers.js';

/**
 * What an application leaves to the triggers and policies of a partitioned table: on the table itself, on one that is partitioned in turn, on single partitions, in all modes, which
 * some partitions have otherwise than their parents. All note what they see in a log that goes with the table, so that it has each write exactly once.
 */
const BEHAVIOUR = `
CREATE SCHEMA app_private;
ALTER TABLE orders ADD touched int NOT NULL DEFAULT 0;
CREATE TABLE order_log (tenant_id int NOT NULL, no bigint GENERATED ALWAYS AS IDENTITY, order_id bigint NOT NULL, what text NOT NULL, PRIMARY KEY (tenant_id, no));
CREATE FUNCTION app_private.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := NEW.touched + TG_ARGV[0]::int; RETURN NEW; END $$;
CREATE FUNCTION app_private.log() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF TG_OP = 'DELETE' THEN INSERT INTO public.order_log (tenant_id, order_id, what) VALUES (OLD.tenant_id, OLD.id, TG_ARGV[0] || ' DELETE'); RETURN OLD; END IF;
    INSERT INTO public.order_log (tenant_id, order_id, what) VALUES (NEW.tenant_id, NEW.id, TG_ARGV[0] || ' ' || TG_OP);
    RETURN NEW;
  END $$;
CREATE FUNCTION app_private.log_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.order_log (tenant_id, order_id, what) SELECT tenant_id, id, 'statement' FROM added; RETURN NULL; END $$;
CREATE TRIGGER touch BEFORE UPDATE OF version ON orders FOR EACH ROW WHEN (OLD.version <> NEW.version) EXECUTE FUNCTION app_private.touch('1');
CREATE TRIGGER "Log Rows" AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION app_private.log('row');
CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION app_private.log('always');
CREATE TRIGGER log_statements AFTER INSERT ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app_private.log_all();
CREATE TRIGGER mid AFTER UPDATE ON orders_mid FOR EACH ROW EXECUTE FUNCTION app_private.log('mid');
CREATE TRIGGER leaf BEFORE INSERT ON orders_rest FOR EACH ROW EXECUTE FUNCTION app_private.log('leaf');
CREATE TRIGGER named AFTER INSERT ON orders_attached REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app_private.log_all();
CREATE TRIGGER resting BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION app_private.touch('100');
ALTER TABLE orders DISABLE TRIGGER resting;
ALTER TABLE orders ENABLE ALWAYS TRIGGER always;
ALTER TABLE orders ENABLE ALWAYS TRIGGER log_statements;
ALTER TABLE orders_mid_1 DISABLE TRIGGER always;
ALTER TABLE orders_attached ENABLE REPLICA TRIGGER always;
ALTER TABLE orders_mid ENABLE REPLICA TRIGGER "Log Rows";
ALTER TABLE orders_mid_0 ENABLE TRIGGER "Log Rows";
ALTER TABLE orders_mid_1 ENABLE ALWAYS TRIGGER "Log Rows";
ALTER TABLE orders_rest ENABLE ALWAYS TRIGGER leaf;
ALTER TABLE orders_attached ENABLE ALWAYS TRIGGER named;
COMMENT ON TRIGGER touch ON orders_mid_0 IS 'of one partition';
CREATE POLICY own ON orders FOR SELECT TO shop_app USING (tenant_id = current_setting('shop.tenant')::int);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY late ON orders_rest TO shop_app USING (tenant_id = current_setting('shop.tenant')::int AND id > 5) WITH CHECK (EXISTS (SELECT FROM orders o WHERE o.id = 1));
COMMENT ON POLICY late ON orders_rest IS 'what is named by itself';
ALTER TABLE orders_rest ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders_rest FORCE ROW LEVEL SECURITY;
GRANT SELECT ON orders, orders_rest TO shop_app;
GRANT USAGE ON SCHEMA app_private TO shop_owner;
GRANT ALL ON order_log TO shop_owner;`;

/** The shop, its orders partitioned, and all of that on them. @param identity see `partitionOrders` */
export async function guardOrders(s: Setting, identity = true): Promise<void> {
  for (const cluster of [s.one, s.two])
    await withClient(cluster.url('postgres'), (c) =>
      c.query('DO $$ BEGIN CREATE ROLE shop_app; EXCEPTION WHEN duplicate_object THEN NULL; END $$'),
    );
  await partitionOrders(s, identity);
  await withClient(s.urlOne, (c) => c.query(BEHAVIOUR));
  await s.catalog.pool.query(
    `INSERT INTO foreshard.sharded_table VALUES ('public', 'order_log', 'tenant', ARRAY['tenant_id'])`,
  );
  await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
}

/** Everything about triggers, also those that partitions have from their parents, their functions, and policies. */
export async function behaviour(url: string): Promise<string[]> {
  return withClient(url, async (c) => {
    const { rows } = await c.query<{ what: string }>(
      `SELECT concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled, tgparentid <> 0, obj_description(t.oid, 'pg_trigger')) AS what FROM pg_trigger t WHERE NOT tgisinternal
       UNION ALL SELECT concat_ws(' ', pg_get_functiondef(p.oid), pg_get_userbyid(p.proowner), p.proacl) FROM pg_proc p WHERE pronamespace = to_regnamespace('app_private')
       UNION ALL SELECT concat_ws(' ', polrelid::regclass, polname, polpermissive, polroles::regrole[], polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid),
                                  obj_description(oid, 'pg_policy')) FROM pg_policy
       UNION ALL SELECT concat_ws(' ', oid::regclass, relrowsecurity, relforcerowsecurity) FROM pg_class WHERE relrowsecurity
       ORDER BY 1`,
    );
    return rows.map((row) => row.what);
  });
}

/** Triggers, in their modes, that fire for what is replicated. */
export async function loud(url: string): Promise<string[]> {
  return withClient(url, async (c) => {
    const { rows } = await c.query<{ what: string }>(
      `SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) AS what FROM pg_trigger WHERE NOT tgisinternal AND tgenabled IN ('A', 'R') AND tgname NOT LIKE '%foreshard%' ORDER BY 1`,
    );
    return rows.map((row) => row.what);
  });
}

/** What is wrong with what triggers have done: once for each write, and where the row is. */
export async function effectsOf(
  s: Setting,
  { journal, deleted }: Writers,
  tenants: number,
  onTwo: (tenant: number) => boolean,
): Promise<string[]> {
  const wrong: string[] = [];
  const logs = new Map<string, number>();
  const read = <T extends object>(url: string, sql: string) =>
    withClient(url, async (c) =>
      (await c.query("SELECT to_regclass('order_log') IS NULL AS gone")).rows[0].gone
        ? []
        : (await c.query<T>(sql)).rows,
    );
  for (const url of [s.urlOne, s.urlTwo]) {
    for (const r of await read<{ tenant_id: number; order_id: string; what: string; n: number }>(
      url,
      'SELECT tenant_id, order_id, what, count(*)::int AS n FROM order_log GROUP BY 1, 2, 3',
    )) {
      const key = `${r.tenant_id}/${r.order_id} ${r.what}`;
      logs.set(key, (logs.get(key) ?? 0) + r.n);
      if (onTwo(r.tenant_id) === (url === s.urlOne)) wrong.push(`the log of ${key} is on the other shard`);
    }
    for (const r of await read<{ key: string }>(
      url,
      `SELECT tenant_id || '/' || id AS key FROM orders WHERE touched <> version`,
    ))
      wrong.push(`${r.key} was not touched once for each update`);
  }
  const second = new Set(
    (
      await read<{ t: number }>(
        s.urlOne,
        `SELECT t FROM generate_series(1, ${tenants}) t WHERE satisfies_hash_partition('orders_mid'::regclass, 2, 1, t)`,
      )
    ).map((row) => row.t),
  );
  const expected = new Map<string, number>();
  const expect = (key: string, { tenant, id }: { tenant: number; id: number }, version: number, gone: boolean) => {
    const want = (what: string, n: number) => n > 0 && expected.set(`${key} ${what}`, n);
    const isMid = id < 3_000_000;
    const isRest = id >= 4_000_000;
    for (const [what, fires] of [
      ['row', true],
      ['always', isMid ? !second.has(tenant) : isRest],
    ] as const) {
      if (!fires) continue;
      want(`${what} INSERT`, 1);
      want(`${what} UPDATE`, version);
      if (gone) want(`${what} DELETE`, 1);
    }
    if (isMid) want('mid UPDATE', version);
    if (isRest) want('leaf INSERT', 1);
    want('statement', 1);
  };
  for (const [key, order] of journal) expect(key, order, order.version, false);
  for (const [key, order] of deleted) {
    // How often it had been updated is not known any more.
    const updates = logs.get(`${key} row UPDATE`) ?? 0;
    expect(key, order, updates, true);
  }
  for (const [key, n] of expected) if (logs.get(key) !== n) wrong.push(`${key}: ${logs.get(key) ?? 0}, not ${n}`);
  for (const [key, n] of logs) if (!expected.has(key)) wrong.push(`${key}: ${n}, and never written`);
  return wrong.slice(0, 20);
}
