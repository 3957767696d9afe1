import { Writable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { GatheredWriter } from '../../../proxy/wire/gathered-writer.js';

/** A socket whose kernel takes nothing until it is told to. */
class Slow extends Writable {
  readonly writes: Buffer[] = [];
  #release: (() => void)[] = [];
  #open: boolean;

  constructor(open: boolean) {
    super();
    this.#open = open;
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.writes.push(chunk);
    this.#take(done);
  }

  override _writev(chunks: { chunk: Buffer }[], done: () => void): void {
    this.writes.push(Buffer.concat(chunks.map(({ chunk }) => chunk)));
    this.#take(done);
  }

  open(): void {
    this.#open = true;
    for (const done of this.#release.splice(0)) done();
  }

  #take(done: () => void): void {
    if (this.#open) done();
    else this.#release.push(done);
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
