import type { CommandModule } from 'yargs';
import { UsageError } from '../../topology/errors.js';
import type { GlobalArgs } from '../options.js';
import { CHILD_COMMAND } from '../processes/messages.js';

/** Not for people: `serve` starts its processes with it. */
export const serveProcessCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  handler: async () => {
    if (process.send === undefined) throw new UsageError(`"${CHILD_COMMAND}" is started by "foreshard serve" only`);
    const { runServeProcess } = await import('../processes/serve-process.js');
    await runServeProcess();
    process.exit();
  },
};
