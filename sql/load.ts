import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The package's root: the nearest folder above this file with a package.json, be it run from source or from dist/. */
function packageRoot(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) {
    const parent = dirname(dir);
    if (parent === dir) throw new Error(`no package.json above ${fileURLToPath(import.meta.url)}`);
    dir = parent;
  }
  return dir;
}

const sqlFolder = join(packageRoot(), 'sql');

/** Text of a file in `sql/`; the path is relative to that folder: `loadSql('shard/guard.sql')`. */
export function loadSql(relativePath: string): string {
  return readFileSync(join(sqlFolder, relativePath), 'utf8');
}

/** Names of the `.sql` files in a folder of `sql/`, sorted. */
export function listSql(folder: string): string[] {
  return readdirSync(join(sqlFolder, folder))
    .filter((name) => name.endsWith('.sql'))
    .sort();
}
