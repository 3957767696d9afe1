/**
 * How long it takes to cut a stream into messages, against copying the same bytes.
 * Run: npx tsc && node dist/bench/frames.js
 */
import { clientFrames, FrameScanner, serverFrames } from '../proxy/wire/frame-scanner.js';
import { encodeBind, encodeDescribe, encodeExecute, encodeQuery, SYNC } from '../proxy/wire/frontend.js';
import { MessageBuilder } from '../proxy/wire/message-builder.js';
import { BACKEND } from '../proxy/wire/message-types.js';
import { compareContenders } from './measure.js';

const QUERY = encodeQuery('SELECT abalance FROM pgbench_accounts WHERE aid = 4711;');
const EXECUTION = Buffer.concat([
  encodeBind({ portal: '', statement: 's1', formats: [], values: [Buffer.from('4711')], resultFormats: [] }),
  encodeDescribe('portal', ''),
  encodeExecute('', 0),
  SYNC,
]);
const row = (text: string) =>
  new MessageBuilder(BACKEND.DataRow).count16(1).int32(text.length).bytes(Buffer.from(text)).finish();
const ROWS = Buffer.concat([
  ...Array.from({ length: 100 }, (_, i) => row(`a value of row ${i}`)),
  new MessageBuilder(BACKEND.CommandComplete).text('SELECT 100').finish(),
  new MessageBuilder(BACKEND.ReadyForQuery).byte(0x49).finish(),
]);

/** As much as a socket gives at once. */
const CHUNK_BYTES = 64 * 1024;

for (const [task, message, rules] of [
  ['frames: queries', QUERY, clientFrames()],
  ['frames: executions', EXECUTION, clientFrames()],
  ['frames: rows', ROWS, serverFrames()],
] as const) {
  const chunk = Buffer.concat(Array.from({ length: Math.floor(CHUNK_BYTES / message.length) }, () => message));
  const copy = Buffer.alloc(chunk.length);
  let bytes = 0;
  const scanner = new FrameScanner(
    {
      onMessage: (_, found) => {
        bytes += found.length;
      },
      onPartial: (_, part) => {
        bytes += part.length;
      },
      onRun: (slice) => {
        bytes += slice.length;
      },
    },
    rules,
  );
  scanner.push(chunk);
  if (bytes !== chunk.length) throw new Error(`the scanner saw ${bytes} of ${chunk.length} bytes`);
  compareContenders(`${task}, ${chunk.length} bytes`, [
    { contender: 'copy', role: 'reference', run: () => chunk.copy(copy) },
    { contender: 'frame scanner', role: 'ours', run: () => scanner.push(chunk) },
  ]);
}
