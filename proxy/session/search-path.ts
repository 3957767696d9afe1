/** Schemas in the order in which names are looked up, unquoted; `$user` stands for the user's own. */
type SearchPath = readonly string[];

const ITEM = /\s*(?:"((?:[^"]|"")*)"|([^\s",']+))\s*(,|$)/y;

/**
 * A value of search_path, as SHOW prints it and as set_config takes it: identifiers, quoted where they must be.
 * Null: not a list of identifiers (SplitIdentifierString in PostgreSQL's varlena.c).
 */
export function parseSearchPath(value: string): SearchPath | null {
  const names: string[] = [];
  if (value.trim() === '') return names;
  ITEM.lastIndex = 0;
  for (;;) {
    const m = ITEM.exec(value);
    if (m === null) return null;
    const name = m[1]?.replaceAll('""', '"') ?? folded(m[2] as string);
    if (name === null) return null;
    names.push(name);
    if (m[3] !== ',') return names;
  }
}

/** As PostgreSQL folds an unquoted identifier; beyond ASCII it depends on the server, so that it is not followed. */
function folded(name: string): string | null {
  for (let i = 0; i < name.length; i++) if (name.charCodeAt(i) > 0x7f) return null;
  return name.toLowerCase();
}
