import pg from 'pg';
import { ForeshardError } from './errors.js';
import type { TableName } from './topology.js';

function refuseNul(text: string): void {
  if (text.includes('\0'))
    throw new ForeshardError('22021', 'SQL text cannot contain a zero byte', { hint: 'Remove the zero byte.' });
}

/** An identifier, always quoted: `or"der` becomes `"or""der"`. */
export function quoteIdent(name: string): string {
  refuseNul(name);
  return pg.escapeIdentifier(name);
}

/**
 * A string literal. With a backslash in it the form is ` E'…'` (the blank keeps it apart from a word before it), which
 * means the same whether standard_conforming_strings is on or off.
 */
export function quoteLiteral(text: string): string {
  refuseNul(text);
  return pg.escapeLiteral(text);
}

/** `"schema"."table"`. */
export function quoteTable(t: TableName): string {
  return `${quoteIdent(t.schema)}.${quoteIdent(t.table)}`;
}
