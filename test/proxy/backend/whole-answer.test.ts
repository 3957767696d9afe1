import { describe, expect, it } from 'vitest';
import { WholeAnswer } from '../../../proxy/backend/whole-answer.js';
import {
  BIND_COMPLETE,
  encodeCommandComplete,
  encodeReadyForQuery,
  NO_DATA,
  PARSE_COMPLETE,
} from '../../../proxy/wire/backend.js';
import { encodeErrorResponse } from '../../../proxy/wire/error-response.js';

const ROW = Buffer.from([0x44, 0, 0, 0, 11, 0, 1, 0, 0, 0, 1, 0x37]);
const READY = encodeReadyForQuery('T');
const BATCH = Buffer.concat([PARSE_COMPLETE, BIND_COMPLETE, NO_DATA, encodeCommandComplete('INSERT 0 1230'), READY]);
const QUERY = Buffer.concat([ROW, ROW, encodeCommandComplete('SELECT 2'), encodeReadyForQuery('I')]);

describe('a whole answer', () => {
  it('is found with what has to be known of it', () => {
    const answer = new WholeAnswer();
    expect(answer.read(BATCH, 0)).toBe(true);
    expect(answer).toMatchObject({ end: BATCH.length, status: 0x54, rows: 0, described: 10, commands: 1 });
    expect(answer.affected(BATCH)).toBe(1230);
    const both = Buffer.concat([BATCH, QUERY]);
    expect(answer.read(both, BATCH.length)).toBe(true);
    expect(answer).toMatchObject({ end: both.length, status: 0x49, rows: 2, described: -1, commands: 1 });
    expect(answer.affected(both)).toBe(2);
  });

  it.each([
    ['COMMIT', 0],
    ['UPDATE 0', 0],
    ['DELETE 10', 10],
    ['SELECT 4000000000', 4_000_000_000],
  ])('counts the rows of %s', (tag, rows) => {
    const answer = new WholeAnswer();
    const bytes = Buffer.concat([encodeCommandComplete(tag), READY]);
    expect(answer.read(bytes, 0)).toBe(true);
    expect(answer.affected(bytes)).toBe(rows);
  });

  it('is not there before its last byte', () => {
    for (let length = 0; length < BATCH.length; length++)
      expect(new WholeAnswer().read(BATCH.subarray(0, length), 0)).toBe(false);
  });

  it('is not one with anything in it that has to be looked at', () => {
    const error = encodeErrorResponse({ severity: 'ERROR', sqlstate: '22012', message: 'division by zero' });
    expect(new WholeAnswer().read(Buffer.concat([ROW, error, READY]), 0)).toBe(false);
    for (const type of 'SNAGIcstEK')
      expect(new WholeAnswer().read(Buffer.concat([Buffer.from(type), Buffer.from([0, 0, 0, 4]), READY]), 0)).toBe(
        false,
      );
  });
});
