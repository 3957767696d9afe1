import { execFile } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** A TypeScript file and what it imports, compiled so that a child process can run it. */
export interface Compiled {
  readonly file: string;
  remove(): Promise<void>;
}

/** Compiles inside node_modules/.cache, where the package's root and its dependencies are found as from the source. */
export async function compile(source: URL): Promise<Compiled> {
  const root = resolve(import.meta.dirname, '../..');
  const entry = relative(root, fileURLToPath(source));
  const outDir = join(root, 'node_modules/.cache/foreshard-chaos', `${process.pid}`);
  mkdirSync(outDir, { recursive: true });
  const config = join(outDir, 'tsconfig.json');
  writeFileSync(
    config,
    JSON.stringify({
      extends: join(root, 'tsconfig.json'),
      compilerOptions: {
        outDir,
        rootDir: root,
        incremental: false,
        tsBuildInfoFile: null,
        noCheck: true,
        sourceMap: false,
      },
      files: [join(root, entry)],
      include: [],
    }),
  );
  // Without a package.json of its own, the nearest one is the project's: ES modules, as there.
  const tsc = join(createRequire(import.meta.url).resolve('typescript/package.json'), '../bin/tsc');
  await promisify(execFile)(process.execPath, [tsc, '-p', config]);
  return {
    file: join(outDir, entry.replace(/\.ts$/, '.js')),
    remove: () => rm(outDir, { recursive: true, force: true }),
  };
}
