import { errorCode } from '../topology/connection.js';
import { quoteLiteral } from '../topology/quote.js';
import { type CatalogStatement, StatementConflict } from './action.js';
import { BEGIN_OR_BE_ENDED } from './migration-store.js';

/** SQLSTATE by which the catalog says that a statement has found another world than it was made for; the detail says which one. */
const CONFLICT = 'SH002';

/**
 * A transaction of the catalog as one message: clients wait for each round trip of a flip, and whatever becomes of us between its last look at the
 * hold and the commit, the catalog does both at once. A statement that changes no row and should have ends it all; see `conflictOf`.
 * @param answer a query whose rows are wanted, of what the transaction has made
 */
export function catalogMessage(statements: readonly CatalogStatement[], answer: string): string {
  const body = statements.map(({ sql, values, elseConflict }, i) => {
    const execute = `EXECUTE ${quoteLiteral(withLiterals(sql, values))};`;
    if (elseConflict === null) return execute;
    return `${execute} GET DIAGNOSTICS n = ROW_COUNT;
  IF n = 0 THEN RAISE EXCEPTION USING ERRCODE = '${CONFLICT}', MESSAGE = ${quoteLiteral(elseConflict)}, DETAIL = '${i}'; END IF;`;
  });
  const block = `DECLARE n bigint; BEGIN\n  ${body.join('\n  ')}\nEND`;
  return `${BEGIN_OR_BE_ENDED};\nDO ${quoteLiteral(block)};\n${answer};\nCOMMIT`;
}

/** The same error, or a StatementConflict when it is one of these statements that has changed no row. */
export function conflictOf(error: unknown, statements: readonly CatalogStatement[]): unknown {
  if (errorCode(error) !== CONFLICT) return error;
  const statement = statements[Number((error as { detail?: string }).detail)];
  return statement === undefined ? error : new StatementConflict(statement);
}

/** A statement with its parameters written out. */
export function withLiterals(sql: string, values: readonly unknown[]): string {
  return sql.replace(/\$(\d+)/g, (parameter, number: string) => {
    const value = values[Number(number) - 1];
    if (value === undefined) throw new Error(`no value for ${parameter}`);
    return value === null ? 'NULL' : quoteLiteral(String(value));
  });
}
