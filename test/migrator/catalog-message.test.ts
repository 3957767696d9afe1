import { afterAll, beforeAll, expect, test } from 'vitest';
import { catalogMessage, withLiterals } from '../../migrator/catalog-message.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

const AWKWARD = `it's $1, "$flip$", \\n and $$`;

let url: string;
beforeAll(async () => {
  url = (await startTestCluster()).url('postgres');
  await withClient(url, (c) => c.query('CREATE TABLE notes (id int, note text, at jsonb)'));
});
afterAll(() => withClient(url, (c) => c.query('DROP TABLE notes')));

const insert = (id: number, note: string | null) => ({
  text: '',
  sql: 'INSERT INTO notes (id, note, at) VALUES ($1, $2, $3)',
  values: [id, note, JSON.stringify([AWKWARD])],
  elseConflict: null,
});
const update = (id: number) => ({
  text: '',
  sql: 'UPDATE notes SET note = $2 WHERE id = $1',
  values: [id, 'changed'],
  elseConflict: "it's gone",
});
const notes = () =>
  withClient(url, async (c) => (await c.query('SELECT id, note, at FROM notes ORDER BY id')).rows as unknown[]);

test('one message does all of it, with values as they are, and answers', async () => {
  const results = await withClient(url, (c) =>
    c.query(catalogMessage([insert(1, AWKWARD), insert(2, null), update(2)], 'SELECT note FROM notes WHERE id = 2')),
  );
  expect((results as unknown as { rows: unknown[] }[]).flatMap((r) => r.rows)).toEqual([{ note: 'changed' }]);
  expect(await notes()).toEqual([
    { id: 1, note: AWKWARD, at: [AWKWARD] },
    { id: 2, note: 'changed', at: [AWKWARD] },
  ]);
});

test('nothing of it is done when one statement changes no row that should', async () => {
  const before = await notes();
  const message = catalogMessage([insert(3, 'three'), update(99), insert(4, 'four')], 'SELECT 1');
  await withClient(url, (c) => expect(c.query(message)).rejects.toMatchObject({ code: 'SH002', message: "it's gone" }));
  expect(await notes()).toEqual(before);
});

test('a parameter without a value is a mistake', () => {
  expect(() => withLiterals('SELECT $2', ['a'])).toThrow('no value for $2');
  const ten = Array.from({ length: 10 }, (_, i) => i);
  expect(withLiterals('$1 $10', ten)).toBe("'0' '9'");
});
