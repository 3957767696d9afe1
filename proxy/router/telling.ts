import type { Metadata } from './metadata.js';

/** Texts that are not looked through. */
const LONG = 64 * 1024;
/** Functions, and special values of literals, that tell when the transaction began, or which one it is. */
const OF_TRANSACTION =
  /\b(now|transaction_timestamp|current_date|current_time|current_timestamp|localtime|localtimestamp|today|tomorrow|yesterday|txid_\w+|pg_current_xact\w*|pg_current_snapshot)\b|\bage\s*\(/i;

const known = new WeakMap<Metadata, Map<string, boolean>>();
const triggered = new WeakMap<Metadata, Set<string>>();

/** Whether what the text answers, or leaves in rows, depends on when its transaction began, or which one it is. Errs towards that it does. */
export function tellsTransaction(text: Buffer | string): boolean {
  return text.length > LONG || OF_TRANSACTION.test(text.toString('latin1'));
}

/** The same of a function of this name, PostgreSQL's own or not: of a default, a trigger, a check. */
export function functionTells(metadata: Metadata, name: string): boolean {
  let judged = known.get(metadata);
  if (judged === undefined) {
    judged = new Map();
    known.set(metadata, judged);
  }
  let tells = judged.get(name);
  if (tells === undefined) {
    judged.set(name, false); // one that calls itself says no more than it does else
    tells = judge(metadata, name);
    judged.set(name, tells);
  }
  return tells;
}

/** Whether a trigger of some table runs the function, itself or by its condition. */
export function triggersRun(metadata: Metadata, name: string): boolean {
  let run = triggered.get(metadata);
  if (run === undefined) {
    run = new Set();
    for (const { firesAt } of metadata.relations.values()) for (const f of firesAt?.keys() ?? []) run.add(f);
    triggered.set(metadata, run);
  }
  return run.has(name);
}

function judge(metadata: Metadata, name: string): boolean {
  if (metadata.builtin(name) !== null && tellsTransaction(`${name}(`)) return true;
  const others = metadata.functionsNamed(name);
  if (others.length === 0) return false;
  if (others.some(({ body, executes, opaque }) => opaque || executes || tellsTransaction(body))) return true;
  const words = new Set(others.flatMap(({ body }) => body.toLowerCase().match(/\w+/g) ?? []));
  for (const other of metadata.functionNames)
    if (words.has(other.toLowerCase()) && functionTells(metadata, other)) return true;
  return false;
}
