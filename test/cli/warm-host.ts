import { setTimeout as delay } from 'node:timers/promises';
import { runCli } from '../../cli/run.js';

// The process behind warm-cli.ts: runs one command after the other as main.ts runs its one, and says what came of it.

/** A command to be run. */
export interface WarmCall {
  readonly args: readonly string[];
}

/** What has come of it. */
export interface WarmResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** What keeps the process alive besides the commands: the channel to its parent. */
const OWN: readonly string[] = ['PipeWrap'];

/**
 * Waits until nothing is left that would keep a process alive which was only this command. What a command leaves open makes it hang here, as it would
 * there.
 */
async function over(): Promise<void> {
  while (process.getActiveResourcesInfo().some((resource) => !OWN.includes(resource))) await delay(1);
}

async function run({ args }: WarmCall): Promise<WarmResult> {
  const said = { stdout: '', stderr: '' };
  const writes = { stdout: process.stdout.write, stderr: process.stderr.write };
  for (const name of ['stdout', 'stderr'] as const)
    process[name].write = (text: string | Uint8Array): boolean => {
      said[name] += text.toString();
      return true;
    };
  process.exitCode = undefined;
  try {
    await runCli(args);
    await over();
  } finally {
    process.stdout.write = writes.stdout;
    process.stderr.write = writes.stderr;
  }
  return { code: Number(process.exitCode ?? 0), ...said };
}

process.on('message', async (call: WarmCall) => {
  const result = await run(call);
  process.exitCode = 0;
  process.send?.(result);
});
process.on('disconnect', () => process.exit());
