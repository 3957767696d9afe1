// @ts-check
// `npm start`, `npm test`, `npm run bench`, `npm run model`, `npm run chaos` and `npm run check` on a machine with nothing but Node: installs what the lockfile names when it is
// missing or stale, builds what has changed, then does what was asked. Plain JavaScript without dependencies, because
// nothing is installed when it starts, and in the syntax of old Nodes, so that they reach the message about their age.
//
//   node deploy/bootstrap.mjs start|test|bench|bench:check|model|chaos|build|check [arguments…]
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { homedir, hostname, tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const MODULES = join(ROOT, 'node_modules');
const DIST = join(ROOT, 'dist');
const LOCK_FILE = join(ROOT, '.foreshard', 'bootstrap.lock');
const INSTALL_STAMP = join(MODULES, '.foreshard-install');
const BUILD_STAMP = join(DIST, '.foreshard-build');
const BUILD_INFO = join(MODULES, '.cache', 'tsc', 'tsbuildinfo');

/** The owner of the lock touches it this often; whoever has not for LOCK_STALE_MS is taken for dead. */
const LOCK_TOUCH_MS = 2_000;
const LOCK_STALE_MS = 60_000;
const LOCK_POLL_MS = 200;

class Failure extends Error {
  /** @param {string} message @param {number} [exitCode] */
  constructor(message, exitCode) {
    super(message);
    this.exitCode = exitCode || 1;
  }
}

async function main() {
  checkNode();
  const [command, ...args] = process.argv.slice(2);
  switch (command) {
    case 'start':
      await prepare(true);
      return runHere(join(DIST, 'cli', 'main.js'), ['demo', ...args]);
    case 'test':
      process.chdir(ROOT);
      await prepare(true);
      return runHere(join(MODULES, 'vitest', 'vitest.mjs'), ['run', ...args]);
    case 'bench':
    case 'bench:check':
      await prepare(true);
      return runHere(join(DIST, 'bench', command === 'bench' ? 'main.js' : 'check.js'), args);
    case 'model':
      await prepare(true);
      return runHere(join(DIST, 'test', 'model', 'main.js'), args);
    case 'chaos':
      await prepare(true);
      return runHere(join(DIST, 'test', 'chaos', 'main.js'), args);
    case 'build':
      return prepare(true);
    case 'check':
      process.chdir(ROOT);
      await prepare(false);
      return check(args);
    default:
      throw new Failure(
        'usage: node deploy/bootstrap.mjs start|test|bench|bench:check|model|chaos|build|check [arguments…]',
        2,
      );
  }
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.');
  const { engines } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  // The lines of engines.node in package.json, which cannot be read as a range without a package that does.
  const leastMinor = new Map([
    [20, 19],
    [22, 12],
  ]).get(Number(major));
  const recent = leastMinor === undefined ? Number(major) >= 24 : Number(minor) >= leastMinor;
  if (!recent) throw new Failure(`Node ${process.versions.node} does not do, Foreshard needs ${engines.node}`);
}

/** @param {boolean} build */
async function prepare(build) {
  const toDo = () => ({ install: !isInstalled(), build: build && sourcesHash() !== readIfThere(BUILD_STAMP) });
  let todo = toDo();
  if (!todo.install && !todo.build) return;
  const unlock = await lock();
  try {
    // Somebody else may have done it while we waited.
    todo = toDo();
    if (todo.install) await install();
    if (todo.build) await compile();
  } finally {
    unlock();
  }
}

// --- Installing ------------------------------------------------------------------------------------------------------

/** What an installation depends on: the lockfile, and the machine that its optional packages were chosen for. */
function installHash() {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}\n`);
  return hash.update(readFileSync(join(ROOT, 'package-lock.json'))).digest('hex');
}

function isInstalled() {
  const hash = installHash();
  if (readIfThere(INSTALL_STAMP) === hash) return true;
  if (!installedByHand()) return false;
  writeFileSync(INSTALL_STAMP, hash);
  return true;
}

/**
 * Whether node_modules holds what the lockfile says though we have not put it there: npm writes down what it installed, as
 * the last thing it does. Optional packages may be missing, except those made for this very machine.
 */
function installedByHand() {
  const written = readIfThere(join(MODULES, '.package-lock.json'));
  if (written === undefined) return false;
  const have = JSON.parse(written).packages;
  const want = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')).packages;
  return Object.keys(want).every((path) => {
    if (path === '') return true;
    const { version, integrity, optional, os, cpu, libc } = want[path];
    if (have[path] !== undefined) return have[path].version === version && have[path].integrity === integrity;
    const forUs = os?.includes(process.platform) && cpu?.includes(process.arch) && !libc;
    return optional && !forUs;
  });
}

async function install() {
  say('installing packages (npm ci)');
  const temporary = writableCache() ? undefined : mkdtempSync(join(tmpdir(), 'foreshard-npm-'));
  try {
    const args = ['ci', '--ignore-scripts', '--include=dev', '--include=optional', '--no-audit', '--no-fund'];
    args.push('--loglevel=error', '--update-notifier=false');
    if (temporary !== undefined) args.push(`--cache=${temporary}`, `--logs-dir=${join(temporary, '_logs')}`);
    const npm = npmCommand();
    const code = await run(npm.file, [...npm.args, ...args], { quiet: true });
    if (code !== 0) throw new Failure(`npm ci failed with exit code ${code}`, code);
  } finally {
    if (temporary !== undefined) rmSync(temporary, { recursive: true, force: true });
  }
  writeFileSync(INSTALL_STAMP, installHash());
}

/** The npm that runs us, or the one on the PATH. */
function npmCommand() {
  const path = process.env.npm_execpath;
  const usable = path !== undefined && basename(path).startsWith('npm') && existsSync(path);
  return usable ? { file: process.execPath, args: [path] } : { file: 'npm', args: [] };
}

/** Whether npm can write to its own cache, which is below the home directory unless configured otherwise. */
function writableCache() {
  const cache = process.env.npm_config_cache || join(homedir(), '.npm');
  for (const dir of existsSync(cache) ? [cache] : [dirname(cache)]) {
    try {
      // Permission bits say little (root passes them, read-only file systems do not show in them): try it.
      rmSync(mkdtempSync(join(dir, '.foreshard-')), { recursive: true });
    } catch (error) {
      if (['EACCES', 'EPERM', 'EROFS', 'ENOENT', 'ENOTDIR'].includes(codeOf(error))) return false;
      throw error;
    }
  }
  return true;
}

// --- Building --------------------------------------------------------------------------------------------------------

/** A hash of all that the build reads, by names, sizes and times: a few hundred files, a few milliseconds. */
function sourcesHash() {
  const hash = createHash('sha256').update(installHash());
  const { include } = JSON.parse(readFileSync(join(ROOT, 'tsconfig.json'), 'utf8'));
  /** @param {string} path */
  const visit = (path) => {
    const stat = statSync(join(ROOT, path), { throwIfNoEntry: false });
    if (stat === undefined) return;
    if (stat.isDirectory()) {
      for (const name of readdirSync(join(ROOT, path)).sort()) visit(`${path}/${name}`);
    } else if (/\.(ts|mjs|json)$/.test(path)) {
      hash.update(`${path} ${stat.size} ${stat.mtimeMs}\n`);
    }
  };
  for (const path of ['tsconfig.json', 'package.json', ...include]) visit(path);
  return hash.digest('hex');
}

async function compile() {
  say('building');
  const hash = sourcesHash();
  // Without a stamp the last build was not finished, or its output is gone: what tsc remembers of it must not count.
  if (existsSync(BUILD_STAMP)) unlinkSync(BUILD_STAMP);
  else rmSync(BUILD_INFO, { force: true });
  const code = await run(process.execPath, [join(MODULES, 'typescript', 'bin', 'tsc'), '-p', ROOT]);
  if (code !== 0) throw new Failure('the build failed', code);
  writeFileSync(BUILD_STAMP, hash);
}

// --- Checking --------------------------------------------------------------------------------------------------------

/** @param {string[]} args */
async function check(args) {
  if (args.length > 0) throw new Failure('check takes no arguments', 2);
  /** @type {[string, string[]][]} */
  const checks = [
    ['types', [join('typescript', 'bin', 'tsc'), '--noEmit', '--tsBuildInfoFile', `${BUILD_INFO}-check`]],
    ['lint and format', [join('@biomejs', 'biome', 'bin', 'biome'), 'check', '--error-on-warnings', '.']],
    ['dead code', [join('knip', 'bin', 'knip.js')]],
  ];
  const results = [];
  for (const [name, [program, ...rest]] of checks) {
    say(`checking ${name}`);
    const code = await run(process.execPath, [join(MODULES, /** @type {string} */ (program)), ...rest]);
    results.push({ name, ok: code === 0 });
  }
  for (const { name, ok } of results) say(`${name}: ${ok ? 'ok' : 'FAILED'}`);
  if (results.some(({ ok }) => !ok)) process.exitCode = 1;
}

// --- One at a time ---------------------------------------------------------------------------------------------------

/** Waits until nobody else installs or builds in this checkout. @returns {Promise<() => void>} what ends our turn */
async function lock() {
  mkdirSync(dirname(LOCK_FILE), { recursive: true });
  const us = JSON.stringify({ host: hostname(), pid: process.pid, id: randomBytes(8).toString('hex') });
  let told = false;
  while (!takeLock(us)) {
    const owner = readIfThere(LOCK_FILE);
    if (owner === undefined) continue;
    if (isStale(owner)) {
      breakLock(owner);
      continue;
    }
    if (!told) say('waiting for another process that installs or builds here');
    told = true;
    await new Promise((resolve) => setTimeout(resolve, LOCK_POLL_MS));
  }
  const touching = setInterval(() => utimesSync(LOCK_FILE, new Date(), new Date()), LOCK_TOUCH_MS);
  const unlock = () => {
    clearInterval(touching);
    process.removeListener('exit', unlock);
    if (readIfThere(LOCK_FILE) === us) unlinkSync(LOCK_FILE);
  };
  process.on('exit', unlock);
  return unlock;
}

/** @param {string} us */
function takeLock(us) {
  try {
    writeFileSync(LOCK_FILE, us, { flag: 'wx' });
    return true;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
    throw error;
  }
}

/** Whether the owner is dead: known at once on the same machine, by its silence when it runs in another container. @param {string} owner */
function isStale(owner) {
  const stat = statSync(LOCK_FILE, { throwIfNoEntry: false });
  if (stat === undefined) return false;
  if (Date.now() - stat.mtimeMs > LOCK_STALE_MS) return true;
  // Empty for an instant after its creation.
  if (owner === '') return false;
  const { host, pid } = JSON.parse(owner);
  if (host !== hostname()) return false;
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return codeOf(error) === 'ESRCH';
  }
}

/** Takes a dead owner's lock away, and not the one that somebody quicker may have put in its place. @param {string} owner */
function breakLock(owner) {
  const aside = `${LOCK_FILE}.${randomBytes(8).toString('hex')}`;
  try {
    renameSync(LOCK_FILE, aside);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return;
    throw error;
  }
  if (readFileSync(aside, 'utf8') === owner) unlinkSync(aside);
  else renameSync(aside, LOCK_FILE);
}

// --- Running ---------------------------------------------------------------------------------------------------------

/**
 * Runs a program of ours in this very process: signals, exit codes and the terminal are then its own, with nothing between.
 * @param {string} file
 * @param {string[]} args
 */
async function runHere(file, args) {
  process.argv = [process.execPath, file, ...args];
  await import(pathToFileURL(file).href);
}

/**
 * Runs a program to its end, passing signals on, and ends as we were told to if one came.
 * @param {string} file
 * @param {string[]} args
 * @param {{ quiet?: boolean }} [options] quiet: hides its standard output
 * @returns {Promise<number>} its exit code
 */
function run(file, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { cwd: ROOT, stdio: ['ignore', options.quiet ? 'ignore' : 'inherit', 'inherit'] });
    /** @type {NodeJS.Signals | undefined} */
    let received;
    /** @param {NodeJS.Signals} signal */
    const forward = (signal) => {
      received = signal;
      child.kill(signal);
    };
    /** @type {NodeJS.Signals[]} */
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
    for (const signal of signals) process.on(signal, forward);
    const done = () => {
      for (const signal of signals) process.removeListener(signal, forward);
    };
    child.once('error', (error) => {
      done();
      reject(codeOf(error) === 'ENOENT' ? new Failure(`"${file}" is not installed`) : error);
    });
    child.once('exit', (code, signal) => {
      done();
      const by = received || signal;
      if (by) reject(new Failure(`stopped by ${by}`, 128 + signalNumber(by)));
      else resolve(code === null ? 1 : code);
    });
  });
}

/** @param {NodeJS.Signals} signal */
function signalNumber(signal) {
  return { SIGHUP: 1, SIGINT: 2, SIGTERM: 15, SIGKILL: 9 }[/** @type {'SIGHUP'} */ (signal)] || 1;
}

/** @param {string} file @returns {string | undefined} */
function readIfThere(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** @param {unknown} error @returns {string} */
function codeOf(error) {
  return /** @type {NodeJS.ErrnoException} */ (error).code || '';
}

/** @param {string} message */
function say(message) {
  process.stderr.write(`foreshard: ${message}\n`);
}

main().catch((error) => {
  say(error instanceof Failure ? error.message : error.stack);
  process.exit(error instanceof Failure ? error.exitCode : 1);
});
