import { describe, expect, it } from 'vitest';
import { nodeOptionsOf } from '../../cli/processes/node-options.js';

const PROXY = { kind: 'proxy', slot: 0, index: 0 } as const;
const OTHERS = { kind: 'others', parts: ['planner'] } as const;

describe('options of Node for a process that serves clients', () => {
  it('bound the young generation, and nobody else’s', () => {
    expect(nodeOptionsOf(PROXY, ['--no-warnings'])).toEqual(['--max-semi-space-size=8', '--no-warnings']);
    expect(nodeOptionsOf(OTHERS, ['--no-warnings'])).toEqual(['--no-warnings']);
  });

  it('leave it to whoever has bounded it already', () => {
    expect(nodeOptionsOf(PROXY, ['--max-semi-space-size=32'])).toEqual(['--max-semi-space-size=32']);
    expect(nodeOptionsOf(PROXY, [], '--no-warnings --max_semi_space_size=64')).toEqual([]);
  });
});
