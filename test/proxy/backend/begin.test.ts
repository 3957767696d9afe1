import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Backend } from '../../../proxy/backend/backend.js';
import type { BackendOwner, Expectation } from '../../../proxy/backend/expectation.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import {
  AUTHENTICATION_OK,
  BIND_COMPLETE,
  encodeCommandComplete,
  encodeParameterStatus,
  encodeReadyForQuery,
  PARSE_COMPLETE,
} from '../../../proxy/wire/backend.js';
import { encodeErrorResponse, encodeNoticeResponse } from '../../../proxy/wire/error-response.js';
import { encodeExecute, encodeQuery, SYNC } from '../../../proxy/wire/frontend.js';
import { waitFor } from '../../support/wait-for.js';

/** A server that says what it is told to say, in the pieces that it is told. */
let listener: Server;
let server: Socket;
let heard: Buffer;
let connection: ServerConnection;
let backend: Backend;
let owner: TestOwner;

const BEGUN = Buffer.concat([PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete('BEGIN')]);
const ANSWER = encodeCommandComplete('SELECT 0');
const READY = encodeReadyForQuery('T');
const NOTICE = encodeNoticeResponse({ severity: 'NOTICE', sqlstate: '00000', message: 'by the way' });
const ERROR = encodeErrorResponse({ severity: 'ERROR', sqlstate: '57014', message: 'canceled' });

/** Has the answers to what was said ahead taken as sessions do, and notes what it is told, in order. */
class TestOwner implements BackendOwner {
  readonly told: string[] = [];
  /** How much `takeAhead` has taken of each read. */
  readonly taken: number[] = [];

  onChunk(chunk: Buffer): number {
    const taken = backend.takeAhead(chunk);
    this.taken.push(taken);
    return taken;
  }
  onReply(_backend: Backend, type: number, frame: Buffer): void {
    this.told.push(type === 0 ? `local ${frame}` : String.fromCharCode(type));
  }
  onData(): void {
    this.told.push('data');
  }
  onCopyIn(): void {
    this.told.push('copy');
  }
  onReady(_backend: Backend, status: number, internal: boolean): void {
    this.told.push(internal ? 'ready' : `ready ${String.fromCharCode(status)}`);
  }
  onLost(): void {
    this.told.push('lost');
  }
  onWritable(): void {}
}

beforeAll(async () => {
  listener = createServer().listen(0, '127.0.0.1');
  await once(listener, 'listening');
});
afterAll(() => listener.close());

beforeEach(async () => {
  const { port } = listener.address() as AddressInfo;
  const connecting = ServerConnection.connect({
    shard: 's1',
    host: '127.0.0.1',
    port,
    user: 'app',
    database: 'shop',
    auth: null,
  });
  [server] = (await once(listener, 'connection')) as [Socket];
  server.setNoDelay(true);
  const path = encodeParameterStatus('search_path', 'public');
  server.write(Buffer.concat([AUTHENTICATION_OK, path, encodeReadyForQuery('I')]));
  connection = await connecting;
  heard = Buffer.alloc(0);
  server.on('data', (chunk) => {
    heard = Buffer.concat([heard, chunk]);
  });
  backend = new Backend('s1' as Backend['shard'], connection);
  owner = new TestOwner();
  backend.attach(owner);
});
afterEach(async () => {
  connection.destroy();
  server.destroy();
  await connection.closed;
});

/** Says this in one piece, and waits until it has been read. */
async function says(...messages: readonly Buffer[]): Promise<void> {
  const bytes = Buffer.concat(messages);
  const before = connection.bytesRead;
  server.write(bytes);
  await waitFor(() => connection.bytesRead === before + bytes.length, { what: 'it to be read' });
}

function begin(note: string[] = owner.told): void {
  backend.begin(Buffer.from('BEGIN'), {
    done: () => note.push('begun'),
    failed: () => note.push('not begun'),
  });
}

const local = (text: string): Expectation => ({ kind: 'local', internal: false, bytes: Buffer.from(text) });
const query: Expectation = { kind: 'query', internal: false };

function send(expectation: Expectation): void {
  const message = { query: encodeQuery('SELECT'), sync: SYNC, execute: encodeExecute('') }[expectation.kind as string];
  backend.send(message ?? null, expectation);
}

describe('the answer to a BEGIN that was sent with what follows it', () => {
  it('is taken in one piece, and what follows is for the client', async () => {
    begin();
    send(query);
    expect(backend.status).toBe(0x54);
    await says(BEGUN, ANSWER, READY);
    expect(owner.taken).toEqual([BEGUN.length]);
    expect(owner.told).toEqual(['begun', 'C', 'ready T']);
    expect(backend.quiet).toBe(true);
  });

  it('is followed by what the proxy answers itself', async () => {
    begin();
    send(local('prepared'));
    send(local('closed'));
    send({ kind: 'execute', internal: false });
    send(local('deallocated'));
    send({ kind: 'sync', internal: false });
    expect(owner.told).toEqual([]);
    await says(BEGUN);
    expect(owner.taken).toEqual([BEGUN.length]);
    expect(owner.told).toEqual(['begun', 'local prepared', 'local closed']);
    await says(ANSWER, READY);
    expect(owner.told.slice(3)).toEqual(['C', 'local deallocated', 'ready T']);
  });

  it.each(Array.from({ length: BEGUN.length - 1 }, (_, i) => i + 1))(
    'is put together from two pieces: %i',
    async (at) => {
      begin();
      send(local('prepared'));
      send({ kind: 'execute', internal: false });
      send({ kind: 'sync', internal: false });
      await says(BEGUN.subarray(0, at));
      expect(owner.told).toEqual([]);
      await says(BEGUN.subarray(at), ANSWER, READY);
      expect(owner.taken.every((bytes) => bytes === 0)).toBe(true);
      expect(owner.told).toEqual(['begun', 'local prepared', 'C', 'ready T']);
      expect(backend.quiet).toBe(true);
    },
  );

  const PARTS = [PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete('BEGIN')];
  it.each([0, 1, 2, 3])('may have something between its messages, or before and behind them: %i', async (at) => {
    begin();
    send(query);
    const status = encodeParameterStatus('TimeZone', 'UTC');
    await says(...PARTS.slice(0, at), status, NOTICE, ...PARTS.slice(at), ANSWER, READY);
    expect(owner.told.filter((what) => what !== 'S' && what !== 'N')).toEqual(['begun', 'C', 'ready T']);
    // The client learns of what has changed before it with the next look at all of the connection's parameters.
    expect(owner.told.filter((what) => what === 'S' || what === 'N')).toEqual(at < 3 ? [] : ['S', 'N']);
    expect(connection.parameters.get('TimeZone')).toBe('UTC');
    expect(backend.quiet).toBe(true);
  });

  it.each([0, 1, 2])('is an error after %i of its messages: a Query behind it is ended by a Sync', async (at) => {
    begin();
    let undone = 0;
    backend.send(encodeQuery('SELECT'), { ...query, undo: () => undone++ });
    const sent = heard.length;
    await says(...PARTS.slice(0, at), ERROR);
    expect(owner.told).toEqual(['not begun']);
    expect(undone).toBe(1);
    await waitFor(() => heard.length > sent && heard.subarray(-SYNC.length).equals(SYNC), { what: 'a Sync' });
    await says(encodeReadyForQuery('I'));
    expect(owner.told).toEqual(['not begun', 'ready I']);
    expect(backend.reusable).toBe(true);
  });

  it('is an error, and what the proxy would have answered behind it is not said', async () => {
    begin();
    send(local('prepared'));
    send({ kind: 'execute', internal: false });
    send({ kind: 'sync', internal: false });
    await says(ERROR, encodeReadyForQuery('I'));
    expect(owner.told).toEqual(['not begun', 'ready I']);
    expect(backend.reusable).toBe(true);
    // It is not taken for the answer to the next.
    owner.told.length = 0;
    begin();
    send(query);
    await says(BEGUN, ANSWER, READY);
    expect(owner.told).toEqual(['begun', 'C', 'ready T']);
  });

  it('is told apart from that of another behind it', async () => {
    const notes: string[] = [];
    begin(notes);
    send({ kind: 'sync', internal: false });
    begin(notes);
    send(query);
    await says(BEGUN, READY, BEGUN, ANSWER, READY);
    expect(notes).toEqual(['begun', 'begun']);
    expect(owner.told).toEqual(['ready T', 'C', 'ready T']);
    expect(backend.quiet).toBe(true);
  });

  it('is not taken for one that a client has asked for', async () => {
    begin();
    send(query);
    await says(BEGUN, ANSWER, READY);
    for (const kind of ['parse', 'bind', 'execute'] as const) backend.send(null, { kind, internal: false });
    send({ kind: 'sync', internal: false });
    await says(BEGUN, READY);
    expect(owner.taken).toEqual([BEGUN.length, 0]);
    expect(owner.told.slice(3)).toEqual(['1', '2', 'C', 'ready T']);
  });

  it('does not come: what was asked for is undone', async () => {
    begin();
    let undone = 0;
    backend.send(encodeQuery('SELECT'), { ...query, undo: () => undone++ });
    await says(PARSE_COMPLETE);
    server.destroy();
    await connection.closed;
    expect(owner.told).toEqual(['lost']);
    expect(undone).toBe(1);
  });
});

describe('numbers from sequences that are forgotten with what follows', () => {
  const DISCARDED = Buffer.concat([PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete('DISCARD SEQUENCES')]);

  it('are, behind a BEGIN too, and the client hears nothing of it', async () => {
    backend.sequencesOf = 7;
    begin();
    backend.forgetSequences();
    send(query);
    await says(BEGUN, DISCARDED, ANSWER, READY);
    expect(owner.taken).toEqual([BEGUN.length + DISCARDED.length]);
    expect(owner.told).toEqual(['begun', 'C', 'ready T']);
    expect([backend.sequencesOf, backend.quiet]).toEqual([null, true]);
    backend.sequencesOf = 8;
    backend.forgetSequences();
    send(query);
    await says(DISCARDED.subarray(0, 7));
    await says(DISCARDED.subarray(7), ANSWER, READY);
    expect(owner.told.slice(3)).toEqual(['C', 'ready T']);
    expect([backend.sequencesOf, backend.quiet]).toEqual([null, true]);
  });

  it('are not when it is canceled: that is the error of the Query behind it, which is ended by a Sync', async () => {
    backend.forgetSequences();
    let undone = 0;
    backend.send(encodeQuery('INSERT'), { ...query, undo: () => undone++ });
    backend.sequencesOf = 7; // whose statement it is draws, as far as anybody knows
    const sent = heard.length;
    await says(PARSE_COMPLETE, BIND_COMPLETE, ERROR);
    expect([owner.told, undone]).toEqual([['E'], 1]);
    await waitFor(() => heard.length > sent && heard.subarray(-SYNC.length).equals(SYNC), { what: 'a Sync' });
    await says(encodeReadyForQuery('E'));
    expect(owner.told).toEqual(['E', 'ready E']);
    expect(backend.sequencesOf).toBe('several');
  });

  it('are not when it is canceled: so it is for a batch behind it, which has its Sync', async () => {
    backend.forgetSequences();
    let ended = 0;
    backend.send(encodeExecute(''), { kind: 'batch', internal: false, done: () => ended++ });
    await says(ERROR, encodeReadyForQuery('E'));
    expect([owner.told, ended]).toEqual([['E', 'ready E'], 1]);
    expect([backend.sequencesOf, backend.quiet]).toEqual(['several', true]);
  });

  it('are not when the BEGIN before it has failed', async () => {
    begin();
    backend.forgetSequences();
    send(query);
    await says(ERROR, encodeReadyForQuery('I'));
    expect(owner.told).toEqual(['not begun', 'ready I']);
    expect([backend.sequencesOf, backend.quiet]).toEqual(['several', true]);
  });
});
