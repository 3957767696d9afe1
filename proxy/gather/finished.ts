import type { ClientSession, SpreadRun } from '../session/client-session.js';

/** What became of a statement over several shards. */
export interface Finished {
  readonly template: string;
  readonly rows: number;
  /** When it began, on performance.now()'s clock. */
  readonly since: number;
  /** It was in no transaction block. */
  readonly outside: boolean;
}

/** The statement is through: its client is told that the proxy is ready, unless its block is to fail with it, and the load is counted. */
export async function finished(
  session: ClientSession,
  { failure, footprint, backends }: SpreadRun,
  { template, rows, since, outside }: Finished,
): Promise<void> {
  if (outside) await session.settled();
  if (failure === null) session.answerReady();
  session.services.load.record({
    template,
    shard: null,
    touches: footprint.touches,
    write: false,
    rows,
    bytes: session.bytesForwarded,
    ms: (performance.now() - since) * backends.length,
  });
}
