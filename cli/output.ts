/** Prints one JSON document, alone, on stdout. Big integers become numbers while they are exact, else strings. */
export function printJson(value: unknown, indent = 2): void {
  const replace = (_key: string, inner: unknown): unknown => {
    if (typeof inner === 'bigint') return Number.isSafeInteger(Number(inner)) ? Number(inner) : inner.toString();
    if (inner instanceof Map) return Object.fromEntries(inner);
    return inner;
  };
  process.stdout.write(`${JSON.stringify(value, replace, indent)}\n`);
}

export function printLine(text = ''): void {
  process.stdout.write(`${text}\n`);
}

export function warn(message: string): void {
  process.stderr.write(`foreshard: warning: ${message}\n`);
}

/** Columns padded to their widest cell, two blanks apart; numbers to the right. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)));
  const numeric = header.map((_, i) => rows.length > 0 && rows.every((row) => /^-?[\d.,]*$/.test(row[i] ?? '')));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return [line(header), line(widths.map((w) => '-'.repeat(w))), ...rows.map(line)].join('\n');
}
