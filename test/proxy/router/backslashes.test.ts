import { readFileSync } from 'node:fs';
import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { conforming } from '../../../proxy/router/conforming.js';
import { Lexer } from '../../../proxy/router/lexer.js';
import { theirs } from './compare-scan.js';
import { makeRouter, SESSION, spreadTopology, summary } from './setting.js';
import { SqlGenerator } from './sql-generator.js';

beforeAll(() => loadModule());

const corpus = readFileSync(new URL('corpus/statements.sql', import.meta.url), 'utf8')
  .split('\n')
  .filter((s) => s.trim() !== '');

const lexer = new Lexer();

/** With standard_conforming_strings off, '…' is what E'…' is with it on: so says scan.l. The same text in that form, or null when it is rejected. */
function inEscapes(text: Buffer): { readonly text: Buffer; readonly places: readonly number[] } | null {
  if (!lexer.scan(text, false, false)) return null;
  const pieces: Buffer[] = [];
  const places: number[] = [];
  let from = 0;
  for (let i = 0; i < lexer.literalCount; i++) {
    const { kind, start, end } = lexer.literal(i);
    // Words to a scanner.
    if (kind === 'null' || kind === 'boolean') continue;
    if (kind === 'string' || kind === 'backslash') {
      pieces.push(text.subarray(from, start), Buffer.from(' E'));
      from = start;
    }
    places.push(start + 2 * (pieces.length / 2), end + 2 * (pieces.length / 2));
  }
  pieces.push(text.subarray(from));
  return { text: Buffer.concat(pieces), places };
}

describe('with standard_conforming_strings off', () => {
  it('strings end where PostgreSQL’s scanner ends them, in 20,000 random texts', () => {
    const generator = new SqlGenerator(20261122, corpus);
    let compared = 0;
    let escaped = 0;
    for (let i = 0; i < 60_000 && compared < 20_000; i++) {
      const sql = generator.next();
      // Where libpg-query departs from scan.l, what PostgreSQL rejects in this mode, and where an E cannot be put before the quote.
      if (/\$\d+[A-Za-z_\x80-\uffff]/.test(sql) || /u&'|n'|uescape/i.test(sql) || /'\s*(--[^\n\r]*)?[\n\r]/.test(sql))
        continue;
      const text = Buffer.from(sql);
      const other = inEscapes(text);
      if (other === null) continue;
      const expected = theirs(other.text);
      if (expected === 'unusable') continue;
      const strings = expected
        ?.split('\n')
        .filter((t) => / (string|integer|float|bit|hex)$/.test(t))
        .map((t) => t.split(' ')[0]);
      const found: string[] = [];
      for (let k = 0; k < other.places.length; k += 2) found.push(`${other.places[k] ?? 0}-${other.places[k + 1]}`);
      const shift = (place: string, kind: string) => `${sql} ${place} ${kind}`;
      const kinds = Array.from({ length: lexer.literalCount }, (_, k) => lexer.literal(k).kind);
      const scanned = kinds.filter((kind) => kind !== 'null' && kind !== 'boolean');
      const mine = found.map((place, k) => {
        const kind = scanned[k];
        // The E belongs to the literal there.
        const [start, end] = place.split('-').map(Number) as [number, number];
        return kind === 'string' || kind === 'backslash' ? `${start - 1}-${end}` : place;
      });
      expect(shift(mine.join(), 'literals')).toBe(shift((strings ?? []).join(), 'literals'));
      compared++;
      if (lexer.sawBackslash) escaped++;
    }
    expect(compared).toBeGreaterThan(10_000);
    expect(escaped).toBeGreaterThan(200);
  });

  it('the text for the parser has every token where it was', () => {
    const generator = new SqlGenerator(20261123, corpus);
    let changed = 0;
    for (let i = 0; i < 20_000; i++) {
      const text = Buffer.from(generator.next());
      if (!lexer.scan(text, false, false)) continue;
      const before = Array.from({ length: lexer.literalCount }, (_, k) => lexer.literal(k));
      const key = lexer.key();
      const plain = conforming(text);
      if (plain !== text) changed++;
      expect(plain.length).toBe(text.length);
      expect(lexer.scan(plain), text.toString()).toBe(true);
      expect(lexer.key()).toBe(key);
      const after = Array.from({ length: lexer.literalCount }, (_, k) => lexer.literal(k));
      expect(after).toEqual(before.map((l) => (l.kind === 'backslash' ? { ...l, kind: 'string' } : l)));
    }
    expect(changed).toBeGreaterThan(200);
  });

  it('a statement goes where its key says, and a key with a backslash counts for none', () => {
    const topology = spreadTopology();
    const router = makeRouter(() => topology);
    const off = { ...SESSION, conforming: false as const };
    const go = (sql: string, session: typeof SESSION = SESSION) => {
      const analyzed = router.analyze(Buffer.from(sql), session);
      return analyzed.syntaxError ? 'syntax' : summary(router.route(analyzed, 0, null, topology));
    };
    const sql = String.raw`SELECT * FROM orders WHERE note = '\' AND tenant_id = 150 -- ' AND tenant_id = 250`;
    expect(go(sql)).toBe('b');
    expect(go(sql, off)).toBe('c');
    const two = String.raw`SELECT * FROM orders WHERE note = 'it\'s' AND tenant_id = 250 AND id IN (1, 2)`;
    expect(go(two)).toBe('syntax');
    expect(go(two, off)).toBe('c');
    expect(go(two.replace('1, 2', '3'), off)).toBe('c');
    expect(go(String.raw`SELECT count(*) FROM orders WHERE tenant_id = '\x35'`, off)).toBe('gather a b c');
    expect(go(String.raw`DELETE FROM orders WHERE tenant_id = '\x35'`, off)).toMatch(
      /^refused 0A000: the sharding key has/,
    );
    expect(go("SELECT count(*) FROM orders WHERE tenant_id = '5'", off)).toBe('a');
  });
});
