import type { ShardName } from '../../topology/topology.js';
import { encodeNoticeResponse } from '../wire/error-response.js';

/** Tells a client that it is not forgotten. SQLSTATE 00000, as PostgreSQL's own notices of progress. */
export function queueNotice(shard: ShardName): Buffer {
  return encodeNoticeResponse({
    severity: 'NOTICE',
    sqlstate: '00000',
    message: `waiting for a server connection to shard "${shard}"`,
    hint: 'All connections that the pool may have are in use.',
  });
}
