import { type ChildProcess, spawn } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import type { ClusterOptions } from '../../deploy/embedded/cluster.js';

const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** Puts a runnable copy of the embedded cluster below `target`, so that a process of its own can use it there. */
export function installEmbedded(target: string): void {
  const sources = readdirSync(join(ROOT, 'deploy', 'embedded')).map((name) => `deploy/embedded/${name}`);
  for (const source of ['topology/errors.ts', ...sources]) {
    mkdirSync(dirname(join(target, source)), { recursive: true });
    if (!source.endsWith('.ts')) {
      cpSync(join(ROOT, source), join(target, source));
      continue;
    }
    const { outputText } = ts.transpileModule(readFileSync(join(ROOT, source), 'utf8'), {
      compilerOptions: { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true },
    });
    writeFileSync(join(target, source.replace(/\.ts$/, '.js')), outputText);
  }
  writeFileSync(join(target, 'package.json'), '{ "type": "module" }');
  writeFileSync(
    join(target, 'owner.mjs'),
    `import { EmbeddedCluster } from './deploy/embedded/cluster.js';
const say = (message) => process.stdout.write(JSON.stringify(message) + '\\n');
try {
  const cluster = await EmbeddedCluster.start({ ...JSON.parse(process.argv[2]), log: (text) => say({ log: text }) });
  const { port, pid, dir, dataDir } = cluster;
  say({ url: cluster.url(), port, pid, dir, dataDir });
  setInterval(() => undefined, 60_000);
} catch (error) {
  say({ error: error.message, hint: error.hint });
}
`,
  );
}

/** What an owner has told about its cluster. */
export interface Owned {
  readonly child: ChildProcess;
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  readonly dir: string;
  readonly dataDir: string;
  readonly logged: readonly string[];
}

/**
 * Starts a process that runs a cluster and does nothing more; `target` is where `installEmbedded` has been.
 * @throws {Error} with the owner's own message when its cluster does not start
 */
export async function startOwner(
  target: string,
  options: Pick<ClusterOptions, 'dir' | 'port' | 'settings'>,
  env: NodeJS.ProcessEnv = {},
): Promise<Owned> {
  const child = spawn(process.execPath, [join(target, 'owner.mjs'), JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const logged: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const message: unknown = JSON.parse(line);
    if (typeof message !== 'object' || message === null) break;
    if ('log' in message) logged.push(String(message.log));
    else if ('error' in message) throw new Error(String(message.error));
    else return { ...(message as Omit<Owned, 'child' | 'logged'>), child, logged };
  }
  throw new Error('the owner ended without a cluster');
}
