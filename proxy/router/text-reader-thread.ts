/** Runs in a thread of its own: reads the texts that a TextReader sends. */
import { parentPort } from 'node:worker_threads';
import { loadModule } from 'libpg-query';
import { EMPTY_METADATA, type Metadata, metadataOf } from './metadata.js';
import { type Reading, readText } from './reading.js';
import { type Registry, registryOf } from './registry.js';
import type { ReadReply, ReadRequest } from './text-reader.js';

const port = parentPort;
if (port === null) throw new Error('to be run as a thread');
const reply = (message: ReadReply) => port.postMessage(message);

let registry: Registry = registryOf({ shardedTables: new Map(), referenceTables: new Map(), keyspaces: new Map() });
let metadata: Metadata = EMPTY_METADATA;

await loadModule();
port.on('message', ({ id, text, searchPath, world }: ReadRequest) => {
  if (world !== null) {
    registry = registryOf(world.topology);
    metadata = metadataOf(world.metadata, '');
  }
  let reading: Reading | null | 'too large';
  try {
    reading = readText(Buffer.from(text.buffer, text.byteOffset, text.length), { registry, metadata, searchPath });
  } catch {
    // The tree is larger than a string may be, or than the parser's memory.
    reading = 'too large';
  }
  reply({ id, reading });
});
reply('ready');
