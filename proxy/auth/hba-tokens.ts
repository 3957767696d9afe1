/** A word of pg_hba.conf or pg_ident.conf. `quoted`: it began with a quote, so that it is a name and no keyword. */
export interface HbaToken {
  readonly text: string;
  readonly quoted: boolean;
}

/** One field: words joined by commas. */
export type HbaField = readonly HbaToken[];

/** A record: its first line (from 1) and its fields; comments and blank lines give none. */
export interface HbaRecord {
  readonly line: number;
  readonly fields: readonly HbaField[];
}

/**
 * Cuts a file of the format of pg_hba.conf into records: fields by blanks, words by commas, double quotes (doubled inside), comments from
 * an unquoted `#`, a backslash at the end of a line continues it. As PostgreSQL's next_token, an open quote ends with its line.
 */
export function readRecords(text: string): HbaRecord[] {
  const records: HbaRecord[] = [];
  const lines = text.split(/\r?\n/);
  for (let at = 0; at < lines.length; at++) {
    const line = at + 1;
    let whole = lines[at] as string;
    while (whole.endsWith('\\') && at + 1 < lines.length) whole = whole.slice(0, -1) + lines[++at];
    const fields = readFields(whole);
    if (fields.length > 0) records.push({ line, fields });
  }
  return records;
}

const isBlank = (c: string): boolean => c === ' ' || c === '\t' || c === '\r';

function readFields(text: string): HbaField[] {
  const fields: HbaToken[][] = [];
  let at = 0;
  /** The word before ended in a comma: the next one belongs to its field, blanks or not. */
  let joined = false;
  for (;;) {
    while (at < text.length && (isBlank(text[at] as string) || text[at] === ',')) at++;
    let word = '';
    let quoted = false;
    let sawQuote = false;
    let inQuote = false;
    let comma = false;
    for (; at < text.length; at++) {
      const c = text[at] as string;
      if (inQuote) {
        if (c !== '"') word += c;
        else if (text[at + 1] === '"') {
          word += c;
          at++;
        } else inQuote = false;
      } else if (c === '"') {
        if (word === '') quoted = true;
        inQuote = true;
        sawQuote = true;
      } else if (isBlank(c)) break;
      else if (c === '#') at = text.length;
      else if (c === ',') {
        comma = true;
        break;
      } else word += c;
    }
    if (word === '' && !sawQuote) return fields;
    const token = { text: word, quoted };
    if (joined) fields.at(-1)?.push(token);
    else fields.push([token]);
    joined = comma;
  }
}
