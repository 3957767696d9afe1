import type { KeyspaceName } from '../../topology/topology.js';
import { Lexer, type Run } from './lexer.js';
import type { KeyColumnSource, KeySource, StatementPlan, Target } from './route.js';

/** Key lists longer than this are not followed (MAX_KEYS of the planner). */
const MAX_KEYS = 10_000;

const lexer = new Lexer();
const STRING = Buffer.from("''");

/** Bytes of the text that {@link reduced} leaves out. */
export function repeatedBytes(runs: readonly Run[]): number {
  return runs.reduce((sum, run) => sum + run.end - run.start, 0);
}

/**
 * The text with the first item of each run only, and with one and the same constant for all of `:any`: what the plan of its template is made
 * of. Parameters are numbered as if the others had never been there. The runs are those of the lexer's scan of the text; they are not kept.
 */
export function reduced(text: Buffer, runs: readonly Run[]): Buffer {
  return withoutConstantWords(runs.length === 0 ? text : firstItems(text, runs));
}

/** A string for each NULL, true and false that is a column of an INSERT's row. */
function withoutConstantWords(text: Buffer): Buffer {
  if (!lexer.scan(text) || !lexer.sawConstantWord) return text;
  const pieces: Buffer[] = [];
  let from = 0;
  for (let i = 0; i < lexer.literalCount; i++) {
    const { kind, start, end } = lexer.literal(i);
    if (kind !== 'null' && kind !== 'boolean') continue;
    pieces.push(text.subarray(from, start), STRING);
    from = end;
  }
  pieces.push(text.subarray(from));
  return Buffer.concat(pieces);
}

function firstItems(text: Buffer, runs: readonly Run[]): Buffer {
  const pieces: Buffer[] = [];
  let from = 0;
  for (const { start, end } of runs) {
    pieces.push(text.subarray(from, start));
    from = end;
  }
  pieces.push(text.subarray(from));
  const shorter = Buffer.concat(pieces);
  if (runs.every((run) => run.paramStride === 0) || !lexer.scan(shorter, true)) return shorter;
  const numbered: Buffer[] = [];
  from = 0;
  for (const token of lexer.tokens) {
    if (token.kind !== 'param') continue;
    const number = Number(shorter.toString('latin1', token.start + 1, token.end));
    numbered.push(shorter.subarray(from, token.start), Buffer.from(`$${number - shiftOf(runs, number)}`));
    from = token.end;
  }
  numbered.push(shorter.subarray(from));
  return Buffer.concat(numbered);
}

/** How much higher the number of a parameter is than without the runs that end before it. */
function shiftOf(runs: readonly Run[], number: number): number {
  let shift = 0;
  for (const run of runs)
    if (number >= run.param + run.count * run.paramStride) shift += (run.count - 1) * run.paramStride;
  return shift;
}

/**
 * The plan of a template as it is for a text that has these runs: its sources name the text's own literals and parameters. Null: this
 * text has to be planned by itself.
 */
export function unfolded(plan: StatementPlan, runs: readonly Run[]): StatementPlan | null {
  if (plan.effect?.kind === 'set-config' || plan.effect?.kind === 'execute') return null;
  const target = unfoldedTarget(plan.target, runs);
  return target === null ? null : target === plan.target ? plan : { ...plan, target };
}

function unfoldedTarget(target: Target, runs: readonly Run[]): Target | null {
  if (target.kind !== 'keys' && target.kind !== 'unpinned') return target;
  let { spread } = target;
  if (spread.kind === 'fanout' && spread.uncut) {
    const [limit, offset] = [spread.uncut.limit, spread.uncut.offset].map((s) => s && placesOf(s, runs));
    if ((limit && limit.run !== null) || (offset && offset.run !== null)) return null;
    const uncut = { ...spread.uncut, limit: limit?.sources[0] ?? null, offset: offset?.sources[0] ?? null };
    spread = { ...spread, uncut };
  }
  if (target.kind === 'unpinned') return spread === target.spread ? target : { ...target, spread };
  const all = [target, ...(target.also ?? [])].map(({ keyspace, keys }) => ({
    keyspace,
    keys: unfoldedKeys(keys, runs),
  }));
  // As the planner has it when they are too many.
  if (all.some(({ keys }) => keys === null))
    return { ...target, spread, kind: 'unpinned', keyspaces: all.map(({ keyspace }) => keyspace) };
  const [main, ...also] = all as { keyspace: KeyspaceName; keys: KeySource[] }[];
  return { ...target, spread, keys: main?.keys ?? [], ...(target.also ? { also } : {}) };
}

/** Rows of VALUES give their keys row by row; of IN each column may have any of its values. Null: too many. */
function unfoldedKeys(keys: readonly KeySource[], runs: readonly Run[]): KeySource[] | null {
  const all: KeySource[] = [];
  for (const key of keys) {
    const columns = key.map((source) => placesOf(source, runs));
    const rows = columns.find(({ run }) => run?.rows)?.run ?? null;
    if (rows !== null) {
      for (let i = 0; i < rows.count; i++)
        all.push(columns.map(({ sources }) => (sources[i] ?? sources[0]) as KeyColumnSource));
      continue;
    }
    let product: KeySource[] = [[]];
    for (const { sources } of columns) {
      if (product.length * sources.length > MAX_KEYS) return null;
      product = product.flatMap((begun) => sources.map((source) => [...begun, source]));
    }
    for (const found of product) all.push(found);
    if (all.length > MAX_KEYS) return null;
  }
  return all;
}

/** The text's own literals or parameters for one of the template's. */
function placesOf(
  source: KeyColumnSource,
  runs: readonly Run[],
): { readonly sources: readonly KeyColumnSource[]; readonly run: Run | null } {
  const ofLiterals = source.kind === 'literal';
  const wanted = ofLiterals ? source.ordinal : source.number;
  let shift = 0;
  for (const run of runs) {
    const first = (ofLiterals ? run.literal : run.param) - shift;
    const stride = ofLiterals ? run.literalStride : run.paramStride;
    if (wanted < first) break;
    if (wanted < first + stride) {
      const sources = Array.from({ length: run.count }, (_, i) => at(source, wanted + shift + i * stride));
      return { sources, run };
    }
    shift += (run.count - 1) * stride;
  }
  return { sources: [shift === 0 ? source : at(source, wanted + shift)], run: null };
}

function at(source: KeyColumnSource, place: number): KeyColumnSource {
  return source.kind === 'literal' ? { ...source, ordinal: place } : { ...source, number: place };
}
