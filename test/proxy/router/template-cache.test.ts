import { describe, expect, it } from 'vitest';
import { Lexer } from '../../../proxy/router/lexer.js';
import { TemplateCache } from '../../../proxy/router/template-cache.js';

const lexer = new Lexer();
const SCOPE = { id: 1 };
type Cache = TemplateCache<{ readonly id: number }, string>;

/** As the router does: looks the text up, and keeps it when it is not there. @returns whether it was */
function use(cache: Cache, sql: string, scope = SCOPE, bytes = 100): boolean {
  lexer.scan(Buffer.from(sql));
  const found = cache.get(lexer, scope);
  if (found === undefined) cache.set(lexer, scope, lexer.key(), bytes);
  else expect(found).toBe(lexer.key());
  return found !== undefined;
}

const hot = (i: number) => `SELECT hot_${i} FROM orders WHERE id = ${i}`;
const HOT = Array.from({ length: 200 }, (_, i) => i);

describe('templates', () => {
  it.each([
    ['once each', (i: number) => i],
    ['twice each, at once', (i: number) => i >> 1],
    ['again and again, more of them than there is room for', (i: number) => i % 5_000],
  ])('that are used stay during a flood of 100,000 others, used %s', (_, which) => {
    const cache: Cache = new TemplateCache({ entries: 1_000, bytes: 1 << 20 });
    for (let round = 0; round < 5; round++) for (const i of HOT) use(cache, hot(i));
    let misses = 0;
    let most = 0;
    for (let i = 0; i < 100_000; i++) {
      use(cache, `SELECT "c${which(i)}" FROM flood /* trace ${i} */`);
      if (i % 5 === 0 && !use(cache, hot((i / 5) % HOT.length))) misses++;
      most = Math.max(most, cache.bytes);
      expect(cache.size).toBeLessThanOrEqual(1_000);
    }
    expect(misses).toBe(0);
    expect(most).toBeLessThanOrEqual(1 << 20);
    expect(most).toBeGreaterThan(1 << 19);
  });

  it('come in while a flood goes on, when they are used more than its statements are', () => {
    const cache: Cache = new TemplateCache({ entries: 1_000, bytes: 1 << 20 });
    let hits = 0;
    for (let i = 0; i < 100_000; i++) {
      use(cache, `SELECT "c${i}" FROM flood`);
      // Each comes round after more statements than the short queue has room for.
      if (i % 10 === 0 && use(cache, hot((i / 10) % 50)) && i > 10_000) hits++;
    }
    expect(hits).toBe(8_999);
  });

  it('are bounded in bytes whatever their size', () => {
    const cache: Cache = new TemplateCache({ entries: 1_000, bytes: 1 << 20 });
    for (let i = 0; i < 5_000; i++) {
      use(cache, `SELECT ${'x, '.repeat(i % 700)} "c${i}"`, SCOPE, (i % 13) * 1_000);
      expect(cache.bytes).toBeLessThanOrEqual(1 << 20);
    }
    expect(cache.size).toBeGreaterThan(50);
    use(cache, `SELECT ${'x, '.repeat(400_000)} y`);
    expect(cache.bytes).toBeLessThanOrEqual(1 << 20);
  });

  it('of another scope are others', () => {
    const cache: Cache = new TemplateCache({ entries: 10, bytes: 1 << 20 });
    expect(use(cache, 'SELECT 1')).toBe(false);
    expect(use(cache, 'SELECT 2')).toBe(true);
    expect(use(cache, 'SELECT 1', { id: 2 })).toBe(false);
    // Scopes are told apart by what they are, not by their numbers.
    expect(use(cache, 'SELECT 1', { id: 1 })).toBe(false);
  });

  it('with the same hash are told apart, and go one by one', () => {
    const hash = lexer.hash.bind(lexer);
    /** Everything has one of two hashes. */
    const colliding = Object.assign(lexer, { hash: (seed: number) => hash(seed) & 1 });
    const cache: Cache = new TemplateCache({ entries: 20, bytes: 1 << 20 });
    let hits = 0;
    for (let i = 0; i < 500; i++) {
      expect(use(cache, `SELECT "c${i}"`)).toBe(false);
      if (use(cache, `SELECT "c${i}"`)) hits++;
      expect(cache.size).toBeLessThanOrEqual(20);
    }
    expect(hits).toBeGreaterThan(20);
    Object.assign(colliding, { hash });
  });
});
