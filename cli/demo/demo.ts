import { once } from 'node:events';
import { createServer } from 'node:net';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { UsageError } from '../../topology/errors.js';
import { EXIT } from '../failure.js';
import { aborted, trapSignals } from '../signals.js';
import { Scope } from './scope.js';
import { Screen } from './screen.js';
import { tellStory } from './story.js';

export interface DemoOptions {
  /** Port of the proxy on 127.0.0.1; 0 for any free one. */
  readonly port: number;
  /** Approve the plan without asking. */
  readonly yes: boolean;
  /** End after the audit. */
  readonly once: boolean;
  /** Keep the servers' data. */
  readonly keep: boolean;
  readonly tenants: number;
  readonly rows: number;
  readonly statementsPerSecond: number;
  readonly reportPath: string;
}

/**
 * Runs the demo and leaves nothing behind, whether it ends by itself, by an error or by a signal.
 * @returns the exit code: 0 when the audit is clean and no client saw an error, 1 when not, 130 or 143 after a signal
 * @throws UsageError when the port is taken; then nothing was started
 */
export async function runDemo(options: DemoOptions): Promise<number> {
  await refuseTakenPort(options.port);
  const trap = trapSignals();
  const scope = new Scope();
  const screen = new Screen();
  const telling = tellStory({ options, screen, scope, signal: trap.signal });
  try {
    const code = await Promise.race([telling, aborted(trap.signal).then(() => null)]);
    if (code !== null && !options.once) await aborted(trap.signal);
    return trap.signal.aborted ? trap.exitCode() : (code ?? EXIT.failed);
  } finally {
    screen.settle();
    if (trap.signal.aborted) {
      screen.line('\nstopping…');
      screen.mute();
    }
    const problems = await scope.close();
    for (const problem of problems) process.stderr.write(`foreshard: could not stop ${problem}\n`);
    // What the story was in the middle of fails when its servers go, and that is no news to anybody.
    if (trap.signal.aborted) await telling.catch(() => undefined);
    await EmbeddedCluster.endAll();
    trap.release();
  }
}

/** Tells before anything is started; the proxy itself would only find out after the servers are up. */
async function refuseTakenPort(port: number): Promise<void> {
  if (port === 0) return;
  const server = createServer();
  try {
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EADDRINUSE')
      throw new UsageError(
        `port ${port} of 127.0.0.1 is in use`,
        `Choose another with --port, as in: npm start -- --port ${port === 65_535 ? 6433 : port + 1}`,
      );
    if (code === 'EACCES')
      throw new UsageError(`port ${port} may not be used by this user`, 'Choose one above 1023 with --port.');
    throw error;
  }
  server.close();
  await once(server, 'close');
}
