/** Runs in a thread of its own: reads the texts that a TextReader sends. */
import { parentPort } from 'node:worker_threads';
import { loadModule } from 'libpg-query';
import { EMPTY_METADATA, type Metadata, parseMetadata } from './metadata.js';
import { isTooLarge, type Reading, readText } from './reading.js';
import { type Registry, registryOf } from './registry.js';
import type { StatementPlan } from './route.js';
import type { ReadReply, ReadRequest } from './text-reader.js';

const port = parentPort;
if (port === null) throw new Error('to be run as a thread');
const reply = (message: ReadReply) => port.postMessage(message);

let registry: Registry = registryOf({ shardedTables: new Map(), referenceTables: new Map(), keyspaces: new Map() });
let metadata: Metadata = EMPTY_METADATA;

/** Equal plans as one object: the process takes over a text of many statements several times faster. */
function shared(plans: readonly StatementPlan[]): StatementPlan[] {
  const first = new Map<string, StatementPlan>();
  return plans.map((plan) => {
    const key = JSON.stringify(plan);
    const known = first.get(key);
    if (known === undefined) first.set(key, plan);
    return known ?? plan;
  });
}

await loadModule();
port.on('message', (request: ReadRequest) => {
  const { id, searchPath, world } = request;
  if (world !== null) {
    registry = registryOf(world.topology);
    metadata = parseMetadata(world.metadata);
  }
  let reading: Reading | null | 'too large';
  try {
    const text = Buffer.from(request.text.buffer, request.text.byteOffset, request.text.length);
    const read = isTooLarge(text) ? 'too large' : readText(text, { registry, metadata, searchPath });
    reading = read === null || read === 'too large' ? read : { ...read, plans: shared(read.plans) };
  } catch {
    // The tree is larger than a string may be, or than the parser's memory.
    reading = 'too large';
  }
  reply({ id, reading });
});
reply('ready');
