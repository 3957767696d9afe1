import { sameBound } from '../../topology/key.js';
import type { Topology } from '../../topology/topology.js';
import type { SessionEffect, Touch } from '../router/route.js';
import { type Footprint, keyspacesIn } from './footprint.js';
import { Prelude } from './prelude.js';

/** Places remembered one by one per transaction. */
const TOUCHES = 10_000;

/**
 * The client's open transaction, as far as the proxy must know it: what it has touched, and, while it has done nothing
 * yet that could not be done again, the statements that would open it on another shard.
 */
export class Transaction implements Footprint {
  /** BEGIN, SAVEPOINT, SET … in order: what opens the same transaction elsewhere. Branches of one transaction share it. */
  readonly said: Prelude;
  /** Nothing but the prelude and reads that touch no rows of ours: the transaction can still move to another shard. */
  clean = true;
  /** The client was told BEGIN, but no server has been. */
  deferred = false;
  /** A server has been sent BEGIN with the first statement, and has yet to answer it. */
  opening = false;
  /** See {@link Footprint}: that of the last statement. */
  topology: Topology;
  touches: Touch[] = [];
  /** The map by which its first statement was sent; its snapshot is no older. Null: none was. */
  since: Topology | null = null;
  /** It sees what was committed by the time of each statement. */
  seesAll = false;
  everything = false;
  /** Has drawn numbers from sequences, perhaps, on a connection that held none of others. */
  draws = false;
  writesReference = false;
  /** A flip does not wait for it any more: nothing more is done in it. */
  ending = false;
  /** What it touches may have left its shard, and come back, without its proxy. */
  overtaken = false;
  /** It has changed the schema. */
  changedSchema = false;
  /** It has made code that nobody knows before it is committed. */
  madeCode = false;
  /** What it was known by, together with a statement over several shards; null: it has run none. */
  key: bigint | null = null;

  constructor(topology: Topology, said = new Prelude()) {
    this.topology = topology;
    this.said = said;
  }

  /** The statements of `said`. */
  get prelude(): readonly Buffer[] {
    return this.said.texts;
  }

  /** Whether anything is touched at all. */
  get touched(): boolean {
    return this.everything || this.writesReference || this.touches.length > 0;
  }

  touch(footprint: Footprint): void {
    this.#renameTo(footprint.topology);
    for (const touch of footprint.touches) this.#add(touch);
    this.everything ||= footprint.everything;
    this.writesReference ||= footprint.writesReference;
  }

  /** What was touched before gets the names that keyspaces have in this map. */
  #renameTo(topology: Topology): void {
    const { topology: before, touches } = this;
    if (before === topology) return;
    this.topology = topology;
    if (touches.length === 0) return;
    this.touches = touches.flatMap((touch) =>
      keyspacesIn(topology, touch.keyspace, before).map((keyspace) => ({ ...touch, keyspace })),
    );
  }

  #add(touch: Touch): void {
    // So many different keys are as good as all of them.
    const position = this.touches.length < TOUCHES ? touch.position : null;
    const last = this.touches.at(-1);
    if (last?.keyspace === touch.keyspace && sameBound(last.position, position)) return;
    this.touches.push({ keyspace: touch.keyspace, position });
  }

  /** A portal of its is used later. */
  keepPortal(): void {
    this.clean = false;
    this.said.tie('a portal');
  }

  /** A statement has been done. `text` null: it had parameters, so it cannot be said again as text. */
  note(effect: SessionEffect | null, text: Buffer | null, harmless: boolean): void {
    if (effect !== null && isReplayable(effect)) {
      if (!this.said.add(effect, text)) this.clean = false;
      return;
    }
    if (effect !== null && !outlives(effect)) this.said.tie('a statement that changes the session');
    if (!harmless) this.clean = false;
  }
}

function isReplayable(effect: SessionEffect): boolean {
  switch (effect.kind) {
    case 'begin':
    case 'savepoint':
    case 'release':
    case 'rollback-to':
    case 'set':
    case 'listen':
    case 'unlisten':
      return true;
    default:
      return false;
  }
}

/** Prepared statements are the client's, whatever becomes of its transaction. */
function outlives({ kind }: SessionEffect): boolean {
  return kind === 'prepare' || kind === 'deallocate' || kind === 'execute';
}
