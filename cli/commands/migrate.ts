import type { CommandModule } from 'yargs';
import { type GlobalArgs, withHelp } from '../options.js';
import { abortCommand } from './migrate/abort.js';
import { acceptCommand } from './migrate/accept.js';
import { approveCommand, startCommand } from './migrate/approve.js';
import { auditCommand } from './migrate/audit.js';
import { finishCommand, rollbackCommand } from './migrate/end.js';
import { endTransactionsCommand } from './migrate/end-transactions.js';
import { flipCommand } from './migrate/flip.js';
import { listCommand } from './migrate/list.js';
import { pauseCommand } from './migrate/pause.js';
import { planCommand } from './migrate/plan.js';
import { promoteCommand, readsCommand, replicaCommand } from './migrate/replica.js';
import { showCommand } from './migrate/show.js';
import { throttleCommand } from './migrate/throttle.js';
import { verifyCommand } from './migrate/verify.js';
import { watchCommand } from './migrate/watch.js';

export const migrateCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(
      y
        .command(planCommand)
        .command(approveCommand)
        .command(startCommand)
        .command(listCommand)
        .command(showCommand)
        .command(watchCommand)
        .command(flipCommand)
        .command(verifyCommand)
        .command(throttleCommand)
        .command(endTransactionsCommand)
        .command(abortCommand)
        .command(pauseCommand(true))
        .command(pauseCommand(false))
        .command(rollbackCommand)
        .command(finishCommand)
        .command(acceptCommand)
        .command(auditCommand)
        .command(replicaCommand)
        .command(readsCommand)
        .command(promoteCommand)
        .demandCommand(
          1,
          'a command is needed: plan, approve, start, list, show, watch, flip, verify, throttle, end-transactions, abort, pause, resume, rollback, finish, accept, audit, replica, reads or promote',
        ),
      ['migrate watch 1', 'Follow migration 1 until it ends'],
    ),
  handler: () => undefined,
};
