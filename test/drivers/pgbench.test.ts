import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';

const tools = findTools();

describe.skipIf(tools === null)('pgbench', () => {
  const { binDir } = tools as NonNullable<typeof tools>;
  let s: Sharded;

  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, binDir });
    await s.onShard(0, 'GRANT ALL ON SCHEMA public TO app');
    expect(await pgbench('-i', '-s', '1', '-q')).toMatchObject({ code: 0 });
  });
  afterAll(() => s.stop());

  const pgbench = (...args: string[]) => run(join(binDir, 'pgbench'), [...args, s.url]);

  /** Every transaction that pgbench counts has left one row of history, and the balances agree with it. */
  async function check(transactions: number): Promise<void> {
    const [sums] = await s.onShard<Record<string, string>>(
      0,
      `SELECT (SELECT count(*) FROM pgbench_history) AS done, (SELECT sum(delta) FROM pgbench_history) AS delta,
         (SELECT sum(abalance) FROM pgbench_accounts) AS accounts, (SELECT sum(tbalance) FROM pgbench_tellers) AS tellers,
         (SELECT sum(bbalance) FROM pgbench_branches) AS branches`,
    );
    expect(Number(sums?.done)).toBe(transactions);
    expect([sums?.accounts, sums?.tellers, sums?.branches]).toEqual([sums?.delta, sums?.delta, sums?.delta]);
  }

  // In prepared mode pgbench waits for the answer to each Parse, and its other clients, who may hold server connections, wait with it.
  for (const [mode, clients] of [
    ['simple', 16],
    ['extended', 16],
    ['prepared', 8],
  ] as const)
    it(`runs TPC-B in ${mode} mode, ${clients} clients on 10 server connections`, async () => {
      const [before] = await s.onShard<{ done: string }>(0, 'SELECT count(*) AS done FROM pgbench_history');
      const outcome = await pgbench('-n', '-M', mode, '-c', `${clients}`, '-j', '2', '-t', '40');
      expect(outcome.code, outcome.stderr).toBe(0);
      expect(outcome.stdout).toContain(`number of transactions actually processed: ${clients * 40}/${clients * 40}`);
      expect(outcome.stdout).toContain('number of failed transactions: 0');
      await check(clients * 40 + Number(before?.done));
    });

  it('reads in every mode, reconnecting for each transaction too', async () => {
    for (const mode of ['simple', 'extended', 'prepared'])
      expect((await pgbench('-n', '-S', '-M', mode, '-c', '12', '-j', '2', '-t', '100')).stdout).toContain('1200/1200');
    expect((await pgbench('-n', '-S', '-C', '-c', '4', '-j', '2', '-t', '25')).stdout).toContain('100/100');
  });

  it('runs pipelines of its own', async () => {
    const script = join(import.meta.dirname, 'pipeline.pgbench');
    const outcome = await pgbench('-n', '-M', 'extended', '-f', script, '-c', '8', '-j', '2', '-t', '30');
    expect(outcome.stdout).toContain('240/240');
    const prepared = await pgbench('-n', '-M', 'prepared', '-f', script, '-c', '8', '-j', '2', '-t', '30');
    expect(prepared.stdout).toContain('240/240');
  });
});
