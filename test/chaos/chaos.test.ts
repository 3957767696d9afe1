import { beforeAll, describe, expect, it } from 'vitest';
import { buildCli } from '../cli/run-cli.js';
import { FAULTS } from './faults.js';
import { KINDS } from './kinds.js';
import { chaos } from './run.js';

/** Of what is done at random. Other ones, and longer: npm run chaos -- --seed N. */
const SEEDS = (process.env.FORESHARD_SEED ?? '17').split(',').map(Number);
const FLIPS = 3;
const FAULTS_DONE = 5;
const TIMEOUT_MS = 400_000;

beforeAll(() => buildCli(), TIMEOUT_MS);

describe('nothing is lost, doubled or stale, and nobody is left without an answer', () => {
  it.each(SEEDS)(
    'while ranges move and everything fails: seed %i',
    async (seed) => {
      const told: string[] = [];
      const result = await chaos({
        seed,
        writers: 8,
        readers: 4,
        proxies: 3,
        faults: FAULTS,
        hands: 1,
        restMs: 1500,
        kinds: KINDS,
        binDir: process.env.FORESHARD_TEST_PG_BIN,
        enough: ({ flips, faults }) => flips >= FLIPS && faults >= FAULTS_DONE,
        signal: new AbortController().signal,
        log: (text) => told.push(text),
      });
      expect(result.violations, `seed ${seed}, logs in ${result.dir}\n${told.join('\n')}`).toEqual([]);
      expect(result.flips).toBeGreaterThanOrEqual(FLIPS);
      expect(result.operations.acknowledged).toBeGreaterThan(100);
    },
    TIMEOUT_MS,
  );
});
