import { describe, expect, it } from 'vitest';
import { cellId } from '../../bench/results/results.js';
import { parseOptions } from '../../bench/suite/options.js';
import { estimateSeconds, planCells, rotate, warmUps } from '../../bench/suite/plan.js';
import { isAtLeast } from '../../bench/suite/programs.js';

describe('parseOptions', () => {
  it('runs everything unless told otherwise', async () => {
    expect(await parseOptions([])).toMatchObject({
      parts: ['select', 'tpcb', 'orm', 'memory', 'micro'],
      clients: [1, 4, 16, 64, 256],
      protocols: ['simple', 'extended', 'prepared'],
      shards: [1, 3],
      rounds: 5,
      peers: null,
    });
    expect(await parseOptions(['--only', 'orm, select', '--peers', 'none', '--clients', '1,16'])).toMatchObject({
      parts: ['select', 'orm'],
      peers: [],
      clients: [1, 16],
    });
  });

  it('refuses what it does not know', async () => {
    await expect(parseOptions(['--only', 'selects'])).rejects.toThrow('--only: "selects" is none of select, tpcb');
    await expect(parseOptions(['--clients', '0'])).rejects.toThrow('--clients: give whole numbers from 1 on');
    await expect(parseOptions(['--round', '1'])).rejects.toThrow('round');
  });
});

describe('planCells', () => {
  it('has every workload, protocol and number of clients, on one shard and on three', async () => {
    const cells = planCells(await parseOptions([]), ['pgbouncer'], true);
    expect(new Set(cells.map(cellId)).size).toBe(cells.length);
    expect(cells.length).toBe(5 * 3 * 5);
    expect(cells.find((cell) => cellId(cell) === 'select/1/simple/1')?.peers).toEqual([
      'direct',
      'pgbouncer',
      'foreshard',
      'foreshard-routed',
    ]);
  });

  it('has Foreshard with several processes beside that with one, where there is one server', async () => {
    const cells = planCells(await parseOptions(['--workers', '2']), [], true);
    const peers = (id: string) => cells.find((cell) => cellId(cell) === id)?.peers;
    expect(peers('tpcb/1/simple/16')).toEqual(['direct', 'foreshard', 'foreshard-workers']);
    expect(peers('key/3/simple/16')).toEqual(['direct', 'foreshard']);
  });

  it('measures in a quick run only what a whole run measures too', async () => {
    const all = planCells(await parseOptions([]), [], true).map(cellId);
    const options = await parseOptions(['--quick']);
    const quick = planCells(options, [], true).map(cellId);
    expect(quick.length).toBeLessThan(all.length / 3);
    expect(all).toEqual(expect.arrayContaining(quick));
  });

  it('takes pgbench where it can make the load', async () => {
    const options = await parseOptions(['--pool', '10']);
    const loads = (hasPgbench: boolean) =>
      new Map(planCells(options, [], hasPgbench).map((cell) => [cellId(cell), cell.load]));
    expect(loads(true).get('tpcb/1/prepared/4')).toBe('pgbench');
    // It would wait for itself: see the plan.
    expect(loads(true).get('tpcb/1/prepared/16')).toBe('generator');
    expect(loads(true).get('select/1/prepared/256')).toBe('pgbench');
    expect(loads(true).get('orm/1/simple/4')).toBe('generator');
    expect(new Set(loads(false).values())).toEqual(new Set(['generator']));
  });

  it('warms every peer up with every kind of load, by clients that are not too many', async () => {
    const warm = warmUps(planCells(await parseOptions(['--only', 'tpcb', '--shards', '1']), ['pgbouncer'], true));
    expect(warm.map(({ cell, peer }) => `${cellId(cell)} ${peer}`)).toEqual(
      ['simple', 'extended', 'prepared'].flatMap((protocol) =>
        ['direct', 'pgbouncer', 'foreshard'].map((peer) => `tpcb/1/${protocol}/16 ${peer}`),
      ),
    );
  });

  it('knows how long it will take', async () => {
    const options = await parseOptions(['--only', 'orm', '--protocols', 'simple', '--clients', '1', '--rounds', '2']);
    const cells = planCells(options, ['pgbouncer'], true);
    expect(estimateSeconds(cells, options)).toBeCloseTo(3 * (1 + 2) * 2.6);
  });
});

it('rotate lets everybody be first in turn', () => {
  const peers = ['a', 'b', 'c'];
  expect([0, 1, 2, 3].map((by) => rotate(peers, by).join(''))).toEqual(['abc', 'bca', 'cab', 'abc']);
  expect(rotate([], 4)).toEqual([]);
});

it('isAtLeast compares versions number by number', () => {
  expect(['1.21', '1.21.0', '1.100.1', '2.0'].map((version) => isAtLeast(version, '1.21'))).toEqual([
    true,
    true,
    true,
    true,
  ]);
  expect(['1.20.9', '1.3', '0.99', 'unknown'].map((version) => isAtLeast(version, '1.21'))).toEqual([
    false,
    false,
    false,
    false,
  ]);
});
