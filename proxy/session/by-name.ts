import type { Backend } from '../backend/backend.js';
import { InternalStatementError } from '../backend/internal-statement.js';
import type { StatementPlan } from '../router/route.js';
import { encodeParse, encodeQuery } from '../wire/frontend.js';
import { IDLE } from '../wire/transaction-status.js';
import type { ClientStatements } from './statements.js';

/** The reason for which a session is pinned whose statements have the client's own names on its server connection. */
export const BY_NAME = 'prepared statements by name';

/** Whether the statement sees prepared statements in other ways than EXECUTE: it asks for them, or executes text that may name them. */
export function seesNames(plan: StatementPlan, statements: ClientStatements): boolean {
  return plan.showsPrepared === true || (plan.unsureOfState === true && statements.anyBySql);
}

/**
 * Has the connection know exactly what the client has prepared, under the client's names, each as the client prepared it. From here on names
 * go to it as they come, until DISCARD ALL. A statement that can no longer be prepared (its table is gone) is not there.
 *
 * To be called with no batch open, in a transaction block or outside. @throws InternalStatementError
 */
export async function prepareByName(backend: Backend, statements: ClientStatements): Promise<void> {
  await backend.runInternal(encodeQuery('DEALLOCATE ALL'));
  backend.prepared.clear();
  backend.shapes.clear();
  backend.toClose.length = 0;
  backend.byName = true;
  const inside = backend.status !== IDLE;
  for (const [name, { content, source }] of statements.made()) {
    if (inside) await backend.runInternal(encodeQuery('SAVEPOINT foreshard_own'));
    try {
      if (source === null) await backend.parseInternal(encodeParse(name, content.sql, content.oids));
      else await backend.runInternal(encodeQuery(source.text));
    } catch (error) {
      if (backend.lost !== null || !(error instanceof InternalStatementError)) throw error;
      if (inside) await backend.runInternal(encodeQuery('ROLLBACK TO SAVEPOINT foreshard_own'));
    }
    if (inside) await backend.runInternal(encodeQuery('RELEASE SAVEPOINT foreshard_own'));
  }
}
