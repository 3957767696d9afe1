import { UsageError } from './errors.js';
import type { TableName } from './topology.js';

const PART = /(?:"((?:[^"]|"")+)"|([a-zA-Z_\u0080-\uffff][\w$\u0080-\uffff]*))/;
const TABLE = new RegExp(`^${PART.source}(?:\\.${PART.source})?$`);

/**
 * Reads a table's name as SQL would: unquoted parts are folded to lower case, the schema is `public` unless named.
 * @throws UsageError when it is none
 */
export function parseTableName(text: string): TableName {
  const m = TABLE.exec(text.trim());
  if (m === null)
    throw new UsageError(
      `"${text}" is not a table's name`,
      'Write it as table or schema.table, with "double quotes" where SQL needs them.',
    );
  const first = part(m[1], m[2]);
  if (m[3] === undefined && m[4] === undefined) return { schema: 'public', table: first };
  return { schema: first, table: part(m[3], m[4]) };
}

function part(quoted: string | undefined, bare: string | undefined): string {
  // PostgreSQL folds only ASCII in a UTF-8 database.
  return quoted?.replaceAll('""', '"') ?? (bare as string).replace(/[A-Z]/g, (c) => c.toLowerCase());
}
