import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 1 });
});
afterAll(() => s.stop());

describe('standard_conforming_strings', () => {
  it.each([
    ['SET', {}, 'SET standard_conforming_strings = off'],
    ['the connection string', { options: '-c standard_conforming_strings=off' }, 'SELECT 1'],
  ])('off by %s: a backslash is an escape, and the row is where its key belongs', async (how, config, sql) => {
    const client = await s.connect({
      ...config,
      options: `${'options' in config ? config.options : ''} -c escape_string_warning=off`,
    });
    await client.query(sql);
    const tenant = how === 'SET' ? 150 : 151;
    await client.query(String.raw`INSERT INTO tenants VALUES (${tenant}, 'it\'s, (7, \'me\')')`);
    expect(await s.onShard(1, `SELECT name FROM tenants WHERE tenant_id = ${tenant}`)).toEqual([
      { name: "it's, (7, 'me')" },
    ]);
    expect(await s.onShard(0, `SELECT name FROM tenants WHERE tenant_id = ${tenant}`)).toEqual([]);
    await client.end();
  });

  it('a statement prepared while it is off means that on every connection, and not for others', async () => {
    const off = await s.connect({ options: '-c standard_conforming_strings=off -c escape_string_warning=off' });
    const on = await s.connect();
    const text = String.raw`SELECT 'a\\b' AS s FROM tenants WHERE tenant_id = $1`;
    const ask = async (client: typeof on) => (await client.query({ name: 'p', text, values: [150] })).rows;
    for (let i = 0; i < 2; i++) {
      expect(await ask(off)).toEqual([{ s: 'a\\b' }]);
      expect(await ask(on)).toEqual([{ s: 'a\\\\b' }]);
    }
    // Another connection would have to prepare it anew, as it was not meant.
    await off.query('SET standard_conforming_strings = on');
    await expect(ask(off)).rejects.toMatchObject({ code: '0A000' });
    await off.query('SET standard_conforming_strings = off');
    expect(await ask(off)).toEqual([{ s: 'a\\b' }]);
    await off.end();
    await on.end();
  });
});
