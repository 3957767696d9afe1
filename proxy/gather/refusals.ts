import { InternalStatementError } from '../backend/internal-statement.js';
import { PIN_HINT } from '../router/analysis.js';
import { RefusedError } from '../session/refusals.js';
import { decodeErrorFields, type ErrorFields, fieldsOfError } from '../wire/error-response.js';

export function switchedOff(): RefusedError {
  return new RefusedError('0A000', 'queries that need rows of several shards in one place are switched off', {
    hint: `${PIN_HINT} Or raise proxy.limits.gatherBytes, which is 0.`,
  });
}

export function tooMuch(limit: number): ErrorFields {
  return {
    severity: 'ERROR',
    sqlstate: '54000',
    message: `the query needs more than ${limit} bytes of rows of several shards in one place`,
    hint: `${PIN_HINT} Or restrict it further, or raise proxy.limits.gatherBytes.`,
  };
}

export function typesDiffer(): RefusedError {
  const message = 'a column that the query uses has not the same type on all shards, or had another a moment ago';
  return new RefusedError('0A000', message, { hint: 'Try again when the change of its table is complete.' });
}

export function notPassed(): RefusedError {
  const message = 'a column that the query uses has a type whose values cannot be passed from shard to shard';
  return new RefusedError('0A000', message, { hint: PIN_HINT });
}

export function writtenAtHome(): RefusedError {
  return new RefusedError(
    '0A000',
    'a query over several shards that uses tables of the home shard alone cannot run in a transaction that has written there',
    {
      hint: 'Run it before the write, or in a transaction of its own; or ask for the rows of the two in two statements.',
    },
  );
}

/** Binary forms that name types by OIDs, or that a type does not have. */
const NOT_PASSED = new Set(['42804', '42883']);

/** What a step before the query itself has failed with. It is not about the client's text. */
export function wordsFor(error: unknown): ErrorFields {
  const {
    position: _,
    internalPosition: __,
    internalQuery: ___,
    ...fields
  } = error instanceof InternalStatementError ? decodeErrorFields(error.frame) : fieldsOfError(error);
  if (NOT_PASSED.has(fields.sqlstate)) return { ...fieldsOfError(notPassed()), detail: fields.message };
  const hint =
    fields.sqlstate === '42501' && /temporary tables|schema pg_temp/.test(fields.message)
      ? {
          hint: 'Queries over several shards are finished in temporary tables of the home shard: GRANT TEMPORARY ON DATABASE … TO the user there.',
        }
      : {};
  return { ...fields, ...hint, severity: 'ERROR' };
}
