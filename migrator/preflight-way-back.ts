import { errorCode } from '../topology/connection.js';
import type { Move } from './move.js';
import type { Report } from './preflight-finding.js';
import { type Block, checkPublisher, checkSubscriber } from './preflight-servers.js';

/** The destination is to publish, and the source to subscribe: as on the way there, the other way round. */
export async function checkWayBack(m: Move, report: Report): Promise<void> {
  if (m.options.wayBackMs === 0 || m.row.facts.wayBackMs !== undefined) return;
  const block: Block = (text, remedy) =>
    report(
      'blocker',
      `there would be no way back: ${text}`,
      `${remedy}; or set migrator.wayBackMs to 0, to do without a way back.`,
    );
  await checkPublisher(m.destination, 1, block);
  await checkSubscriber(m.source, 1, block);
}

/** Whether the server that was to make a subscription has said no: its own words, not the loss of our connection to it, nor that it lacks room. */
export function isRefusal(error: unknown): error is Error {
  return error instanceof Error && /^[0-9A-Z]{5}$/.test(errorCode(error)) && !/^(53|57P)/.test(errorCode(error));
}
