/**
 * The elements of an array value of one dimension, null for NULL; or null for the whole when it is not surely such an array
 * (several dimensions, bounds of its own, anything that array_in or array_recv might see differently).
 */
export type Elements = readonly (Buffer | null)[] | null;

const OPEN = 0x7b; // {
const CLOSE = 0x7d; // }
const COMMA = 0x2c;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** array_isspace in arrayfuncs.c. */
function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || (byte !== undefined && byte >= 0x09 && byte <= 0x0d);
}

/** An array in its text form, as array_in reads it with a comma as delimiter: all key types have that. */
export function elementsOfText(text: Buffer): Elements {
  const elements: (Buffer | null)[] = [];
  let at = skipSpace(text, 0);
  if (text[at] !== OPEN) return null;
  at = skipSpace(text, at + 1);
  if (text[at] === CLOSE) return skipSpace(text, at + 1) === text.length ? elements : null;
  for (;;) {
    const element = text[at] === QUOTE ? quoted(text, at) : bare(text, at);
    if (element === null) return null;
    elements.push(element.value);
    at = skipSpace(text, element.end);
    if (text[at] === CLOSE) return skipSpace(text, at + 1) === text.length ? elements : null;
    if (text[at] !== COMMA) return null;
    at = skipSpace(text, at + 1);
  }
}

function skipSpace(text: Buffer, from: number): number {
  let at = from;
  while (isSpace(text[at])) at++;
  return at;
}

interface Element {
  readonly value: Buffer | null;
  readonly end: number;
}

function quoted(text: Buffer, start: number): Element | null {
  const bytes: number[] = [];
  for (let at = start + 1; at < text.length; at++) {
    let byte = text[at] as number;
    if (byte === QUOTE) return { value: Buffer.from(bytes), end: at + 1 };
    if (byte === BACKSLASH) {
      at++;
      if (at === text.length) return null;
      byte = text[at] as number;
    }
    bytes.push(byte);
  }
  return null;
}

function bare(text: Buffer, start: number): Element | null {
  let at = start;
  for (; at < text.length; at++) {
    const byte = text[at];
    if (byte === COMMA || byte === CLOSE) break;
    if (byte === OPEN || byte === QUOTE || byte === BACKSLASH) return null;
  }
  let end = at;
  while (end > start && isSpace(text[end - 1])) end--;
  if (end === start) return null;
  const value = text.subarray(start, end);
  return { value: value.toString('latin1').toUpperCase() === 'NULL' ? null : value, end: at };
}

/**
 * An array in its binary form, as array_recv reads it. It names the type of its elements, and the server accepts no other
 * than the one that it expects there.
 */
export function elementsOfBinary(data: Buffer): { readonly oid: number; readonly elements: Elements } | null {
  if (data.length < 12) return null;
  const dimensions = data.readInt32BE(0);
  const oid = data.readUInt32BE(8);
  if (dimensions === 0) return data.length === 12 ? { oid, elements: [] } : null;
  if (dimensions !== 1 || data.length < 20) return null;
  const count = data.readInt32BE(12);
  const elements: (Buffer | null)[] = [];
  let at = 20;
  for (let i = 0; i < count; i++) {
    if (at + 4 > data.length) return null;
    const length = data.readInt32BE(at);
    at += 4;
    if (length === -1) {
      elements.push(null);
      continue;
    }
    if (length < 0 || at + length > data.length) return null;
    elements.push(data.subarray(at, at + length));
    at += length;
  }
  return at === data.length && count >= 0 ? { oid, elements } : null;
}
