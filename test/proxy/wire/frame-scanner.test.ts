import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  clientFrames,
  type FrameHandler,
  type FrameRules,
  FrameScanner,
  serverFrames,
} from '../../../proxy/wire/frame-scanner.js';
import { encodeQuery, SYNC } from '../../../proxy/wire/frontend.js';
import { BACKEND, FRONTEND } from '../../../proxy/wire/message-types.js';

function frame(type: number, body: Buffer): Buffer {
  const header = Buffer.alloc(5);
  header[0] = type;
  header.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([header, body]);
}

/** Puts everything that was delivered together again, message by message. */
class Collector implements FrameHandler {
  readonly messages: Buffer[] = [];
  #parts: Buffer[] = [];

  onMessage(type: number, message: Buffer): void {
    expect(this.#parts).toEqual([]);
    expect(message[0]).toBe(type);
    this.messages.push(Buffer.from(message));
  }

  onPartial(type: number, chunk: Buffer, remaining: number): void {
    this.#parts.push(Buffer.from(chunk));
    if (remaining > 0) return;
    const message = Buffer.concat(this.#parts);
    this.#parts = [];
    expect(message[0]).toBe(type);
    this.messages.push(message);
  }
}

class RunCollector extends Collector {
  onRun(slice: Buffer, messages: number, type: number): void {
    let counted = 0;
    for (let at = 0; at < slice.length; counted++) {
      expect(slice[at]).toBe(type);
      const end = at + 1 + slice.readInt32BE(at + 1);
      this.onPartial(type, slice.subarray(at, end), 0);
      at = end;
    }
    expect(counted).toBe(messages);
  }
}

const messagesOf = (types: readonly number[], maxLength: number): fc.Arbitrary<Buffer[]> =>
  fc.array(
    fc
      .tuple(fc.constantFrom(...types), fc.uint8Array({ maxLength }))
      .map(([type, body]) => frame(type, Buffer.from(body))),
    { maxLength: 30 },
  );

/** Cuts `whole` at pseudo-random places, or into single bytes. */
function cut(whole: Buffer, sizes: readonly number[]): Buffer[] {
  const chunks: Buffer[] = [];
  for (let at = 0, i = 0; at < whole.length; i++) {
    const size = sizes.length === 0 ? 1 : (sizes[i % sizes.length] as number);
    chunks.push(whole.subarray(at, at + size));
    at += size;
  }
  return chunks;
}

function deliver(rules: FrameRules, collector: Collector, chunks: readonly Buffer[]): void {
  const scanner = new FrameScanner(collector, rules);
  for (const chunk of chunks) scanner.push(chunk);
  expect(scanner.atBoundary).toBe(true);
}

const CLIENT_TYPES = [FRONTEND.Query, FRONTEND.Bind, FRONTEND.CopyData, FRONTEND.Sync, FRONTEND.Execute];
const SERVER_TYPES = [
  BACKEND.DataRow,
  BACKEND.DataRow,
  BACKEND.CopyData,
  BACKEND.RowDescription,
  BACKEND.ReadyForQuery,
];

describe.each([
  ['client', clientFrames(), CLIENT_TYPES],
  ['server', serverFrames(), SERVER_TYPES],
] as const)('a %s stream', (_name, rules, types) => {
  test('gives the same messages however it is cut', () => {
    fc.assert(
      fc.property(
        messagesOf(types, 200),
        fc.array(fc.integer({ min: 1, max: 97 }), { maxLength: 8 }),
        (messages, sizes) => {
          const chunks = cut(Buffer.concat(messages), sizes);
          for (const collector of [new Collector(), new RunCollector()]) {
            deliver(rules, collector, chunks);
            expect(collector.messages).toEqual(messages);
          }
        },
      ),
      { numRuns: 300 },
    );
  });
});

test('rows of one chunk arrive as one slice of it, uncopied', () => {
  const rows = Array.from({ length: 100 }, (_, i) => frame(BACKEND.DataRow, Buffer.from(`row ${i}`)));
  const chunk = Buffer.concat([...rows, frame(BACKEND.CommandComplete, Buffer.from('SELECT 100\0'))]);
  const runs: [Buffer, number, number][] = [];
  const whole: number[] = [];
  const scanner = new FrameScanner(
    {
      onMessage: (type) => whole.push(type),
      onPartial: () => expect.unreachable(),
      onRun: (slice, messages, type) => runs.push([slice, messages, type]),
    },
    serverFrames(),
  );
  scanner.push(chunk);
  expect(runs.map(([slice, messages, type]) => [slice.length, messages, type])).toEqual([
    [Buffer.concat(rows).length, 100, BACKEND.DataRow],
  ]);
  expect(runs[0]?.[0].buffer).toBe(chunk.buffer);
  expect(whole).toEqual([BACKEND.CommandComplete]);
});

test('a row larger than a chunk goes on at once, before its end is there', () => {
  const row = frame(BACKEND.DataRow, Buffer.alloc(100_000, 7));
  const seen: [number, number][] = [];
  const scanner = new FrameScanner(
    {
      onMessage: () => expect.unreachable(),
      onPartial: (_type, chunk, remaining) => seen.push([chunk.length, remaining]),
    },
    serverFrames(),
  );
  scanner.push(row.subarray(0, 1000));
  expect(seen).toEqual([[1000, row.length - 1000]]);
  scanner.push(row.subarray(1000));
  expect(seen[1]).toEqual([row.length - 1000, 0]);
});

test('a large query in many pieces is put together', () => {
  const query = encodeQuery(Buffer.alloc(9_000_000, 'x'));
  const collector = new Collector();
  deliver(clientFrames(), collector, [...cut(query, [65_536]), SYNC]);
  expect(collector.messages[0]?.equals(query)).toBe(true);
  expect(collector.messages[1]).toEqual(SYNC);
});

describe('bytes that are no message', () => {
  const scanner = (rules: FrameRules): FrameScanner => new FrameScanner(new Collector(), rules);
  const header = (type: string, length: number): Buffer => {
    const bytes = Buffer.alloc(5, type);
    bytes.writeInt32BE(length, 1);
    return bytes;
  };

  test.each([
    ['too short', header('Q', 3)],
    ['negative', header('Q', -1)],
    ['longer than PostgreSQL allows', header('Q', 0x3fffffff)],
    ['a Sync of more than a name', header('S', 10_001)],
    ['CopyData too short', header('d', 2)],
  ])('length %s', (_name, bytes) => {
    expect(() => scanner(clientFrames()).push(bytes)).toThrow(
      expect.objectContaining({ sqlstate: '08P01', message: 'invalid message length' }),
    );
  });

  test('an unknown type is refused at its first byte', () => {
    expect(() => scanner(clientFrames()).push(Buffer.from('G'))).toThrow(
      expect.objectContaining({ sqlstate: '08P01', message: 'invalid frontend message type 71' }),
    );
    expect(() => scanner(serverFrames()).push(Buffer.from('!'))).toThrow('invalid backend message type 33');
  });

  test('a password after authentication is refused', () => {
    expect(() => scanner(clientFrames()).push(header('p', 10))).toThrow('invalid frontend message type 112');
  });

  test('a limit of our own holds', () => {
    const rules = clientFrames({ maxMessageBytes: 1000 });
    expect(() => scanner(rules).push(header('Q', 1001))).toThrow('invalid message length');
    const collector = new Collector();
    deliver(rules, collector, [frame(FRONTEND.Query, Buffer.alloc(996))]);
    expect(collector.messages).toHaveLength(1);
  });
});
