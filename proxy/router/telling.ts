import { tableId } from '../../topology/topology.js';
import type { Metadata, Relation } from './metadata.js';
import type { Reach, Use } from './reach.js';

/** Texts that are not looked through. */
const LONG = 64 * 1024;
/** Functions, and special values of literals, that tell when the transaction began, or which one it is. */
const OF_TRANSACTION =
  /\b(now|transaction_timestamp|current_date|current_time|current_timestamp|localtime|localtimestamp|today|tomorrow|yesterday|txid_\w+|pg_current_xact\w*|pg_current_snapshot)\b|\bage\s*\(/i;

/** Words of texts that change rows, and of those by which defaults of columns may be used. */
const CHANGES = /\b(insert|update|delete|merge|copy|truncate)\b/i;
const MAKES = /\b(insert|merge|copy|default)\b/i;
/** Values that a date or a time may be given as, and what may stand beside them: brackets of ranges and arrays, numbers, zones. */
const SPECIAL = /\b(now|today|tomorrow|yesterday)\b/i;
const BESIDE = /^(now|today|tomorrow|yesterday|allballs|infinity|am|pm|z|t|[A-Z]{3,4}|utc|gmt|[a-z_]+\/[a-z_/]+)$/i;
/** No date or time is written longer; an array of some may be. */
const LONGEST = 1024;

const known = new WeakMap<Metadata, Map<string, boolean>>();
const named = new WeakMap<Metadata, Map<string, Relation[]>>();
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
    tells = judge(metadata, name);
    judged.set(name, tells);
  }
  return tells;
}

/**
 * Whether a parameter, as text, may be a date or time that is said by when its transaction began: 'now', 'today 12:00', '[yesterday,)'. Also one that is declared
 * as text may be made one.
 */
export function valueTells(value: Buffer): boolean {
  if (value.length > LONGEST) return false;
  const text = value.toString('latin1');
  return SPECIAL.test(text) && (text.match(/[a-z_][a-z_/]*/gi) ?? []).every((word) => BESIDE.test(word));
}

/**
 * What using the relation so sets off tells when the transaction began, or which one it is: `always`, or only where the statement says DEFAULT. Null: it
 * does not. `given`: columns to which each row that is inserted is given something
 */
export function behindTells(
  { metadata, reach }: { readonly metadata: Metadata; readonly reach: Reach },
  start: Relation,
  use: Use,
  given: readonly (string | null)[],
): 'always' | 'by-default' | null {
  const made = reach.rowsMade(start, use);
  let byDefault = false;
  for (const { relation, calls, fires } of reach.runs(start, use)) {
    if (calls.some((f) => functionTells(metadata, f))) return 'always';
    // An INSERT uses a default where it gives nothing or says so, an UPDATE where it says so, and a DELETE none; those of other tables, behind foreign keys, are not used.
    const inserts = relation === start && use !== 'update' && use !== 'delete';
    for (const f of fires) {
      if (!functionTells(metadata, f)) continue;
      if (triggersRun(metadata, f) || made.has(relation)) return 'always';
      if (inserts && relation.defaultsOf?.get(f)?.every((column) => given.includes(column)) !== true) return 'always';
      byDefault = true;
    }
  }
  return byDefault ? 'by-default' : null;
}

/** Whether a trigger of some table runs the function, itself or by its condition. */
function triggersRun(metadata: Metadata, name: string): boolean {
  let run = triggered.get(metadata);
  if (run === undefined) {
    run = new Set();
    for (const { firesAt } of metadata.relations.values()) for (const f of firesAt?.keys() ?? []) run.add(f);
    triggered.set(metadata, run);
  }
  return run.has(name);
}

function judge(metadata: Metadata, name: string): boolean {
  const all = new Set([name]);
  for (const one of all) {
    if (metadata.builtin(one) !== null && tellsTransaction(`${one}(`)) return true;
    for (const { body, executes, opaque } of metadata.functionsNamed(one)) {
      if (opaque || executes || tellsTransaction(body)) return true;
      for (const next of ranBy(metadata, body)) all.add(next);
    }
  }
  return false;
}

/** Functions that the text may run: those that it names, and those behind the relations that it names. */
function* ranBy(metadata: Metadata, body: string): Iterable<string> {
  const words = new Set(body.toLowerCase().match(/\w+/g) ?? []);
  for (const other of metadata.functionNames) if (words.has(other.toLowerCase())) yield other;
  const [changes, makes] = [CHANGES.test(body), MAKES.test(body)];
  const relations = new Set([...words].flatMap((word) => relationsNamed(metadata, word)));
  for (const relation of relations) {
    yield* relation.calls;
    for (const f of relation.fires) if (relation.firesAt?.has(f) ? changes : makes) yield f;
    for (const next of changes ? [...relation.reads, ...relation.writes] : relation.reads) {
      const found = metadata.relations.get(tableId(next));
      if (found !== undefined) relations.add(found);
    }
  }
}

/** `name` in lower case. */
function relationsNamed(metadata: Metadata, name: string): readonly Relation[] {
  let byName = named.get(metadata);
  if (byName === undefined) {
    byName = new Map();
    named.set(metadata, byName);
    for (const relation of metadata.relations.values()) {
      const key = relation.table.toLowerCase();
      byName.set(key, [...(byName.get(key) ?? []), relation]);
    }
  }
  return byName.get(name) ?? [];
}
