import { expect, test } from 'vitest';
import { parseDuration } from '../../topology/duration.js';

test.each([
  ['500ms', 500],
  ['500', 500],
  [' 1.5 s ', 1500],
  ['.5s', 500],
  ['2min', 120_000],
  ['1h', 3_600_000],
  ['1d', 86_400_000],
  ['1500us', 2],
  ['0', 0],
])('%s is as long as PostgreSQL takes it for', (text, ms) => {
  expect(parseDuration(text)).toBe(ms);
});

test.each(['', 'ms', '-1', '1 m', '1MS', '1e3', '5 ms s', '99999999999', 'soon'])(
  '"%s" is no length of time',
  (text) => {
    expect(parseDuration(text)).toBeNull();
  },
);
