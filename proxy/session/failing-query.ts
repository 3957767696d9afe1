import type { Backend } from '../backend/backend.js';
import { InternalStatementError } from '../backend/internal-statement.js';
import { encodeQuery } from '../wire/frontend.js';

/** No statement: sent to make a server fail its transaction, so that the client's is really the state it was told. */
export const FAILING_QUERY = encodeQuery('foreshard_refused');

/** Fails the transaction that is open there; nobody is told. */
export async function failAt(backend: Backend): Promise<void> {
  await backend.runInternal(FAILING_QUERY).catch((error: unknown) => {
    if (!(error instanceof InternalStatementError)) throw error;
  });
}
