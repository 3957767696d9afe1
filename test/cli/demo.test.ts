import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { waitFor } from '../support/wait-for.js';
import { alive, descendants } from './process-tree.js';
import { buildCli, type CliResult, type RunningCli, startCli } from './run-cli.js';

const SMALL = ['--yes', '--once', '--tenants', '20', '--rows', '7000', '--load', '120'];
const TIMEOUT_MS = 240_000;

/** Everything temporary of the demo goes here, so that what it leaves can be seen. */
let temporary: string;
let reports: string;

beforeAll(async () => {
  await buildCli();
});

beforeEach(() => {
  temporary = mkdtempSync(join(tmpdir(), 'foreshard-test-'));
  reports = mkdtempSync(join(tmpdir(), 'foreshard-test-'));
  // As root, the servers run as somebody else, who must be able to pass through.
  chmodSync(temporary, 0o711);
});

afterEach(() => {
  rmSync(temporary, { recursive: true });
  rmSync(reports, { recursive: true });
});

function demo(...args: string[]): RunningCli {
  return startCli(['demo', ...args, '--report', join(reports, 'report.html')], { env: { TMPDIR: temporary } });
}

/** Runs until `text` is on the screen, then sends `signal`; all processes that ran by then are returned. */
async function interrupt(
  running: RunningCli,
  text: string,
  signal: NodeJS.Signals,
): Promise<{ result: CliResult; pids: number[] }> {
  await waitFor(() => running.stdout().includes(text) || running.child.exitCode !== null, {
    what: `"${text}"`,
    timeoutMs: TIMEOUT_MS,
  });
  const pids = descendants(running.child.pid as number);
  running.child.kill(signal);
  return { result: await running.ended, pids };
}

async function expectNothingLeft(pids: readonly number[]): Promise<void> {
  // The supervisor of the servers ends right after us.
  await waitFor(() => alive(pids).length === 0, { what: `the end of ${pids.join(', ')}` });
  expect(readdirSync(temporary)).toEqual([]);
}

it('tells the whole story: a clean audit, no client error, a report, and nothing left', {
  timeout: TIMEOUT_MS,
}, async () => {
  const running = demo(...SMALL, '--port', '0');
  await waitFor(() => running.stdout().includes('The move, under load') || running.child.exitCode !== null, {
    what: 'the move',
    timeoutMs: TIMEOUT_MS,
  });
  const pids = descendants(running.child.pid as number);
  const { code, stdout, stderr } = await running.ended;
  expect(stderr).toBe('');
  expect(stdout).toContain('AUDIT CLEAN');
  expect(stdout).toContain('client errors: 0');
  expect(stdout).toMatch(/acknowledged writes \([\d,]+ rows\) and [\d,]+ loaded rows compared/);
  expect(code).toBe(0);
  expect(readFileSync(join(reports, 'report.html'), 'utf8')).toMatch(/^<!doctype html>/i);
  expect(pids.length).toBeGreaterThan(5);
  await expectNothingLeft(pids);
});

for (const moment of ['starting servers', 'Live load', 'The move, under load'])
  it(`leaves nothing when it is interrupted at "${moment}"`, { timeout: TIMEOUT_MS }, async () => {
    const { result, pids } = await interrupt(demo(...SMALL, '--port', '0'), moment, 'SIGINT');
    expect(result.stderr).toBe('');
    expect(result.code).toBe(130);
    await expectNothingLeft(pids);
  });

it('says so when the port is taken, and starts nothing', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await waitFor(() => server.listening, { what: 'the port' });
  const { port } = server.address() as AddressInfo;
  try {
    const { code, stdout, stderr } = await demo(...SMALL, '--port', String(port)).ended;
    expect(code).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toContain(`port ${port}`);
    expect(stderr).toContain('--port');
    expect(readdirSync(temporary)).toEqual([]);
  } finally {
    server.close();
  }
});

it('does not approve its own plan without a terminal to ask on', async () => {
  const { code, stdout, stderr } = await demo('--once', '--port', '0').ended;
  expect(code).toBe(2);
  expect(stdout).toBe('');
  expect(stderr).toContain('--yes');
});
