import { odyssey } from './odyssey.js';
import type { Peer } from './peer.js';
import { pgbouncer } from './pgbouncer.js';
import { pgcat } from './pgcat.js';
import { pgdog } from './pgdog.js';
import { pgpool } from './pgpool.js';

/** Poolers that take part when their program is found. One more is one more file like these. */
export const PEERS: readonly Peer[] = [pgbouncer, odyssey, pgcat, pgdog, pgpool];
