import { type ChildProcess, fork } from 'node:child_process';
import { tmpdir } from 'node:os';
import { resolve } from 'node:path';
import { afterAll, expect } from 'vitest';
import { type CliResult, ROOT } from './run-cli.js';
import type { WarmCall, WarmResult } from './warm-host.js';

// A command's own work is a few queries, and to start a process for it takes ten times the processor time of that. What commands say and do is asked of
// one process that runs the built command line again and again (warm-host.ts); that the program itself does so, starts, ends and hears signals, of
// startCli() and cli() (run-cli.ts).

let host: ChildProcess | undefined;
let last: Promise<unknown> = Promise.resolve();

afterAll(() => host?.disconnect());

/** Runs a command of the built command line, when those asked for before have ended. */
export function warm(args: readonly string[]): Promise<CliResult> {
  const result = last.then(() => call({ args }));
  last = result.catch(() => undefined);
  return result;
}

async function call(command: WarmCall): Promise<CliResult> {
  const child = host ?? start();
  host = child;
  const { code, stdout, stderr } = await new Promise<WarmResult>((answer, fail) => {
    const ended = (status: number | null, signal: string | null) =>
      fail(new Error(`the process has ended (${status ?? signal}) in: foreshard ${command.args.join(' ')}`));
    child.once('exit', ended);
    child.once('message', (message) => {
      child.off('exit', ended);
      answer(message as WarmResult);
    });
    child.send(command);
  });
  return { code, stdout, stderr, json: () => JSON.parse(stdout) };
}

function start(): ChildProcess {
  const { FORESHARD_CATALOG: _, ...env } = process.env;
  // Its own stderr is what a crash says.
  return fork(resolve(ROOT, 'dist/test/cli/warm-host.js'), {
    cwd: tmpdir(),
    env,
    execArgv: [],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
}

/** Commands for a catalog. @param catalog its URL, once it is there */
export function commandsOn(catalog: () => string): {
  readonly foreshard: (...args: string[]) => Promise<CliResult>;
  /** What a command that has nothing to complain of prints with --json. */
  readonly json: <T = unknown>(...args: string[]) => Promise<T>;
} {
  const foreshard = (...args: string[]) => warm([...args, '--catalog', catalog()]);
  return {
    foreshard,
    json: async <T>(...args: string[]) => {
      const result = await foreshard(...args, '--json');
      expect(result).toMatchObject({ code: 0, stderr: '' });
      return result.json<T>();
    },
  };
}
