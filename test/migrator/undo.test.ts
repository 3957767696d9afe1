import { expect, test } from 'vitest';
import { requestAbort } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers } from './setting.js';

const moves = shopMoves(12, 20);
const { s } = moves;

test('a table that others have come to use is not dropped, nor what they have made: it is said, until they have', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  const other = await moves.session(s.urlTwo);
  await other.query(`CREATE TABLE invoices (tenant_id int, order_id bigint, CONSTRAINT of_order FOREIGN KEY (tenant_id, order_id) REFERENCES orders);
    CREATE TABLE secrets (tenant_id int); ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
    CREATE POLICY of_tenant ON secrets USING (tenant_id IN (SELECT t.id FROM tenants t))`);
  const made = async () =>
    (
      await other.query(`SELECT conname AS name FROM pg_constraint WHERE conrelid = 'invoices'::regclass AND contype = 'f'
        UNION ALL SELECT polname FROM pg_policy WHERE polrelid = 'secrets'::regclass`)
    ).rows.map(({ name }) => name);
  await requestAbort(s.catalog.pool, id, 'test');
  const uses = (table: string, what: string) =>
    moves.noted(
      id,
      new RegExp(
        `^table "public.${table}" on shard "two" is used by what is not of this migration: ${what} depends on table public.${table}. Drop what uses it on shard "two"`,
      ),
    );
  await uses('tenants', 'policy of_tenant on table public.secrets');
  expect(await made()).toEqual(['of_order', 'of_tenant']);
  await other.query('DROP POLICY of_tenant ON secrets');
  await uses('orders', 'constraint of_order on table public.invoices');
  expect(await made()).toEqual(['of_order']);
  await other.query('ALTER TABLE invoices DROP CONSTRAINT of_order');
  expect(await moves.atRest(id)).toBe('aborted');
  const { rows } = await other.query(
    `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1`,
  );
  expect(rows.map(({ relname }) => relname)).toEqual(['invoices', 'secrets']);
  await withClient(s.urlOne, async (c) => expect((await c.query('SELECT FROM orders')).rowCount).toBe(240));
  expect(await leftovers(s)).toEqual([]);
});
