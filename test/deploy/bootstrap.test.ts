import { type ChildProcess, spawn } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';

const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

let parent: string;
let checkout: string;

/** A small checkout whose only dependency is the TypeScript that is here already: installing it needs no network. */
beforeEach(() => {
  parent = realpathSync(mkdtempSync(join(tmpdir(), 'foreshard-test-')));
  checkout = join(parent, 'a checkout');
  mkdirSync(join(checkout, 'deploy'), { recursive: true });
  mkdirSync(join(checkout, 'cli'));
  cpSync(join(ROOT, 'deploy', 'bootstrap.mjs'), join(checkout, 'deploy', 'bootstrap.mjs'));
  const typescript = realpathSync(join(ROOT, 'node_modules', 'typescript'));
  const { version } = JSON.parse(readFileSync(join(typescript, 'package.json'), 'utf8'));
  const path = relative(checkout, typescript);
  const description = { name: 'small', version: '1.0.0', devDependencies: { typescript: `file:${path}` } };
  const engines = { node: '>=20.19' };
  write('package.json', { ...description, engines, type: 'module' });
  write('package-lock.json', {
    name: 'small',
    version: '1.0.0',
    lockfileVersion: 3,
    requires: true,
    packages: {
      '': description,
      [path]: { version, dev: true },
      'node_modules/typescript': { resolved: path, link: true },
    },
  });
  write('tsconfig.json', {
    compilerOptions: {
      target: 'ES2023',
      // No more than needed: a build takes its time for reading the library.
      lib: ['ES2023'],
      types: [],
      skipLibCheck: true,
      module: 'NodeNext',
      rootDir: '.',
      outDir: 'dist',
      incremental: true,
      tsBuildInfoFile: 'node_modules/.cache/tsc/tsbuildinfo',
    },
    include: ['cli'],
  });
  program("console.log('one', JSON.stringify(process.argv.slice(2)));");
});

afterEach(() => rmSync(parent, { recursive: true, force: true }));

function write(name: string, content: unknown): void {
  writeFileSync(join(checkout, name), JSON.stringify(content));
}

function program(source: string): void {
  const globals = 'declare const console: any, process: any, setInterval: any;';
  writeFileSync(join(checkout, 'cli', 'main.ts'), `${globals}\n${source}\nexport {};\n`);
}

function launch(args: string[], env: NodeJS.ProcessEnv = {}): ChildProcess & { stdout: NodeJS.ReadableStream } {
  return spawn(process.execPath, [join(checkout, 'deploy', 'bootstrap.mjs'), ...args], {
    cwd: '/',
    env: { ...process.env, npm_config_cache: undefined, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  }) as never;
}

interface Result {
  readonly code: number | null;
  readonly out: string;
  readonly said: string;
}

async function run(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Result> {
  const child = launch(args, env);
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  const [code, out, said] = await Promise.all([ended, text(child.stdout), text(child.stderr as NodeJS.ReadableStream)]);
  return { code, out, said };
}

test('start installs, builds and runs; the second time it only runs', async () => {
  const first = await run(['start', 'with space', '--yes']);
  expect(first).toEqual({
    code: 0,
    out: 'one ["demo","with space","--yes"]\n',
    said: 'foreshard: installing packages (npm ci)\nforeshard: building\n',
  });
  expect(await run(['start'])).toEqual({ code: 0, out: 'one ["demo"]\n', said: '' });
});

test('what has changed is built again, and only what is lost or stale is installed again', async () => {
  await run(['start']);
  program("console.log('two'); process.exitCode = 7;");
  expect(await run(['start'])).toEqual({ code: 7, out: 'two\n', said: 'foreshard: building\n' });
  rmSync(join(checkout, 'dist'), { recursive: true });
  expect(await run(['start'])).toEqual({ code: 7, out: 'two\n', said: 'foreshard: building\n' });
  // An installation that was interrupted has neither our stamp nor npm's own list.
  rmSync(join(checkout, 'node_modules', '.foreshard-install'));
  rmSync(join(checkout, 'node_modules', '.package-lock.json'));
  expect((await run(['start'])).said).toContain('installing packages');
  // One that was made by hand has npm's list.
  rmSync(join(checkout, 'node_modules', '.foreshard-install'));
  expect((await run(['start'])).said).not.toContain('installing packages');
});

test('a build that fails stops it, with the reason', async () => {
  program('const n: number = "text";');
  const { code, out, said } = await run(['start']);
  expect(code).not.toBe(0);
  expect(out).toContain("Type 'string' is not assignable to type 'number'");
  expect(said).toContain('the build failed');
});

test.each(['missing', 'not writable'])('a home directory that is %s does not matter', async (kind) => {
  // Permission bits do not bind root: /sys takes files from nobody.
  const home = kind === 'missing' ? join(parent, 'home') : '/sys';
  const temporary = join(parent, 'tmp');
  mkdirSync(temporary);
  expect(await run(['start'], { HOME: home, TMPDIR: temporary })).toMatchObject({ code: 0, out: 'one ["demo"]\n' });
  expect(existsSync(join(parent, 'home'))).toBe(false);
  expect(readdirSync(temporary).filter((name) => name.startsWith('foreshard-'))).toEqual([]);
});

test('two at once in one checkout take turns', async () => {
  const results = await Promise.all([run(['start', 'a']), run(['start', 'b'])]);
  expect(results.map(({ code, out }) => [code, out])).toEqual([
    [0, 'one ["demo","a"]\n'],
    [0, 'one ["demo","b"]\n'],
  ]);
  const said = results.map((result) => result.said).join('');
  expect(said.match(/installing packages/g)).toHaveLength(1);
  expect(said.match(/building/g)).toHaveLength(1);
});

test('the lock of a process that died is no obstacle', async () => {
  const dead = spawn(process.execPath, ['-e', '']);
  await new Promise((resolve) => dead.once('exit', resolve));
  mkdirSync(join(checkout, '.foreshard'));
  write('.foreshard/bootstrap.lock', { host: hostname(), pid: dead.pid, id: 'x' });
  expect(await run(['start'])).toMatchObject({ code: 0, out: 'one ["demo"]\n' });
});

test('a signal reaches the program, and its exit code comes back', async () => {
  program(`process.on('SIGTERM', () => process.exit(42));
setInterval(() => undefined, 60_000);
console.log('ready');`);
  const child = launch(['start']);
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  for await (const chunk of child.stdout) if (String(chunk).includes('ready')) child.kill('SIGTERM');
  expect(await ended).toBe(42);
});

test('a signal to npm alone ends the program, in its own way', async () => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const small = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8'));
  write('package.json', { ...small, scripts });
  program(`process.on('SIGTERM', () => { console.log('stopped'); process.exit(0); });
setInterval(() => undefined, 60_000);
console.log('ready');`);
  const npm = spawn('npm', ['start'], { cwd: checkout, stdio: ['ignore', 'pipe', 'ignore'] });
  let out = '';
  for await (const chunk of npm.stdout) {
    out += chunk;
    if (out.includes('ready')) npm.kill('SIGTERM');
  }
  // The end of the output is the end of the program too, which had inherited it.
  expect(out).toContain('stopped');
});

test('an unknown command is refused with the usage', async () => {
  expect(await run(['stop'])).toMatchObject({ code: 2, said: expect.stringContaining('usage:') });
});
