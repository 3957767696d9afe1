import { Writable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { GatheredWriter } from '../../../proxy/wire/gathered-writer.js';
import { READ_MEMORY } from '../../../proxy/wire/read-memory.js';

/** A socket whose kernel takes nothing until it is told to. */
class Slow extends Writable {
  /** What was taken in one go. */
  readonly writes: Buffer[] = [];
  #release: (() => void)[] = [];
  #open: boolean;

  constructor(open: boolean) {
    super();
    this.#open = open;
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.#take([chunk], done);
  }

  override _writev(chunks: { chunk: Buffer }[], done: () => void): void {
    this.#take(
      chunks.map(({ chunk }) => chunk),
      done,
    );
  }

  open(): void {
    this.#open = true;
    this.takeOne();
  }

  takeOne(): void {
    for (const release of this.#release.splice(0)) release();
  }

  #take(chunks: readonly Buffer[], done: () => void): void {
    const taken = () => {
      // As they are now.
      this.writes.push(Buffer.concat(chunks));
      done();
    };
    if (this.#open) taken();
    else this.#release.push(taken);
  }
}

const nothing = (): void => undefined;

describe('what is written in one turn', () => {
  test('leaves in one write, in order, also from promises settled in between', async () => {
    const socket = new Slow(true);
    const writer = new GatheredWriter(socket, nothing);
    writer.write(Buffer.from('a'));
    await Promise.resolve();
    writer.write([Buffer.from('b'), Buffer.alloc(0), Buffer.from('c')]);
    expect(writer.buffered).toBe(3);
    await nextTurn();
    expect(socket.writes.map(String)).toEqual(['abc']);
    expect(writer.buffered).toBe(0);
  });

  test('is one gathered write when it is large', async () => {
    const socket = new Slow(true);
    const writer = new GatheredWriter(socket, nothing);
    writer.write([Buffer.alloc(60_000, 'x'), Buffer.alloc(60_000, 'y')]);
    await nextTurn();
    expect(socket.writes.map(({ length }) => length)).toEqual([120_000]);
  });

  test('goes before the last words', async () => {
    const socket = new Slow(true);
    const writer = new GatheredWriter(socket, nothing);
    writer.write(Buffer.from('a'));
    writer.end(Buffer.from('b'));
    await nextTurn();
    expect(socket.writes.map(String)).toEqual(['ab']);
    expect(socket.writableEnded).toBe(true);
    writer.write(Buffer.from('too late'));
    await nextTurn();
    expect(socket.writes).toHaveLength(1);
  });
});

describe('while the socket is busy with a write', () => {
  test('everything waits, and goes as the next one', async () => {
    const socket = new Slow(false);
    const writer = new GatheredWriter(socket, nothing);
    writer.writeNow(Buffer.from('a'));
    for (const text of ['b', 'c']) {
      writer.writeNow(Buffer.from(text));
      await nextTurn();
    }
    expect(writer.buffered).toBe(3);
    socket.takeOne();
    socket.takeOne();
    await nextTurn();
    expect(socket.writes.map(String)).toEqual(['a', 'bc']);
    expect(writer.buffered).toBe(0);
  });

  test('its end waits too, and nothing follows it', async () => {
    const socket = new Slow(false);
    const writer = new GatheredWriter(socket, nothing);
    writer.writeNow(Buffer.from('a'));
    writer.write(Buffer.from('b'));
    writer.end(Buffer.from('c'));
    expect(writer.isEnded).toBe(true);
    writer.write(Buffer.from('too late'));
    expect(socket.writableEnded).toBe(false);
    socket.takeOne();
    expect(socket.writableEnded).toBe(false);
    socket.takeOne();
    expect(socket.writableEnded).toBe(true);
    expect(socket.writes.map(String)).toEqual(['a', 'bc']);
  });

  test('what the stream itself has yet to write stands before it', async () => {
    const socket = new Slow(false);
    socket.write('a');
    const writer = new GatheredWriter(socket, nothing);
    writer.writeNow(Buffer.from('b'));
    for (let i = 0; i < 2; i++) {
      socket.takeOne();
      await nextTurn();
    }
    expect(socket.writes.map(String)).toEqual(['a', 'b']);
  });

  test('a write that fails ends the socket, once', async () => {
    const errors: Error[] = [];
    const socket = new Writable({ write: (_chunk, _encoding, done) => done(new Error('EPIPE')) });
    socket.on('error', (error) => errors.push(error));
    const writer = new GatheredWriter(socket, nothing);
    writer.writeNow(Buffer.from('a'));
    writer.writeNow(Buffer.from('b'));
    writer.end();
    await nextTurn();
    expect([socket.destroyed, errors.map((e) => e.message)]).toEqual([true, ['EPIPE']]);
  });
});

test('a slow peer stops the writer, and starts it again once', async () => {
  const socket = new Slow(false);
  let drained = 0;
  const writer = new GatheredWriter(socket, () => drained++, 1000);
  expect(writer.write(Buffer.alloc(999))).toBe(true);
  expect(writer.write(Buffer.alloc(1))).toBe(false);
  await nextTurn();
  expect(drained).toBe(0);
  expect(writer.buffered).toBe(1000);
  socket.open();
  await nextTurn();
  expect(drained).toBe(1);
  expect(writer.buffered).toBe(0);
  writer.write(Buffer.alloc(10));
  await nextTurn();
  expect(drained).toBe(1);
});

describe('what is borrowed from a read', () => {
  /** As a server's answer is read: into the memory of all of them, where the next read overwrites it. */
  const read = (bytes: number, what: string): Buffer => READ_MEMORY.subarray(0, bytes).fill(what);
  const overwrite = () => READ_MEMORY.fill('!');

  test('is written as it was, however late the socket takes it', async () => {
    const socket = new Slow(false);
    const writer = new GatheredWriter(socket, nothing);
    const others = new GatheredWriter(new Slow(true), nothing);
    for (const [bytes, what] of [
      [100, 'a'],
      [60_000, 'b'],
      [3, 'c'],
      [64_000, 'd'],
    ] as const) {
      writer.write(read(bytes, what));
      writer.flush();
      overwrite();
      others.writeNow(read(64_000, 'x'));
      overwrite();
    }
    writer.write(Buffer.alloc(20_000, 'e'));
    writer.write(read(10, 'f'));
    writer.flush();
    overwrite();
    while (writer.buffered > 0) {
      others.writeNow(read(64_000, 'y'));
      socket.takeOne();
      await nextTurn();
    }
    const written = Buffer.concat(socket.writes).toString('latin1');
    const expected = [
      ['a', 100],
      ['b', 60_000],
      ['c', 3],
      ['d', 64_000],
      ['e', 20_000],
      ['f', 10],
    ] as const;
    expect(written === expected.map(([what, bytes]) => what.repeat(bytes)).join('')).toBe(true);
  });

  test('is gathered with what is written before and after it', async () => {
    const socket = new Slow(true);
    const writer = new GatheredWriter(socket, nothing);
    writer.write(Buffer.from('begin '));
    for (let i = 0; i < 3; i++) {
      writer.write(read(50_000, String(i)));
      overwrite();
    }
    writer.write(Buffer.from(' end'));
    await nextTurn();
    const written = Buffer.concat(socket.writes).toString('latin1');
    expect(written === `begin ${'0'.repeat(50_000)}${'1'.repeat(50_000)}${'2'.repeat(50_000)} end`).toBe(true);
    expect(socket.writes.length).toBe(1);
  });
});
