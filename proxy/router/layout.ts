import { sameLayout } from '../../topology/layout.js';
import type { Keyspace, KeyspaceName, Topology } from '../../topology/topology.js';
import type { Refusal } from './route.js';

/** Tables named in a hint, of each keyspace. */
const TABLES = 5;

const known = new WeakMap<Topology, Map<string, boolean>>();

/** Whether rows of these keyspaces' tables with equal keys are on the same shard, whatever the key. */
export function areTogether(topology: Topology, names: readonly KeyspaceName[]): boolean {
  if (names.length === 1) return true;
  let layouts = known.get(topology);
  if (layouts === undefined) {
    layouts = new Map();
    known.set(topology, layouts);
  }
  const id = names.join(' ');
  let together = layouts.get(id);
  if (together === undefined) {
    const [first, ...others] = names.map((name) => topology.keyspaces.get(name));
    together = first !== undefined && others.every((other) => other !== undefined && sameLayout(first, other));
    layouts.set(id, together);
  }
  return together;
}

/** What a statement that uses several keyspaces is told when their rows are not together. */
export function apart(topology: Topology, names: readonly KeyspaceName[]): Refusal {
  const tables = names.map((name) => `"${name}" has ${tablesOf(topology.keyspaces.get(name))}`);
  return {
    sqlstate: '0A000',
    message: `this statement uses tables of keyspaces ${inWords(names)}, whose rows are on different shards`,
    hint: `Use the tables of each keyspace in a statement of its own: ${tables.join('; ')}.`,
  };
}

function tablesOf(keyspace: Keyspace | undefined): string {
  const names = (keyspace?.tables ?? []).map((t) => t.table);
  return `${names.slice(0, TABLES).join(', ')}${names.length > TABLES ? ', …' : ''}`;
}

/** `"a", "b" and "c"` */
export function inWords(names: readonly string[]): string {
  const quoted = names.map((name) => `"${name}"`);
  return quoted.length < 2 ? quoted.join('') : `${quoted.slice(0, -1).join(', ')} and ${quoted.at(-1)}`;
}
