import { tableId } from '../../topology/topology.js';
import type { TableRole } from './analysis.js';
import type { Metadata, Relation } from './metadata.js';

/** Volatile functions of PostgreSQL's own that defaults call, and that draw nothing from sequences. */
const VOLATILE = new Set(['clock_timestamp', 'gen_random_uuid', 'random', 'timeofday', 'uuidv4', 'uuidv7']);

const known = new WeakMap<Metadata, Drawing>();

export function drawingOf(metadata: Metadata): Drawing {
  let drawing = known.get(metadata);
  if (drawing === undefined) {
    drawing = new Drawing(metadata);
    known.set(metadata, drawing);
  }
  return drawing;
}

/** Which tables can be used without a number being drawn from a sequence, in one state of the schema. Errs towards those that cannot. */
export class Drawing {
  readonly #metadata: Metadata;
  /** Tables that own sequences: those of serial and identity columns. */
  readonly #owners = new Set<string>();
  /** Tables of which it is known, by what is done to them. */
  readonly #judged = { read: new Map<string, boolean>(), write: new Map<string, boolean>() };

  constructor(metadata: Metadata) {
    this.#metadata = metadata;
    for (const { kind, checks } of metadata.relations.values())
      if (kind === 'S') for (const table of checks) this.#owners.add(tableId(table));
  }

  drawsNothing(relation: Relation, role: TableRole): boolean {
    const id = tableId(relation);
    let judged = this.#judged[role].get(id);
    if (judged === undefined) {
      judged = role === 'read' ? this.#reads(relation) : this.#writes(relation, id);
      this.#judged[role].set(id, judged);
    }
    return judged;
  }

  /** A view or a policy may call anything. */
  #reads({ kind, calls }: Relation): boolean {
    return (kind === 'r' || kind === 'p' || kind === 'm') && calls.length === 0;
  }

  /** Rules are among what it reads and calls; triggers, defaults, checks and expressions of indexes among what it fires. */
  #writes({ kind, columns, calls, reads, fires }: Relation, id: string): boolean {
    if (kind !== 'r' || columns === null || calls.length > 0 || reads.length > 0 || this.#owners.has(id)) return false;
    return fires.every((name) => {
      if (this.#metadata.functionsNamed(name).length > 0) return false;
      const builtin = this.#metadata.builtin(name);
      return builtin !== null && (builtin !== 'other' || VOLATILE.has(name));
    });
  }
}
