/** Schemas in the order in which names are looked up, unquoted; `$user` stands for the user's own. */
export type SearchPath = readonly string[];

/** PostgreSQL's own default. */
export const DEFAULT_SEARCH_PATH: SearchPath = ['$user', 'public'];

const ITEM = /\s*(?:"((?:[^"]|"")*)"|([^\s",']+))\s*(,|$)/y;
const SET_ITEM = /\s*(?:"((?:[^"]|"")+)"|'((?:[^'\\]|'')*)'|([^\s"',;=()&]+))\s*(,|;?\s*$)/y;

/**
 * A value of search_path, as SHOW prints it and as set_config takes it: identifiers, quoted where they must be.
 * Null: not a list of identifiers (SplitIdentifierString in PostgreSQL's varlena.c).
 */
export function parseSearchPath(value: string): SearchPath | null {
  return items(value, ITEM, (m) => m[1]?.replaceAll('""', '"') ?? folded(m[2] as string), 3);
}

/**
 * The path after `SET [SESSION | LOCAL] search_path = …`, `SET SCHEMA …`, or the set_config that SessionSettings makes of a
 * start-up parameter. Null: a way to write it that is not followed here (comments, Unicode escapes, backslashes).
 */
export function searchPathOfSet(sql: string): SearchPath | null {
  const call = /^SELECT pg_catalog\.set_config\('search_path', '((?:[^'\\]|'')*)', false\)$/i.exec(sql);
  if (call) return parseSearchPath((call[1] as string).replaceAll("''", "'"));
  const set = /^\s*set\s+(?:(?:session|local)\s+)?(?:"?search_path"?\s*(?:=|to\b)|schema\b)(.*)$/is.exec(sql);
  if (set === null) return null;
  // A string is one schema here, not a list; the word DEFAULT is not a name.
  return items(
    set[1] as string,
    SET_ITEM,
    (m) => m[1]?.replaceAll('""', '"') ?? m[2]?.replaceAll("''", "'") ?? bare(m[3] as string),
    4,
  );
}

function items(
  text: string,
  pattern: RegExp,
  nameOf: (m: RegExpExecArray) => string | null,
  separator: number,
): SearchPath | null {
  const names: string[] = [];
  if (text.trim() === '') return names;
  pattern.lastIndex = 0;
  for (;;) {
    const m = pattern.exec(text);
    if (m === null) return null;
    const name = nameOf(m);
    if (name === null) return null;
    // SET search_path = '' prints as "", a schema that does not exist.
    names.push(name);
    if (m[separator] !== ',') return names;
  }
}

/** As PostgreSQL folds an unquoted identifier; beyond ASCII it depends on the server, so that it is not followed. */
function folded(name: string): string | null {
  for (let i = 0; i < name.length; i++) if (name.charCodeAt(i) > 0x7f) return null;
  return name.toLowerCase();
}

function bare(name: string): string | null {
  return /^[a-z_][\w$]*$/i.test(name) && !/^default$/i.test(name) ? name.toLowerCase() : null;
}
