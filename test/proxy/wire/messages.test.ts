import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { parse, serialize } from 'pg-protocol';
import { describe, expect, test } from 'vitest';
import * as backend from '../../../proxy/wire/backend.js';
import {
  decodeErrorFields,
  type ErrorFields,
  encodeErrorResponse,
  encodeNoticeResponse,
  fieldsOfError,
} from '../../../proxy/wire/error-response.js';
import * as frontend from '../../../proxy/wire/frontend.js';
import { ForeshardError } from '../../../topology/errors.js';

/** What an independent client reads from our bytes. */
async function parsed(...messages: readonly Buffer[]): Promise<Record<string, unknown>[]> {
  const stream = new PassThrough();
  const found: Record<string, unknown>[] = [];
  const done = parse(stream, (message) => found.push({ ...message }));
  stream.end(Buffer.concat(messages));
  await done;
  return found;
}

const FIELDS: ErrorFields = {
  severity: 'ERROR',
  sqlstate: '23505',
  message: 'duplicate key value violates unique constraint "t_pkey"',
  detail: 'Key (id)=(1) already exists.',
  hint: 'hint',
  position: 15,
  internalPosition: 3,
  internalQuery: 'SELECT 1',
  where: 'PL/pgSQL function f()',
  schema: 'public',
  table: 't',
  column: 'c',
  dataType: 'int4',
  constraint: 't_pkey',
  file: 'nbtinsert.c',
  line: 666,
  routine: '_bt_check_unique',
};

describe('what the proxy says to clients is what their driver reads', () => {
  test('answers without a body', async () => {
    const names = await parsed(
      backend.PARSE_COMPLETE,
      backend.BIND_COMPLETE,
      backend.CLOSE_COMPLETE,
      backend.NO_DATA,
      backend.PORTAL_SUSPENDED,
      backend.EMPTY_QUERY_RESPONSE,
      backend.COPY_DONE_RESPONSE,
      backend.AUTHENTICATION_OK,
    );
    expect(names.map(({ name }) => name)).toEqual([
      'parseComplete',
      'bindComplete',
      'closeComplete',
      'noData',
      'portalSuspended',
      'emptyQuery',
      'copyDone',
      'authenticationOk',
    ]);
  });

  test('start-up answers', async () => {
    expect(
      await parsed(
        backend.encodeAuthenticationSasl(['SCRAM-SHA-256']),
        backend.encodeAuthenticationSaslContinue(Buffer.from('r=x')),
        backend.encodeAuthenticationSaslFinal(Buffer.from('v=y')),
        backend.encodeParameterStatus('client_encoding', 'UTF8'),
        backend.encodeBackendKeyData(42, Buffer.from([0, 0, 1, 0])),
        backend.encodeReadyForQuery('T'),
      ),
    ).toMatchObject([
      { name: 'authenticationSASL', mechanisms: ['SCRAM-SHA-256'] },
      { name: 'authenticationSASLContinue', data: 'r=x' },
      { name: 'authenticationSASLFinal', data: 'v=y' },
      { name: 'parameterStatus', parameterName: 'client_encoding', parameterValue: 'UTF8' },
      { name: 'backendKeyData', processID: 42, secretKey: 256 },
      { name: 'readyForQuery', status: 'T' },
    ]);
  });

  test('rows', async () => {
    const field = {
      name: 'n',
      tableOid: 4_000_000_000,
      columnNumber: 1,
      typeOid: 23,
      typeLength: 4,
      typeModifier: -1,
      format: 0,
    };
    expect(
      await parsed(
        backend.encodeRowDescription([field]),
        backend.encodeDataRow(['12', null, Buffer.from('ü')]),
        backend.encodeCommandComplete('SELECT 1'),
      ),
    ).toMatchObject([
      { name: 'rowDescription', fields: [{ name: 'n', tableID: 4_000_000_000, dataTypeID: 23, format: 'text' }] },
      { name: 'dataRow', fields: ['12', null, 'ü'] },
      { name: 'commandComplete', text: 'SELECT 1' },
    ]);
  });

  test('errors and notices, with every field', async () => {
    const [error, notice] = await parsed(
      encodeErrorResponse(FIELDS),
      encodeNoticeResponse({ severity: 'WARNING', sqlstate: '01000', message: 'careful' }),
    );
    expect(error).toMatchObject({
      name: 'error',
      severity: 'ERROR',
      code: '23505',
      detail: FIELDS.detail,
      hint: 'hint',
      position: '15',
      constraint: 't_pkey',
      routine: '_bt_check_unique',
    });
    expect(notice).toMatchObject({ name: 'notice', message: 'careful' });
    expect(decodeErrorFields(encodeErrorResponse(FIELDS))).toEqual(FIELDS);
  });

  test('an error of the proxy keeps its SQLSTATE and hint; anything else is an internal error', () => {
    const refused = new ForeshardError('0A000', 'cannot do that', { hint: 'do this' });
    expect(fieldsOfError(refused, 'FATAL')).toEqual({
      severity: 'FATAL',
      sqlstate: '0A000',
      message: 'cannot do that',
      hint: 'do this',
    });
    expect(fieldsOfError(new TypeError('oops'))).toMatchObject({
      sqlstate: 'XX000',
      message: expect.stringContaining('oops'),
    });
  });

  test('a zero byte in a message does not break the frame', async () => {
    expect(await parsed(encodeErrorResponse({ severity: 'ERROR', sqlstate: '22021', message: 'a\0b' }))).toMatchObject([
      { code: '22021' },
    ]);
  });
});

describe('what servers send is understood', () => {
  test('round trips', () => {
    const oids = [23, 4_294_967_295];
    expect(backend.decodeParameterDescription(backend.encodeParameterDescription(oids))).toEqual(oids);
    expect(backend.decodeReadyForQuery(backend.encodeReadyForQuery('E'))).toBe('E');
    expect(backend.decodeParameterStatus(backend.encodeParameterStatus('a', 'ü'))).toEqual({ name: 'a', value: 'ü' });
    const secret = Buffer.alloc(32, 5);
    expect(backend.decodeBackendKeyData(backend.encodeBackendKeyData(7, secret))).toEqual({ processId: 7, secret });
    const row = [Buffer.from('x'), null, Buffer.alloc(0)];
    expect(backend.decodeDataRow(backend.encodeDataRow(row))).toEqual(row);
    const field = {
      name: 'größe',
      tableOid: 1,
      columnNumber: -2,
      typeOid: 25,
      typeLength: -1,
      typeModifier: -1,
      format: 1,
    };
    expect(backend.decodeRowDescription(backend.encodeRowDescription([field, field]))).toEqual([field, field]);
  });

  test.each([
    ['INSERT 0 5', 5],
    ['SELECT 12', 12],
    ['UPDATE 0', 0],
    ['DELETE 3', 3],
    ['COPY 100000000000', 100_000_000_000],
    ['MERGE 2', 2],
    ['FETCH 1', 1],
    ['MOVE 4', 4],
    ['BEGIN', null],
    ['CREATE TABLE', null],
    ['SELECT', null],
  ])('rows of tag %s', (tag, rows) => {
    expect(backend.rowsOfTag(backend.decodeCommandComplete(backend.encodeCommandComplete(tag)))).toBe(rows);
  });

  test('a cancel key is 4 to 256 bytes', () => {
    expect(() => backend.decodeBackendKeyData(backend.encodeBackendKeyData(1, Buffer.alloc(3)))).toThrow(
      'cancellation key',
    );
    expect(() => backend.decodeBackendKeyData(backend.encodeBackendKeyData(1, Buffer.alloc(257)))).toThrow(
      'cancellation key',
    );
  });
});

const name = fc.string({ unit: 'grapheme-ascii', maxLength: 20 }).filter((text) => !text.includes('\0'));
const value = fc.option(fc.uint8Array({ maxLength: 50 }).map((bytes) => Buffer.from(bytes)));

describe('what drivers send is understood', () => {
  test('Query and Parse', () => {
    fc.assert(
      fc.property(name, name, fc.array(fc.nat(2 ** 31 - 1), { maxLength: 5 }), (statement, text, types) => {
        expect(frontend.decodeQuery(serialize.query(text)).toString()).toBe(text);
        const expected = { name: statement, sql: Buffer.from(text), oids: types };
        expect(frontend.decodeParse(serialize.parse({ name: statement, text, types }))).toEqual(expected);
        expect(frontend.encodeParse(statement, text, types)).toEqual(serialize.parse({ name: statement, text, types }));
      }),
    );
  });

  test('messages of every length, whatever their buffers held before', () => {
    for (let length = 0; length < 600; length++) {
      // Makes sure that memory not written to is not zero by chance.
      Buffer.allocUnsafe(1024).fill(0xff);
      const tag = 'x'.repeat(length);
      expect(backend.decodeCommandComplete(backend.encodeCommandComplete(tag))).toBe(tag);
      const startup = frontend.encodeStartup({ user: tag });
      expect(startup.subarray(4).toString('latin1')).toBe(`\0\x03\0\0user\0${tag}\0\0`);
      expect(startup.readInt32BE(0)).toBe(startup.length);
    }
  });

  test('Bind, also under another statement name', () => {
    fc.assert(
      fc.property(name, name, fc.array(value, { maxLength: 8 }), name, (portal, statement, values, renamed) => {
        const message = serialize.bind({ portal, statement, values });
        const bind = frontend.decodeBind(message);
        expect(bind).toMatchObject({ portal, statement, values });
        // node-postgres sends Buffers in binary and everything else as text
        expect(bind.formats).toEqual(values.map((v) => (v === null ? 0 : 1)));
        expect(frontend.decodeBind(frontend.encodeBind(bind))).toEqual(bind);
        const pieces = frontend.rewriteBindStatement(message, renamed);
        expect(Buffer.concat(pieces)).toEqual(serialize.bind({ portal, statement: renamed, values }));
      }),
    );
  });

  test('the beginning of a Bind has the values that are there in whole', () => {
    const values = [Buffer.from('one'), null, Buffer.alloc(0), Buffer.alloc(40, 'x'), Buffer.from('last')];
    const message = serialize.bind({ portal: 'p', statement: 's', values });
    const whole = frontend.decodeBind(message);
    const known: number[] = [];
    for (let end = 5; end < message.length; end++) {
      const head = frontend.decodeBindHead(message.subarray(0, end));
      if (head === null) {
        expect(known).toEqual([]);
        continue;
      }
      expect(head).toMatchObject({ portal: 'p', statement: 's', formats: whole.formats });
      expect(head.values.length).toBe(values.length);
      const there = values.findIndex((_, i) => !(i in head.values));
      known.push(there < 0 ? values.length : there);
      for (let i = 0; i < (known.at(-1) as number); i++) expect(head.values[i]).toEqual(whole.values[i]);
    }
    expect([...new Set(known)]).toEqual([0, 1, 2, 3, 4, 5]);
  });

  test('Parse under another name', () => {
    const message = serialize.parse({ name: 'a', text: 'SELECT $1', types: [23] });
    expect(Buffer.concat(frontend.rewriteParseName(message, 'longer'))).toEqual(
      serialize.parse({ name: 'longer', text: 'SELECT $1', types: [23] }),
    );
  });

  test('names that are not UTF-8 stay apart and come back unchanged', () => {
    const parse = (byte: number): Buffer => frontend.encodeParse(String.fromCharCode(byte), 'x');
    expect(frontend.decodeParse(parse(0xe8)).name).not.toBe(frontend.decodeParse(parse(0xe9)).name);
    expect(parse(0xe9)[5]).toBe(0xe9);
  });

  test('the rest', () => {
    expect(frontend.decodeExecute(serialize.execute({ portal: 'p', rows: 9 }))).toEqual({ portal: 'p', maxRows: 9 });
    expect(frontend.encodeExecute('p', 9)).toEqual(serialize.execute({ portal: 'p', rows: 9 }));
    for (const [type, kind] of [
      ['S', 'statement'],
      ['P', 'portal'],
    ] as const) {
      expect(frontend.decodeDescribe(serialize.describe({ type, name: 'n' }))).toEqual({ kind, name: 'n' });
      expect(frontend.decodeClose(serialize.close({ type, name: 'n' }))).toEqual({ kind, name: 'n' });
      expect(frontend.encodeDescribe(kind, 'n')).toEqual(serialize.describe({ type, name: 'n' }));
      expect(frontend.encodeClose(kind, 'n')).toEqual(serialize.close({ type, name: 'n' }));
    }
    expect(frontend.encodeQuery('SELECT 1')).toEqual(serialize.query('SELECT 1'));
    expect(frontend.SYNC).toEqual(serialize.sync());
    expect(frontend.FLUSH).toEqual(serialize.flush());
    expect(frontend.TERMINATE).toEqual(serialize.end());
    expect(frontend.COPY_DONE).toEqual(serialize.copyDone());
    expect(frontend.encodeCopyFail('no')).toEqual(serialize.copyFail('no'));
    expect(frontend.encodePassword('pw')).toEqual(serialize.password('pw'));
    expect(frontend.encodeSslRequest()).toEqual(serialize.requestSsl());
    expect(frontend.encodeCancelRequest(1, Buffer.from([0, 0, 0, 2]))).toEqual(serialize.cancel(1, 2));
    expect(frontend.encodeSaslInitialResponse('SCRAM-SHA-256', Buffer.from('n,,'))).toEqual(
      serialize.sendSASLInitialResponseMessage('SCRAM-SHA-256', 'n,,'),
    );
  });
});

describe('malformed messages get PostgreSQL’s words', () => {
  const frame = (type: string, body: string | Buffer): Buffer => {
    const bytes = typeof body === 'string' ? Buffer.from(body, 'latin1') : body;
    const header = Buffer.alloc(5, type);
    header.writeInt32BE(bytes.length + 4, 1);
    return Buffer.concat([header, bytes]);
  };

  test.each([
    ['a query without its end', () => frontend.decodeQuery(frame('Q', 'SELECT 1')), 'invalid string in message'],
    [
      'a query with something behind it',
      () => frontend.decodeQuery(frame('Q', 'SELECT 1\0x')),
      'invalid message format',
    ],
    [
      'a Parse that promises more types',
      () => frontend.decodeParse(frame('P', '\0\0\0\x02\0\0\0\x17')),
      'insufficient data left in message',
    ],
    [
      'a Bind with two formats for three values',
      () => frontend.decodeBind(frame('B', '\0\0\0\x02\0\0\0\0\0\x03')),
      'bind message has 2 parameter formats but 3 parameters',
    ],
    [
      'a Bind value longer than the message',
      () => frontend.decodeBind(frame('B', '\0\0\0\0\0\x01\0\0\0\x09x')),
      'insufficient data left in message',
    ],
    [
      'a Bind value of length −2',
      () => frontend.decodeBind(frame('B', '\0\0\0\0\0\x01\xff\xff\xff\xfe')),
      'insufficient data left in message',
    ],
    [
      'Describe of nothing known',
      () => frontend.decodeDescribe(frame('D', 'Xn\0')),
      'invalid DESCRIBE message subtype 88',
    ],
    ['Close of nothing known', () => frontend.decodeClose(frame('C', 'Xn\0')), 'invalid CLOSE message subtype 88'],
    ['an empty Describe', () => frontend.decodeDescribe(frame('D', '')), 'no data left in message'],
    ['a Sync with a body', () => frontend.checkEmpty(frame('S', 'x')), 'invalid message format'],
  ])('%s', (_name, decode, message) => {
    expect(decode).toThrow(expect.objectContaining({ sqlstate: '08P01', message }));
  });

  test('no bytes whatever make a decoder fail in another way', () => {
    const decoders = [
      frontend.decodeQuery,
      frontend.decodeParse,
      frontend.decodeBind,
      frontend.decodeDescribe,
      frontend.decodeClose,
      frontend.decodeExecute,
      backend.decodeParameterStatus,
      backend.decodeBackendKeyData,
      backend.decodeReadyForQuery,
      backend.decodeRowDescription,
      backend.decodeDataRow,
      backend.decodeNotification,
      decodeErrorFields,
    ];
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), fc.constantFrom(...decoders), (body, decode) => {
        try {
          decode(frame('x', Buffer.from(body)));
        } catch (error) {
          expect(error).toMatchObject({ sqlstate: '08P01' });
        }
      }),
      { numRuns: 3000 },
    );
  });
});
