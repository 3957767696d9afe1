import { resolve } from 'node:path';
import { buildCli } from '../cli/run-cli.js';

const BUILT = resolve(import.meta.dirname, '../../dist/test/chaos');

/** A program of this folder, to be run by a process of its own; compiled, as all the rest, if it has changed. */
export async function built(name: 'audit-child' | 'migrator-child' | 'proxy-child'): Promise<string> {
  await buildCli();
  return resolve(BUILT, `${name}.js`);
}
