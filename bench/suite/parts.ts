import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import type { MicroResult } from '../results/results.js';
import { ROOT } from './machine.js';

const children = new Set<ChildProcess>();

/**
 * Runs another of our benchmarks in a process of its own, and shows what it prints.
 * @param name as in `node dist/bench/<name>.js`
 */
async function runPart(
  name: string,
  args: readonly string[],
  show: (text: string) => void,
): Promise<{ text: string; messages: unknown[] }> {
  const child = fork(join(ROOT, 'dist/bench', `${name}.js`), [...args], {
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
  });
  children.add(child);
  let text = '';
  const messages: unknown[] = [];
  child.on('message', (message) => messages.push(message));
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    show(chunk);
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  children.delete(child);
  if (code !== 0) throw new Error(`node dist/bench/${name}.js ended with ${code}`);
  return { text, messages };
}

/** The microbenchmarks: lexer and route, frames, hash. */
export async function runMicro(show: (text: string) => void): Promise<MicroResult[]> {
  const results: MicroResult[] = [];
  for (const name of ['lexer', 'frames', 'hash'])
    results.push(...((await runPart(name, [], show)).messages as MicroResult[]));
  return results;
}

/** What busy clients, slow readers and large messages cost in memory, in words. */
export async function runMemoryReport(clients: number, show: (text: string) => void): Promise<string> {
  return (await runPart('memory', [`${clients}`], show)).text;
}

/** Ends what still runs; gently, so that it takes down what it has started. */
export function stopParts(): void {
  for (const child of children) child.kill('SIGTERM');
}
