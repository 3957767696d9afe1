import type { Backend } from '../backend/backend.js';
import { asServerError, InternalStatementError } from '../backend/internal-statement.js';
import { decodeErrorFields, type ErrorFields, ServerError } from '../wire/error-response.js';
import { encodeDescribe, encodeParse, encodeQuery } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { FAILED, IDLE } from '../wire/transaction-status.js';
import type { Item } from './batch.js';
import { type ClientStatement, type PreparedContent, shapeOf } from './prepared.js';
import { prepareSql } from './sql-statements.js';

/** What PostgreSQL says of a prepared statement whose columns have changed (RevalidateCachedQuery in plancache.c); drivers know it by its routine. */
const STALE_PLAN: ErrorFields = {
  severity: 'ERROR',
  sqlstate: '0A000',
  message: 'cached plan must not change result type',
  file: 'plancache.c',
  routine: 'RevalidateCachedQuery',
};

/** Whether that is it. Nothing has been done of the statement: PostgreSQL looks before it begins. */
export function isStalePlan({ sqlstate, routine }: ErrorFields): boolean {
  return sqlstate === STALE_PLAN.sqlstate && routine === STALE_PLAN.routine;
}

/** Whether `checkShapes` has anything to do for a batch: a client relies on columns that are not known to be the same here. */
export function mustCheckShapes(backend: Backend, items: readonly Item[], version: number): boolean {
  if (backend.byName || backend.status === FAILED) return false;
  let must = false;
  for (const item of items) {
    if (item.type === 'describe-portal' || item.type === 'describe-statement' || item.type === 'parse') return false;
    if (item.type === 'bind' && !isSure(backend, item, version)) must = true;
  }
  return must;
}

/** Whether the rows of what is bound are surely as the client expects them. */
function isSure(backend: Backend, item: Item & { type: 'bind' }, version: number): boolean {
  const { statement, sql, bind } = item;
  return (
    sql !== null || hasShape(backend, { content: saidOf(item), told: statement.told }, bind.statement === '', version)
  );
}

/** What servers have prepared of it. */
function saidOf({ bound, statement }: Item & { type: 'bind' }): PreparedContent {
  return bound.hot?.content ?? statement.content;
}

/** Whether the rows of a statement, which is the client's unnamed one or not, are surely as the client expects them. */
export function hasShape(
  backend: Backend,
  { content, told }: Pick<ClientStatement, 'content' | 'told'>,
  unnamed: boolean,
  version: number,
): boolean {
  if (told === null || backend.shapes.get(content) === told.shape) return true;
  return unnamed && (backend.unnamed === content || told.version === version);
}

/**
 * A client that was told the columns of a statement, and does not ask again, could not read rows with others. Whether they are the
 * same is asked first where that is not known; PostgreSQL, which has it prepared since then, would say so of itself.
 * To be called where `mustCheckShapes` says so.
 *
 * @throws ServerError, PostgreSQL's own
 */
export async function checkShapes(backend: Backend, items: readonly Item[], version: number): Promise<void> {
  for (const item of items) {
    if (item.type !== 'bind' || isSure(backend, item, version)) continue;
    const content = saidOf(item);
    const { told } = item.statement;
    try {
      if (!backend.shapes.has(content)) await askShape(backend, content);
    } catch (error) {
      throw asServerError(error);
    }
    if (backend.shapes.get(content) !== told?.shape) throw new ServerError(STALE_PLAN);
  }
}

/** Those of whom it is being asked. */
const learning = new WeakMap<Backend, Set<PreparedContent>>();

/** Has a statement prepared on a connection in use, so that its columns there are known soon. */
export function learnShape(backend: Backend, content: PreparedContent): void {
  const contents = learning.get(backend) ?? new Set();
  learning.set(backend, contents);
  if (contents.has(content)) return;
  contents.add(content);
  askShape(backend, content)
    .catch(() => undefined) // whoever executes it is told
    .finally(() => contents.delete(content));
}

async function askShape(backend: Backend, content: PreparedContent, times = 0): Promise<void> {
  const known = backend.prepared.get(content);
  const name = known ?? backend.newStatementName();
  const parse =
    known === undefined && content.definition === null ? encodeParse(name, content.sql, content.oids) : null;
  let shape = '';
  const replied = (type: number, frame: Buffer) => {
    if (type !== BACKEND.ParameterDescription) shape = shapeOf(type, frame);
  };
  try {
    if (known === undefined && content.definition !== null)
      await backend.runInternal(encodeQuery(Buffer.from(prepareSql(name, content.definition), 'latin1')));
    await backend.parseInternal(parse, { message: encodeDescribe('statement', name), replied });
  } catch (error) {
    const inside = backend.status !== IDLE;
    if (
      inside ||
      times > 0 ||
      !(error instanceof InternalStatementError) ||
      !isStalePlan(decodeErrorFields(error.frame))
    )
      throw error;
    backend.forgetPrepared();
    await askShape(backend, content, times + 1);
    return;
  }
  backend.prepared.set(content, name);
  backend.shapes.set(content, shape);
}
