// @ts-check
// Holds PostgreSQL servers and temporary directories on behalf of one process (its owner), and takes all of them down when
// the pipe to the owner ends. A pipe ends however its owner dies, kill -9 included, so nothing can be left behind.
//
// Plain JavaScript, because Node 20 must be able to start it from a source checkout. It runs in a session of its own:
// Ctrl-C in a terminal reaches the owner alone, which then stops its servers in its own order.
//
// Requests come as JSON lines on stdin, each with an `id`; answers go to stdout as `{id, ok}` or `{id, error}`.
// Besides, `{exit: handle, code, signal}` tells that a process has ended.
import { spawn } from 'node:child_process';
import { chmodSync, closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/**
 * @typedef {{ handle: number, file: string, args: string[], cwd: string, uid?: number, gid?: number, env: Record<string, string>,
 *   log: string, stopSignals: NodeJS.Signals[] }} SpawnRequest
 * @typedef {{ child: import('node:child_process').ChildProcess, stopSignals: NodeJS.Signals[] }} Held
 */

/** How long a process gets to obey one signal before the next, harder one: at the end of the owner nobody is waiting. */
const SIGNAL_PATIENCE_MS = 10_000;

/** @type {Map<number, Held>} */
const held = new Map();
/** @type {Set<string>} */
const temporary = new Set();
let ending = false;

/** @param {unknown} message */
function tell(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

/**
 * @param {SpawnRequest} request
 * @returns {Promise<number>} the process id
 */
function start(request) {
  // Opened here, before privileges are dropped: the log stays ours, and the server writes to it through the descriptor.
  const log = openSync(request.log, 'a', 0o600);
  const child = spawn(request.file, request.args, {
    cwd: request.cwd,
    env: request.env,
    stdio: ['ignore', log, log],
    ...(request.uid === undefined ? {} : { uid: request.uid }),
    ...(request.gid === undefined ? {} : { gid: request.gid }),
  });
  closeSync(log);
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('spawn', () => {
      held.set(request.handle, { child, stopSignals: request.stopSignals });
      child.once('exit', (code, signal) => {
        held.delete(request.handle);
        tell({ exit: request.handle, code, signal });
      });
      resolve(/** @type {number} */ (child.pid));
    });
  });
}

/**
 * @param {any} request
 * @returns {Promise<unknown>}
 */
async function perform(request) {
  switch (request.op) {
    case 'spawn':
      return start(request);
    case 'signal':
      return held.get(request.handle)?.child.kill(request.signal) ?? false;
    case 'mkdtemp': {
      // Made here and not by the owner, who could die between making it and telling us.
      const dir = mkdtempSync(join(request.base, request.prefix));
      temporary.add(dir);
      chmodSync(dir, request.mode);
      return dir;
    }
    case 'remove':
      remove(request.dir);
      return true;
    case 'keep':
      return temporary.delete(request.dir);
    default:
      throw new Error(`unknown request ${request.op}`);
  }
}

/** @param {string} dir */
function remove(dir) {
  // A server's last children may still be writing when its postmaster has gone: removal is tried again for a while.
  rmSync(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  temporary.delete(dir);
}

/**
 * @param {Held} item
 * @returns {Promise<void>}
 */
function end({ child, stopSignals }) {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    /** @type {NodeJS.Timeout[]} */
    const timers = [];
    child.once('exit', () => {
      for (const timer of timers) clearTimeout(timer);
      resolve();
    });
    stopSignals.forEach((signal, index) => {
      timers.push(setTimeout(() => child.kill(signal), index * SIGNAL_PATIENCE_MS));
    });
  });
}

async function endAll() {
  if (ending) return;
  ending = true;
  await Promise.all([...held.values()].map(end));
  for (const dir of temporary) {
    try {
      remove(dir);
    } catch (error) {
      process.exitCode = 1;
      tell({ warning: `cannot remove ${dir}: ${error instanceof Error ? error.message : error}` });
    }
  }
  process.exit();
}

// The owner may be gone when we answer: the end of stdin says the same, and is what we act on.
process.stdout.on('error', () => void endAll());
process.on('SIGINT', () => void endAll());
process.on('SIGTERM', () => void endAll());
process.on('SIGHUP', () => void endAll());

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const request = JSON.parse(line);
  perform(request).then(
    (ok) => tell({ id: request.id, ok }),
    (error) => tell({ id: request.id, error: { code: error.code, message: error.message } }),
  );
});
lines.on('close', () => void endAll());
