import { withClient } from '../support/client.js';
import type { Setting } from './setting.js';
import type { Writers } from './writers.js';

/** What an application has that leaves much to its triggers: a time stamp, a log in another table, counts of whole statements, checks at commit. */
const TRIGGERS = `
CREATE SCHEMA app_private;
ALTER TABLE orders ADD updated_at timestamptz, ADD touched int NOT NULL DEFAULT 0;
CREATE TABLE order_log (tenant_id int NOT NULL, no bigint GENERATED ALWAYS AS IDENTITY, order_id bigint NOT NULL, what text NOT NULL, PRIMARY KEY (tenant_id, no));
CREATE FUNCTION app_private.touch() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' AS $$
  BEGIN NEW.updated_at := clock_timestamp(); NEW.touched := NEW.touched + TG_ARGV[0]::int; RETURN NEW; END $$;
CREATE FUNCTION app_private.log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF TG_OP = 'DELETE' THEN INSERT INTO public.order_log (tenant_id, order_id, what) VALUES (OLD.tenant_id, OLD.id, TG_OP);
  ELSE INSERT INTO public.order_log (tenant_id, order_id, what) VALUES (NEW.tenant_id, NEW.id, TG_OP); END IF;
  RETURN NULL; END $$;
ALTER FUNCTION app_private.log() OWNER TO shop_owner;
REVOKE ALL ON FUNCTION app_private.log() FROM PUBLIC;
GRANT ALL ON TABLE order_log TO shop_owner;
GRANT USAGE ON SCHEMA app_private, public TO shop_owner;
CREATE FUNCTION app_private.log_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.order_log (tenant_id, order_id, what) SELECT tenant_id, id, 'statement' FROM added;
  RETURN NULL; END $$;
CREATE FUNCTION app_private.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE stored public.orders%ROWTYPE; BEGIN
  IF EXISTS (SELECT FROM public.orders WHERE tenant_id = NEW.tenant_id AND id = NEW.id AND body = 'to be refused') THEN
    RAISE EXCEPTION 'refused at commit' USING ERRCODE = 'check_violation'; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER touch BEFORE UPDATE OF version, body ON orders FOR EACH ROW WHEN (OLD.version <> NEW.version) EXECUTE FUNCTION app_private.touch('1');
CREATE TRIGGER "Log Rows" AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION app_private.log();
CREATE TRIGGER log_statements AFTER INSERT ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app_private.log_all();
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app_private.refuse();
CREATE TRIGGER resting BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION app_private.touch('100');
ALTER TABLE orders DISABLE TRIGGER resting;
COMMENT ON TRIGGER touch ON orders IS 'when it was last changed';
COMMENT ON FUNCTION app_private.touch() IS 'sets the time';`;

/** Those that fire for replicated rows, too, would log for whom they do. Nobody but superusers sees all rows. */
const LOUD = `
CREATE FUNCTION app_private.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.order_log (tenant_id, order_id, what) VALUES (coalesce(NEW.tenant_id, OLD.tenant_id), coalesce(NEW.id, OLD.id), TG_NAME || ' for ' || current_setting('session_replication_role'));
  RETURN NULL; END $$;
CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION app_private.tell();
CREATE TRIGGER replicas AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION app_private.tell();
ALTER TABLE orders ENABLE ALWAYS TRIGGER always;
ALTER TABLE orders ENABLE REPLICA TRIGGER replicas;
ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON orders TO PUBLIC USING (tenant_id = current_setting('shop.tenant')::int AND EXISTS (SELECT FROM tenants t WHERE t.id = tenant_id));
ALTER TABLE order_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON order_log TO shop_owner USING (true);
GRANT SELECT ON tenants TO shop_owner;`;

/** Gives the shop triggers. @param loud also such as fire for replicated rows, and policies */
export async function addTriggers(s: Setting, loud = false): Promise<void> {
  await withClient(s.urlOne, (c) => c.query(loud ? TRIGGERS + LOUD : TRIGGERS));
  await declare(s, 'order_log', 'tenant_id');
}

/** One more table of the shop's keyspace. */
async function declare(s: Setting, table: string, key: string): Promise<void> {
  await s.catalog.pool.query(`INSERT INTO foreshard.sharded_table VALUES ('public', $1, 'tenant', ARRAY[$2])`, [
    table,
    key,
  ]);
  await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
}

export async function rows<T extends object>(url: string, sql: string): Promise<T[]> {
  return withClient(url, async (c) => (await c.query<T>(sql)).rows);
}

/** Everything about triggers, their functions, and policies. */
export const behaviour = (url: string) =>
  rows<{ what: string }>(
    url,
    `SELECT concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger')) AS what FROM pg_trigger t WHERE NOT tgisinternal
     UNION ALL SELECT concat_ws(' ', pg_get_functiondef(p.oid), pg_get_userbyid(p.proowner), p.proacl, obj_description(p.oid, 'pg_proc')) FROM pg_proc p WHERE pronamespace = to_regnamespace('app_private')
     UNION ALL SELECT concat_ws(' ', p.polrelid::regclass, p.polname, v.permissive, v.roles, v.cmd, v.qual, v.with_check, obj_description(p.oid, 'pg_policy')) FROM pg_policy p
       JOIN pg_policies v ON v.policyname = p.polname AND v.tablename = (SELECT relname FROM pg_class WHERE oid = p.polrelid)
     UNION ALL SELECT concat_ws(' ', relname, relrowsecurity, relforcerowsecurity) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity
     ORDER BY 1`,
  );

/** What is wrong with what triggers have done: once for each write, and where the row is. @param onTwo null: all is on the first shard @param loud as for `addTriggers` */
export async function effectsOf(
  s: Setting,
  { journal, deleted }: Writers,
  onTwo: ((tenant: number) => boolean) | null,
  loud = false,
): Promise<string[]> {
  const wrong: string[] = [];
  const logs = new Map<string, Record<string, number>>();
  for (const url of onTwo === null ? [s.urlOne] : [s.urlOne, s.urlTwo]) {
    for (const r of await rows<{ tenant_id: number; order_id: string; what: string; n: number }>(
      url,
      'SELECT tenant_id, order_id, what, count(*)::int AS n FROM order_log GROUP BY 1, 2, 3',
    )) {
      const key = `${r.tenant_id}/${r.order_id}`;
      logs.set(key, { ...logs.get(key), [r.what]: (logs.get(key)?.[r.what] ?? 0) + r.n });
      if (onTwo?.(r.tenant_id) === (url === s.urlOne)) wrong.push(`the log of ${key} is on the other shard`);
      if (/ for replica$/.test(r.what)) wrong.push(`a trigger fired for what was not a client's: ${r.what}, ${key}`);
    }
    for (const r of await rows<{ key: string }>(
      url,
      `SELECT tenant_id || '/' || id AS key FROM orders WHERE touched <> version OR (version > 0) <> (updated_at IS NOT NULL)`,
    ))
      wrong.push(`${r.key} was not touched once for each update`);
  }
  const expect = (key: string, what: string, n: number) => {
    if ((logs.get(key)?.[what] ?? 0) !== n)
      wrong.push(`${key} has ${logs.get(key)?.[what] ?? 0} times ${what}, not ${n}`);
  };
  for (const [key, { version }] of journal) {
    expect(key, 'INSERT', 1);
    expect(key, 'statement', 1);
    expect(key, 'UPDATE', version);
    expect(key, 'DELETE', 0);
    if (loud) expect(key, 'always for origin', version + 1);
  }
  for (const key of deleted.keys()) expect(key, 'DELETE', 1);
  const written = new Set([...journal.keys(), ...deleted.keys()]);
  for (const key of logs.keys()) if (!written.has(key)) wrong.push(`${key} has been logged, and never written`);
  return wrong.slice(0, 20);
}
