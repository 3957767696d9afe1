import { describe, expect, it } from 'vitest';
import { withLiterals } from '../../bench/load/load-client.js';
import { latencyOfLogs, parsePgbench } from '../../bench/load/pgbench.js';

const OUTPUT = `pgbench (15.18 (Debian 15.18-0+deb12u1), server 18.4)
transaction type: script.sql
number of transactions actually processed: 41234
number of failed transactions: 0 (0.000%)
latency average = 0.776 ms
initial connection time = 20.013 ms
tps = 20617.234567 (without initial connection time)
`;

describe('parsePgbench', () => {
  it('reads what pgbench prints', () => {
    expect(parsePgbench(OUTPUT)).toEqual({ transactions: 41_234, tps: 20_617.234567 });
  });

  it('does not count a run in which transactions failed, or of which it understands nothing', () => {
    expect(() => parsePgbench(OUTPUT.replace('failed transactions: 0', 'failed transactions: 3'))).toThrow(
      '3 transactions failed',
    );
    expect(() => parsePgbench('tps = 12 (including connections establishing)')).toThrow('not understood');
  });
});

it('latencyOfLogs reads the times of all threads', () => {
  const line = (us: number) => `3 17 ${us} 0 1789000000 123456`;
  const logs = [Array.from({ length: 500 }, (_, i) => line((i + 1) * 1000)), [501, 502].map((ms) => line(ms * 1000))];
  const found = latencyOfLogs(logs.map((lines) => `${lines.join('\n')}\n`));
  expect(found).toEqual({ p50: 251, p99: 497, p999: 502, count: 502 });
  expect(latencyOfLogs([''])).toBeNull();
});

it('withLiterals puts values in the place of parameters, $10 not in that of $1', () => {
  const values = [1, "it's", 3, 4, 5, 6, 7, 8, 9, -10];
  expect(withLiterals('SELECT $1, $2, $10', values)).toBe("SELECT 1, 'it''s', -10");
});
