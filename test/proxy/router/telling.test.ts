import type pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { Router } from '../../../proxy/router/router.js';
import { tellsTransaction, valueTells } from '../../../proxy/router/telling.js';
import { routerOf } from './real-schema.js';

let pool: pg.Pool;
let router: Router;

beforeAll(async () => {
  ({ pool, router } = await routerOf(`
    CREATE TABLE plain (a int, b text DEFAULT upper('x'), by text DEFAULT CURRENT_USER, id uuid DEFAULT gen_random_uuid(),
      at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE by_now (a int, at timestamptz DEFAULT now());
    CREATE TABLE parents (a int PRIMARY KEY);
    CREATE TABLE children (a int REFERENCES parents, at timestamptz DEFAULT now());
    CREATE TABLE by_date (a int, at date DEFAULT CURRENT_DATE);
    CREATE TABLE by_timestamp (a int, at timestamp DEFAULT LOCALTIMESTAMP(3));
    CREATE DOMAIN dated AS timestamptz DEFAULT transaction_timestamp();
    CREATE TABLE by_domain (a int, at dated);
    CREATE TABLE by_check (a int, at date CHECK (at <= now()));
    CREATE FUNCTION told() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()';
    CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.at := told(); RETURN NEW; END';
    CREATE TABLE by_trigger (a int, at timestamptz);
    CREATE TRIGGER t BEFORE UPDATE ON by_trigger FOR EACH ROW EXECUTE FUNCTION touched();
    CREATE FUNCTION raised() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.a := NEW.a + 1; RETURN NEW; END';
    CREATE TABLE by_two (a int, at timestamptz DEFAULT now(), till timestamptz DEFAULT now() + '1 day', day date DEFAULT CURRENT_DATE);
    CREATE TABLE by_check_too (a int, at timestamptz DEFAULT now() CHECK (at <= now()));
    CREATE TABLE by_own (a int, at timestamptz DEFAULT told());
    CREATE TABLE by_other_trigger (a int);
    CREATE TRIGGER t BEFORE INSERT ON by_other_trigger FOR EACH ROW EXECUTE FUNCTION raised();
    CREATE VIEW seen AS SELECT a, at FROM by_now;
    CREATE VIEW seen_again AS SELECT a AS b FROM seen;
    CREATE VIEW recent AS SELECT a, CURRENT_DATE AS today FROM plain;
    CREATE VIEW by_call AS SELECT a FROM plain WHERE at < now();
    CREATE VIEW plainly AS SELECT a FROM plain;
    CREATE TABLE with_rule (a int);
    CREATE RULE r AS ON DELETE TO with_rule DO ALSO INSERT INTO by_now (a) VALUES (OLD.a);
    CREATE TABLE with_policy (a int, till date);
    CREATE POLICY p ON with_policy USING (till > CURRENT_DATE);
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO by_now (a) VALUES (NEW.a); RETURN NEW; END';
    CREATE TABLE with_notes (a int);
    CREATE TRIGGER t AFTER UPDATE ON with_notes FOR EACH ROW EXECUTE FUNCTION noted();
    CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE by_now SET a = a + 1; RETURN NEW; END';
    CREATE TABLE with_counts (a int);
    CREATE TRIGGER t AFTER UPDATE ON with_counts FOR EACH ROW EXECUTE FUNCTION counted();
    CREATE FUNCTION first_of(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN IF n = 0 THEN RETURN 0; END IF; RETURN second_of(n - 1); END';
    CREATE FUNCTION second_of(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM told(); RETURN first_of(n); END';
  `));
});

afterAll(() => pool.end());

it.each([
  ['INSERT INTO plain (a) VALUES (1)', undefined],
  ['INSERT INTO by_now (a) VALUES (1)', 'always'],
  ['INSERT INTO by_now (a, at) VALUES (1, $1)', 'by-default'],
  ['INSERT INTO by_now (at, a) VALUES ($1, 1), (DEFAULT, 2)', 'by-default'],
  ['INSERT INTO by_now (a, at) SELECT 1, clock_timestamp()', 'by-default'],
  ['INSERT INTO by_now VALUES (1, $1)', 'by-default'],
  ['INSERT INTO by_now VALUES (1)', 'always'],
  ['INSERT INTO by_now SELECT 1', 'always'],
  ['INSERT INTO by_now DEFAULT VALUES', 'always'],
  ['INSERT INTO by_now (a, at) VALUES (1, $1) ON CONFLICT (a) DO UPDATE SET at = DEFAULT', 'by-default'],
  ['INSERT INTO by_two (a, at, till) VALUES (1, $1, $1)', 'always'],
  ['INSERT INTO by_two (a, at, day) VALUES (1, $1, $1)', 'always'],
  ['INSERT INTO by_two (a, at, till, day) VALUES (1, $1, $1, $1)', 'by-default'],
  ['INSERT INTO by_check_too (a, at) VALUES (1, $1)', 'always'],
  ['INSERT INTO by_own (a, at) VALUES (1, $1)', 'always'],
  ['UPDATE by_now SET a = 2', 'by-default'],
  ['UPDATE by_now SET at = DEFAULT', 'by-default'],
  ['DELETE FROM by_now', 'by-default'],
  ['INSERT INTO by_now (a) VALUES (1) ON CONFLICT DO NOTHING', 'always'],
  ['UPDATE by_check SET a = 2', 'by-default'],
  ['UPDATE parents SET a = 2', 'by-default'],
  ['INSERT INTO children (a) VALUES (1)', 'always'],
  ['INSERT INTO parents (a) VALUES (1)', undefined],
  ['SELECT a FROM by_now', undefined],
  ['INSERT INTO by_date (a) VALUES (1)', 'always'],
  ['INSERT INTO by_timestamp (a) VALUES (1)', 'always'],
  ['INSERT INTO by_domain (a) VALUES (1)', 'always'],
  ['INSERT INTO by_check (a) VALUES (1)', 'always'],
  ['INSERT INTO by_trigger (a) VALUES (1)', undefined],
  ['UPDATE by_trigger SET a = 2', 'always'],
  ['INSERT INTO by_other_trigger (a) VALUES (1)', undefined],
  ['INSERT INTO seen (a) VALUES (1)', 'always'],
  ['INSERT INTO seen_again (b) VALUES (1)', 'always'],
  ['UPDATE seen SET a = 2', 'by-default'],
  ['SELECT a FROM seen', undefined],
  ['SELECT a FROM recent', 'always'],
  ['SELECT a FROM by_call', 'always'],
  ['SELECT a FROM plainly', undefined],
  ['INSERT INTO plainly (a) VALUES (1)', undefined],
  ['DELETE FROM with_rule', 'always'],
  ['SELECT a FROM with_rule', undefined],
  ['SELECT a FROM with_policy', 'always'],
  ['INSERT INTO with_notes (a) VALUES (1)', undefined],
  ['UPDATE with_notes SET a = 2', 'always'],
  ['UPDATE with_counts SET a = 2', undefined],
  ['SELECT first_of(3)', 'always'],
  ['SELECT second_of(3)', 'always'],
  ['EXPLAIN ANALYZE INSERT INTO by_now (a) VALUES (1)', 'always'],
  ['EXPLAIN INSERT INTO by_now (a) VALUES (1)', undefined],
  ['COPY by_now (a) FROM STDIN', 'always'],
  ['COPY by_now FROM STDIN', 'by-default'],
  ['COPY by_now TO STDOUT', undefined],
  ['COPY (SELECT a FROM recent) TO STDOUT', 'always'],
  ['DECLARE c CURSOR FOR SELECT a FROM recent', 'always'],
])('%s', (sql, sets) => {
  const { statements } = router.analyze(Buffer.from(sql), { searchPath: ['public'], user: 'app' });
  expect(statements[0]?.plan.setsOffTelling).toBe(sets);
});

it.each([
  ['SELECT now()', true],
  ['SELECT CURRENT_TIMESTAMP', true],
  ["SELECT 'today'::date", true],
  ['SELECT age(x) FROM t', true],
  ['SELECT pg_current_xact_id()', true],
  ['SELECT clock_timestamp(), known, nowhere FROM t', false],
] as const)('%s tells: %s', (text, tells) => {
  expect(tellsTransaction(text)).toBe(tells);
});

it.each([
  ['now', true],
  [' Today 12:00:00 UTC', true],
  ['tomorrow 10:00 Europe/Berlin', true],
  ['[yesterday,)', true],
  ['{2026-11-22,"today"}', true],
  ['2026-11-22', false],
  ['infinity', false],
  ['nowhere', false],
  ['What I did today', false],
] as const)('the value %s tells: %s', (value, tells) => {
  expect(valueTells(Buffer.from(value))).toBe(tells);
});
