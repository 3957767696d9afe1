import { UsageError } from '../topology/errors.js';

/** NAMEDATALEN - 1 in PostgreSQL's pg_config_manual.h. */
const MAX_IDENTIFIER_BYTES = 63;

/** Columns as one writes them in SQL, by commas: unquoted names are folded to lower case, quoted ones kept. */
export function parseColumns(text: string): string[] {
  const names: string[] = [];
  const token = /\s*(?:"((?:[^"]|"")+)"|([A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*))\s*(,|$)/y;
  for (;;) {
    const match = token.exec(text);
    if (match === null)
      throw new UsageError(
        `"${text}" is not a list of columns`,
        'Write it as a,b, with "double quotes" where SQL needs them.',
      );
    // Only ASCII letters are folded: what PostgreSQL does in a multi-byte encoding.
    const name = match[1]?.replaceAll('""', '"') ?? (match[2] as string).replace(/[A-Z]/g, (c) => c.toLowerCase());
    if (Buffer.byteLength(name) > MAX_IDENTIFIER_BYTES)
      throw new UsageError(`"${name}" is too long to be the name of a column`, 'Names have at most 63 bytes.');
    names.push(name);
    if (match[3] === '') return names;
  }
}
