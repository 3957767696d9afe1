SELECT 1
SELECT
SELECT *, o.* FROM orders o
SELECT id, total FROM orders WHERE tenant_id = 42
SELECT id, total FROM orders WHERE tenant_id = $1 AND id = $2
SELECT "Id", "Total"" (EUR)" FROM "Shop"."Orders" WHERE "TenantId" = 7
SELECT a.b.c.d FROM a.b.c AS d(e, f)
SELECT DISTINCT ON (tenant_id) tenant_id, placed_at FROM orders ORDER BY tenant_id, placed_at DESC NULLS LAST
SELECT count(*) FILTER (WHERE status = 'paid'), sum(total) FROM orders GROUP BY ROLLUP (tenant_id, status)
SELECT tenant_id, status FROM orders GROUP BY GROUPING SETS ((tenant_id), (status), ()) HAVING count(*) > 10
SELECT CUBE FROM t
SELECT x FROM t GROUP BY CUBE (a, b), c
SELECT rank() OVER (PARTITION BY tenant_id ORDER BY total DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM orders
SELECT sum(x) OVER w, avg(x) OVER (w RANGE BETWEEN '1 day' PRECEDING AND '1 day' FOLLOWING) FROM t WINDOW w AS (PARTITION BY y)
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total) FROM orders
SELECT string_agg(name, ', ' ORDER BY name) FROM tenants
SELECT array_agg(DISTINCT id) FROM orders
SELECT * FROM orders LIMIT 10 OFFSET 20
SELECT * FROM orders OFFSET 5 ROWS FETCH FIRST 3 ROWS ONLY
SELECT * FROM orders ORDER BY total DESC FETCH NEXT 3 ROWS WITH TIES
SELECT * FROM orders FOR UPDATE OF orders SKIP LOCKED
SELECT * FROM orders FOR NO KEY UPDATE NOWAIT
SELECT * FROM orders FOR SHARE
SELECT * FROM orders FOR KEY SHARE
SELECT * INTO TEMP TABLE scratch FROM orders WHERE tenant_id = 5
SELECT * INTO UNLOGGED scratch FROM orders
SELECT 1 UNION ALL SELECT 2 INTERSECT SELECT 3 EXCEPT ALL SELECT 4
(SELECT 1) UNION (SELECT 2 ORDER BY 1) ORDER BY 1 LIMIT 1
VALUES (1, 'one'), (2, 'two'), (3, NULL)
TABLE orders
TABLE ONLY orders
SELECT * FROM orders *, ONLY (items) i
WITH o AS (SELECT * FROM orders) SELECT * FROM o
WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 100) SELECT sum(n) FROM t
WITH RECURSIVE tree AS (SELECT id, parent FROM nodes UNION ALL SELECT n.id, n.parent FROM nodes n JOIN tree USING (id)) SEARCH DEPTH FIRST BY id SET ord SELECT * FROM tree
WITH RECURSIVE g AS (SELECT 1 AS id UNION SELECT id + 1 FROM g) CYCLE id SET is_cycle USING path SELECT * FROM g
WITH a AS MATERIALIZED (SELECT 1), b AS NOT MATERIALIZED (SELECT 2) SELECT * FROM a, b
WITH moved AS (DELETE FROM orders WHERE tenant_id = 3 RETURNING *) INSERT INTO archive SELECT * FROM moved
WITH i AS (INSERT INTO t VALUES (1) RETURNING id) SELECT id FROM i
WITH u AS (UPDATE t SET a = 1 RETURNING a) SELECT a FROM u
SELECT * FROM a JOIN b ON a.id = b.id LEFT JOIN c USING (id) RIGHT JOIN d ON true FULL OUTER JOIN e USING (id) CROSS JOIN f NATURAL JOIN g
SELECT * FROM a NATURAL LEFT JOIN b
SELECT * FROM a JOIN b USING (x, y) AS j
SELECT j.x FROM (a CROSS JOIN b) AS j
SELECT * FROM orders o, LATERAL (SELECT * FROM items i WHERE i.order_id = o.id LIMIT 3) x
SELECT * FROM orders o LEFT JOIN LATERAL jsonb_array_elements(o.doc) WITH ORDINALITY AS e(v, n) ON true
SELECT * FROM generate_series(1, 10, 2) AS g(n)
SELECT * FROM ROWS FROM (generate_series(1, 3), unnest(ARRAY['a', 'b'])) AS r(a, b)
SELECT * FROM json_to_recordset('[{"a":1}]') AS x(a int, b text)
SELECT * FROM XMLTABLE('/r' PASSING '<r/>' COLUMNS a int PATH '@a', b FOR ORDINALITY)
SELECT * FROM JSON_TABLE('{"a":[1,2]}', '$.a[*]' COLUMNS (v int PATH '$'))
SELECT * FROM orders TABLESAMPLE BERNOULLI (10) REPEATABLE (42)
SELECT EXISTS (SELECT 1 FROM orders WHERE tenant_id = 9)
SELECT * FROM orders WHERE id IN (SELECT order_id FROM items)
SELECT * FROM orders WHERE (tenant_id, id) IN ((1, 2), (3, 4))
SELECT * FROM orders WHERE (tenant_id, id) = (1, 2)
SELECT * FROM orders WHERE ROW(tenant_id, id) >= ROW(1, 2)
SELECT * FROM orders WHERE id = ANY (ARRAY[1, 2, 3])
SELECT * FROM orders WHERE id = ANY ('{1,2,3}'::bigint[])
SELECT * FROM orders WHERE id = ANY ($1)
SELECT * FROM orders WHERE id <> ALL (SELECT id FROM items)
SELECT * FROM orders WHERE total BETWEEN 10 AND 20 AND note NOT BETWEEN SYMMETRIC 'b' AND 'a'
SELECT * FROM orders WHERE note LIKE 'a\_%' ESCAPE '\'
SELECT * FROM orders WHERE note ILIKE '%x%' OR note NOT SIMILAR TO 'a|b'
SELECT * FROM orders WHERE note IS NULL AND total IS NOT NULL
SELECT * FROM orders WHERE paid IS TRUE OR paid IS NOT UNKNOWN
SELECT * FROM orders WHERE a IS DISTINCT FROM b
SELECT * FROM orders WHERE doc IS JSON OBJECT WITH UNIQUE KEYS
SELECT * FROM orders WHERE doc @> '{"a": 1}' AND doc ? 'key' AND doc ?| ARRAY['a','b'] AND doc ?& ARRAY['c']
SELECT doc->'a'->>'b', doc#>'{a,b}', doc#>>'{a,b}', doc #- '{a}' FROM orders
SELECT doc @? '$.a[*] ? (@ > 2)', doc @@ '$.a > 1' FROM orders
SELECT j['a']['b'], arr[1], arr[1:2], arr[:2], arr[1:], arr[:] FROM t
SELECT (row).field, (f(x)).*, (t).a.b FROM t
SELECT 'a' || 'b' || NULL
SELECT -1, +1, - -1, -(-1), 2 ^ 3, 7 % 3, 5 / 2, |/ 25, ||/ 27, @ -5, ~5, 1 << 3, 8 >> 1, 6 & 3, 6 | 3, 6 # 3
SELECT 1 <-> 2, point(1,2) <@ box '(0,0),(3,3)', a && b, a &< b, a -|- b, a ~= b FROM g
SELECT a !~ 'x', a ~* 'x', a !~* 'x', a ~~ 'x', a !~~ 'x' FROM t
SELECT 1 OPERATOR(pg_catalog.+) 2
SELECT CAST('5' AS integer), '5'::integer, int '5', integer '5', float8 '1.5', numeric(10, 2) '1.5'
SELECT '2020-01-01'::date, date '2020-01-01', timestamp '2020-01-01 00:00', timestamptz '2020-01-01 00:00+02', time '10:00', interval '1 day', interval '1' day, interval(3) '1 s'
SELECT 'x'::varchar(3), 'x'::character varying, 'x'::char(2), 'x'::"char", B'101'::bit(3), 'x'::text COLLATE "C"
SELECT NULL::int[], '{}'::text[][], ARRAY[]::int[], ARRAY[[1,2],[3,4]], int[] '{1,2}'
SELECT CASE WHEN a THEN 1 WHEN b THEN 2 ELSE 3 END, CASE x WHEN 1 THEN 'a' END FROM t
SELECT COALESCE(a, b, 0), NULLIF(a, 0), GREATEST(1, 2), LEAST(1, 2) FROM t
SELECT current_date, current_time(3), current_timestamp, localtime, localtimestamp(0), current_user, session_user, current_role, current_catalog, current_schema
SELECT extract(epoch FROM now()), extract('year' from now()), overlay('abc' placing 'x' from 2 for 1), position('a' in 'abc'), substring('abc' from 2 for 1), substring('abc' similar 'a#"b#"c' escape '#'), trim(both 'x' from 'xax'), trim(leading from ' a'), normalize('a', NFC), collation for ('a')
SELECT now() AT TIME ZONE 'UTC', now() AT LOCAL
SELECT xmlelement(name foo, xmlattributes(1 as a), 'x'), xmlforest(1 as a), xmlconcat('<a/>', '<b/>'), xmlpi(name php, 'x'), xmlroot('<a/>', version '1.0'), xmlparse(document '<a/>'), xmlserialize(content '<a/>' as text)
SELECT JSON_OBJECT('a': 1, 'b' VALUE 2 NULL ON NULL), JSON_ARRAY(1, 2), JSON_OBJECTAGG(k: v), JSON_ARRAYAGG(v), JSON_QUERY('{}', '$'), JSON_VALUE('{}', '$.a' RETURNING int DEFAULT 0 ON EMPTY), JSON_EXISTS('{}', '$.a'), JSON('{}'), JSON_SCALAR(1), JSON_SERIALIZE('{}') FROM t
SELECT f(a => 1, b := 2), g(VARIADIC ARRAY[1, 2]), h(DISTINCT x), k(ALL x ORDER BY y) FROM t
SELECT grouping(a, b), merge_action() FROM t
SELECT treat(x AS int) FROM t
SELECT a AS "select", b AS from_, c "Label", d label2 FROM t
SELECT t.*, pg_catalog.lower('A'), public.my_func(1) FROM t
SELECT (SELECT max(x) FROM u WHERE u.id = t.id) FROM t
SELECT ARRAY(SELECT id FROM t ORDER BY id)
SELECT * FROM t WHERE CURRENT OF cur
SELECT 1 WHERE false
SELECT WHERE 1 = 1
SELECT ALL 1
SELECT U&'d\0061t\+000061' AS u, U&'d!0061t' UESCAPE '!' AS v, U&"d\0061t" FROM x AS U&"d!0061t" UESCAPE '!'
SELECT N'national', n'national', E'\n\t\b\f\r\\\'\"\x41\101\u0041\U00000041', e'plain', B'0101', b'', X'1FF', x'' 
SELECT $$dollar$$, $tag$ nested $$ inside $tag$, $T_1$ $t_1$ $T_1$, $é$ü$é$
SELECT 0x1F, 0X1f, 0o17, 0O17, 0b101, 0B101, 1_000_000, 0x_ff, 0b_1, 1.5e10, 1.e5, .5e-3, 1E+5, 100_000.000_1, 1e1_0
SELECT 2147483647, 2147483648, -2147483648, 9223372036854775807, 9223372036854775808, 123456789012345678901234567890
SELECT 1.0, .1, 1., 0.0001, 00012, 0
SELECT 'it''s', '', '''', '''''', 'a"b', 'back\slash', 'semi;colon', '--not a comment', '/* neither */'
SELECT "a""b", "semi;colon", "--x", "/*y*/", "été", "naïve 𝔘"
SELECT é, naïve, Été FROM tëst WHERE ü = 'ü'
SELECT a--comment at the end
SELECT a /* c */ , /* nested /* deeper /* deepest */ */ */ b FROM t
SELECT /*+ IndexScan(t) */ a FROM t
SELECT 1/**/+/**/2
SELECT 4*-1, 4--1
SELECT a*-b, a-(-b), a<-1, a>-1, a=-1, a<>-1, a>=-1, a<=-1, a@-1, a!-1, a~-1, a^-1, a#-1, a&-1, a|-1, a%-1, a?-1 FROM t
SELECT 5 /*c*/ - -- d
SELECT :a, :"b", :'c'
SELECT a[1:$1], a[$1 : $2], b[1::int] FROM t
SELECT 1..2
SELECT x.y, x . y, x. y, x .y FROM x
SELECT ($1)::int, $1::int, CAST($1 AS int), $1 + $2, $10, $1[1]
SELECT 'a'::text::varchar::"char"
SELECT pg_advisory_lock(1), pg_advisory_xact_lock(1, 2), pg_try_advisory_lock('x'::regclass::bigint)
SELECT nextval('orders_id_seq'), currval('orders_id_seq'::regclass), lastval(), setval('s', 5, false)
SELECT set_config('search_path', 'a, b', false), set_config('work_mem', '1MB', true), current_setting('x.y', true)
SELECT pg_sleep(0), pg_backend_pid(), txid_current(), version(), pg_notify('c', 'x')
SELECT lo_create(0), lo_import('/x'), lo_open(1, 262144)
SELECT gen_random_uuid(), random(), clock_timestamp(), setseed(0.5)
INSERT INTO orders VALUES (1, 2, 'x')
INSERT INTO orders (tenant_id, id, note) VALUES (1, 2, 'x'), ($1, $2, $3), (3, DEFAULT, NULL)
INSERT INTO orders DEFAULT VALUES
INSERT INTO orders (id) OVERRIDING SYSTEM VALUE VALUES (5)
INSERT INTO orders (id) OVERRIDING USER VALUE SELECT 5
INSERT INTO orders AS o (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note WHERE o.note IS DISTINCT FROM EXCLUDED.note RETURNING o.*
INSERT INTO orders (id) VALUES (1) ON CONFLICT DO NOTHING
INSERT INTO orders (id) VALUES (1) ON CONFLICT ON CONSTRAINT orders_pkey DO NOTHING
INSERT INTO orders (id) VALUES (1) ON CONFLICT (lower(note) COLLATE "C" text_pattern_ops) WHERE paid DO UPDATE SET (a, b) = (1, 2)
INSERT INTO orders (id, arr[1], comp.field) VALUES (1, 2, 3)
INSERT INTO orders SELECT * FROM staging
INSERT INTO orders (tenant_id, id) SELECT 5, id FROM staging RETURNING id AS "newId"
INSERT INTO orders TABLE staging
INSERT INTO orders (SELECT 1)
INSERT INTO t VALUES (1) RETURNING WITH (OLD AS o, NEW AS n) o.a, n.a
WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x
UPDATE orders SET total = total + 1 WHERE tenant_id = 5 AND id = 6
UPDATE ONLY orders AS o SET note = 'x', total = DEFAULT FROM items i WHERE i.order_id = o.id RETURNING o.id
UPDATE orders SET (a, b) = (SELECT 1, 2), c = ROW(1, 2)
UPDATE orders SET arr[1] = 5, doc['a'] = '1', comp.x = 2
UPDATE orders SET a = 1 WHERE CURRENT OF c1
DELETE FROM orders
DELETE FROM ONLY orders * USING items WHERE items.order_id = orders.id
DELETE FROM orders o WHERE o.tenant_id = 7 RETURNING *
DELETE FROM orders WHERE CURRENT OF c1
MERGE INTO orders t USING staging s ON t.id = s.id WHEN MATCHED AND s.gone THEN DELETE WHEN MATCHED THEN UPDATE SET note = s.note WHEN NOT MATCHED THEN INSERT (id, note) VALUES (s.id, s.note) RETURNING merge_action(), t.*
MERGE INTO t USING (VALUES (1)) v(x) ON false WHEN NOT MATCHED BY SOURCE THEN DO NOTHING WHEN NOT MATCHED BY TARGET THEN INSERT DEFAULT VALUES
BEGIN
BEGIN WORK
BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE
BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE NOT DEFERRABLE
START TRANSACTION READ ONLY
COMMIT
COMMIT AND CHAIN
COMMIT WORK AND NO CHAIN
END
END TRANSACTION
ROLLBACK
ABORT
ROLLBACK AND CHAIN
SAVEPOINT s1
SAVEPOINT "S 1"
RELEASE s1
RELEASE SAVEPOINT s1
ROLLBACK TO s1
ROLLBACK WORK TO SAVEPOINT "S 1"
PREPARE TRANSACTION 'gid-1'
COMMIT PREPARED 'gid-1'
ROLLBACK PREPARED 'gid-1'
SET search_path = app, public
SET search_path TO "$user", public
SET SESSION work_mem = '64MB'
SET LOCAL statement_timeout = 1000
SET LOCAL lock_timeout TO '5s'
SET TIME ZONE 'Europe/Zurich'
SET TIME ZONE LOCAL
SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE
SET NAMES 'utf8'
SET app.tenant = 'x'
SET a.b.c TO DEFAULT
SET extra_float_digits = 3, 4
SET enable_seqscan TO off
SET random_page_cost = 1.1
SET some_int = -5
SET ROLE admin
SET ROLE NONE
SET SESSION AUTHORIZATION app
SET SESSION AUTHORIZATION DEFAULT
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
SET TRANSACTION SNAPSHOT '00000003-0000001B-1'
SET CONSTRAINTS ALL DEFERRED
SET CONSTRAINTS a, s.b IMMEDIATE
SET XML OPTION DOCUMENT
SET x FROM CURRENT
RESET search_path
RESET ALL
RESET ROLE
RESET SESSION AUTHORIZATION
RESET TIME ZONE
SHOW search_path
SHOW ALL
SHOW TIME ZONE
SHOW TRANSACTION ISOLATION LEVEL
SHOW SESSION AUTHORIZATION
DISCARD ALL
DISCARD PLANS
DISCARD SEQUENCES
DISCARD TEMP
PREPARE p AS SELECT 1
PREPARE p (int, text) AS SELECT * FROM t WHERE a = $1 AND b = $2
EXECUTE p
EXECUTE p (1, 'x')
DEALLOCATE p
DEALLOCATE PREPARE ALL
DECLARE c CURSOR FOR SELECT * FROM orders
DECLARE c BINARY INSENSITIVE SCROLL CURSOR WITH HOLD FOR SELECT 1
DECLARE c NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1 FOR UPDATE
FETCH c
FETCH 5 FROM c
FETCH FORWARD ALL IN c
FETCH ABSOLUTE -1 c
FETCH BACKWARD 3 FROM c
FETCH PRIOR FROM c
MOVE NEXT FROM c
MOVE 10 c
CLOSE c
CLOSE ALL
LISTEN events
LISTEN "Odd Name"
NOTIFY events
NOTIFY events, 'payload'
UNLISTEN events
UNLISTEN *
LOCK TABLE orders IN ACCESS EXCLUSIVE MODE NOWAIT
LOCK orders, items
TRUNCATE orders
TRUNCATE TABLE ONLY orders, items RESTART IDENTITY CASCADE
COPY orders FROM STDIN
COPY orders (a, b) FROM STDIN WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL '')
COPY orders TO STDOUT
COPY orders FROM STDIN CSV HEADER QUOTE '"' ESCAPE '\'
COPY BINARY orders TO STDOUT
COPY (SELECT * FROM orders WHERE tenant_id = 5) TO STDOUT WITH CSV
COPY orders FROM '/tmp/x' WHERE a > 5
COPY orders TO PROGRAM 'gzip'
EXPLAIN SELECT 1
EXPLAIN ANALYZE VERBOSE SELECT * FROM orders
EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) UPDATE orders SET a = 1
EXPLAIN (COSTS off) EXECUTE p(1)
VACUUM
VACUUM FULL VERBOSE ANALYZE orders (a, b)
VACUUM (PARALLEL 2, INDEX_CLEANUP off) orders
ANALYZE
ANALYZE VERBOSE orders (a)
CLUSTER orders USING orders_pkey
REINDEX (VERBOSE) INDEX CONCURRENTLY orders_pkey
REINDEX DATABASE shop
CHECKPOINT
LOAD 'auto_explain'
DO $$ BEGIN RAISE NOTICE 'x'; END $$
DO LANGUAGE plpgsql 'BEGIN NULL; END'
CALL my_proc(1, 'x', out_arg => NULL)
CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY (START 5) PRIMARY KEY, a int NOT NULL DEFAULT 5, b text COLLATE "C" CHECK (b <> ''), c numeric(10,2) GENERATED ALWAYS AS (a * 2) STORED, UNIQUE (a, b), FOREIGN KEY (a) REFERENCES u (a) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, EXCLUDE USING gist (c WITH &&))
CREATE TABLE IF NOT EXISTS s.t (LIKE other INCLUDING ALL, x int STORAGE EXTERNAL COMPRESSION pglz)
CREATE TEMP TABLE scratch (x int) ON COMMIT DROP
CREATE TEMPORARY TABLE scratch AS SELECT 1
CREATE UNLOGGED TABLE u (x int) WITH (fillfactor = 70) TABLESPACE fast
CREATE TABLE p (a int, b text) PARTITION BY RANGE (a, lower(b))
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (MINVALUE, 'a') TO (10, MAXVALUE)
CREATE TABLE p2 PARTITION OF p FOR VALUES IN ('a', NULL)
CREATE TABLE p3 PARTITION OF p FOR VALUES WITH (MODULUS 4, REMAINDER 1)
CREATE TABLE p4 PARTITION OF p DEFAULT
CREATE TABLE child () INHERITS (parent)
CREATE TABLE typed OF comp (PRIMARY KEY (a))
CREATE TABLE ctas (a, b) AS SELECT 1, 2 WITH NO DATA
CREATE TABLE e AS EXECUTE p(1)
CREATE VIEW v AS SELECT * FROM orders WITH LOCAL CHECK OPTION
CREATE OR REPLACE RECURSIVE VIEW v (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM v
CREATE TEMP VIEW v AS SELECT 1
CREATE MATERIALIZED VIEW mv AS SELECT 1 WITH NO DATA
REFRESH MATERIALIZED VIEW CONCURRENTLY mv
CREATE INDEX ON orders (tenant_id)
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY orders USING btree (lower(a) COLLATE "C" text_ops DESC NULLS LAST, (a + b)) INCLUDE (c) NULLS NOT DISTINCT WITH (fillfactor = 70) WHERE a > 5
CREATE SEQUENCE s AS bigint INCREMENT BY 2 MINVALUE -5 NO MAXVALUE START WITH 1 CACHE 10 CYCLE OWNED BY t.id
CREATE TEMP SEQUENCE s
ALTER SEQUENCE s RESTART WITH 100
CREATE SCHEMA s AUTHORIZATION app CREATE TABLE t (a int) CREATE VIEW v AS SELECT 1
CREATE FUNCTION f(a int, OUT b text, VARIADIC c int[] DEFAULT '{}') RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10 AS $f$ SELECT $1::text; $f$
CREATE OR REPLACE FUNCTION f() RETURNS SETOF t LANGUAGE plpgsql SET search_path = '' AS 'BEGIN; RETURN; END'
CREATE FUNCTION f(a int) RETURNS int RETURN a + 1
CREATE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT 1; SELECT a; END
CREATE PROCEDURE p(INOUT a int) LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (a); UPDATE t SET a = CASE WHEN true THEN 1 END; END
CREATE FUNCTION c() RETURNS int LANGUAGE c AS 'lib', 'symbol'
CREATE TRIGGER t BEFORE INSERT OR UPDATE OF a ON orders REFERENCING NEW TABLE AS n FOR EACH ROW WHEN (NEW.a > 5) EXECUTE FUNCTION f('x')
CREATE CONSTRAINT TRIGGER t AFTER DELETE ON orders DEFERRABLE FOR EACH ROW EXECUTE PROCEDURE f()
CREATE EVENT TRIGGER e ON ddl_command_start WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION f()
CREATE RULE r AS ON INSERT TO t DO INSTEAD (INSERT INTO u VALUES (NEW.a); DELETE FROM v)
CREATE RULE r AS ON DELETE TO t WHERE OLD.a > 5 DO ALSO NOTIFY x
CREATE POLICY p ON orders AS RESTRICTIVE FOR SELECT TO app USING (a > 5) WITH CHECK (b)
CREATE TYPE e AS ENUM ('a', 'b')
CREATE TYPE c AS (a int, b text COLLATE "C")
CREATE TYPE r AS RANGE (SUBTYPE = float8)
CREATE DOMAIN d AS text CONSTRAINT c CHECK (VALUE ~ '^x') DEFAULT 'x'
CREATE CAST (text AS int) WITH INOUT AS ASSIGNMENT
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = f, COMMUTATOR = ===)
CREATE OPERATOR CLASS oc DEFAULT FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 f(int, int)
CREATE OPERATOR FAMILY of USING btree
CREATE AGGREGATE a (int) (SFUNC = f, STYPE = int, INITCOND = '0')
CREATE COLLATION c (provider = icu, locale = 'und', deterministic = false)
CREATE CONVERSION c FOR 'UTF8' TO 'LATIN1' FROM f
CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA x VERSION '1.0' CASCADE
CREATE FOREIGN DATA WRAPPER w HANDLER h OPTIONS (a 'b')
CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'h')
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (user 'u')
CREATE FOREIGN TABLE ft (a int OPTIONS (x 'y')) SERVER s
IMPORT FOREIGN SCHEMA remote LIMIT TO (a, b) FROM SERVER s INTO local
CREATE LANGUAGE l HANDLER h
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION f(internal))
CREATE ACCESS METHOD am TYPE TABLE HANDLER h
CREATE STATISTICS st (ndistinct, mcv) ON a, (b + 1) FROM orders
CREATE TEXT SEARCH CONFIGURATION c (COPY = english)
CREATE TEXT SEARCH DICTIONARY d (TEMPLATE = simple)
CREATE PUBLICATION p FOR TABLE orders (a, b) WHERE (a > 5), TABLES IN SCHEMA s WITH (publish = 'insert')
CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p WITH (copy_data = false)
CREATE DATABASE d WITH OWNER o TEMPLATE template0 ENCODING 'UTF8'
CREATE TABLESPACE ts LOCATION '/x'
CREATE ROLE r WITH LOGIN PASSWORD 'x' VALID UNTIL '2030-01-01' IN ROLE a
CREATE USER u SUPERUSER CONNECTION LIMIT 5
CREATE GROUP g
ALTER TABLE orders ADD COLUMN x int, DROP COLUMN IF EXISTS y CASCADE, ALTER z TYPE text USING z::text, ALTER w SET DEFAULT 5, ALTER v DROP NOT NULL
ALTER TABLE orders RENAME COLUMN a TO b
ALTER TABLE IF EXISTS ONLY orders RENAME TO old_orders
ALTER TABLE orders SET SCHEMA s
ALTER TABLE orders OWNER TO CURRENT_USER
ALTER TABLE orders ADD CONSTRAINT c FOREIGN KEY (a) REFERENCES t NOT VALID, VALIDATE CONSTRAINT d
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (1) TO (2)
ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY
ALTER TABLE orders ENABLE ROW LEVEL SECURITY, REPLICA IDENTITY FULL, CLUSTER ON i, SET (fillfactor = 50), RESET (fillfactor), DISABLE TRIGGER ALL
ALTER INDEX i SET TABLESPACE ts
ALTER VIEW v ALTER a SET DEFAULT 5
ALTER MATERIALIZED VIEW mv RENAME TO mv2
ALTER FUNCTION f(int) STABLE
ALTER PROCEDURE p SET search_path TO x
ALTER TYPE e ADD VALUE IF NOT EXISTS 'c' BEFORE 'a'
ALTER TYPE c ADD ATTRIBUTE d int CASCADE
ALTER DOMAIN d DROP CONSTRAINT c
ALTER ROLE r SET work_mem = '1GB'
ALTER USER u WITH PASSWORD NULL
ALTER DATABASE d SET x TO y
ALTER SYSTEM SET max_connections = 100
ALTER SYSTEM RESET ALL
ALTER DEFAULT PRIVILEGES FOR ROLE r IN SCHEMA s GRANT SELECT ON TABLES TO PUBLIC
ALTER EXTENSION hstore UPDATE TO '2.0'
ALTER PUBLICATION p ADD TABLE t
ALTER SUBSCRIPTION s DISABLE
ALTER POLICY p ON t USING (true)
ALTER TRIGGER t ON orders RENAME TO u
ALTER EVENT TRIGGER e DISABLE
ALTER SCHEMA s RENAME TO t
ALTER SERVER s OPTIONS (SET host 'x')
ALTER LARGE OBJECT 5 OWNER TO x
ALTER COLLATION c REFRESH VERSION
ALTER OPERATOR === (int, int) SET (RESTRICT = NONE)
ALTER STATISTICS st SET STATISTICS 100
ALTER TEXT SEARCH CONFIGURATION c ADD MAPPING FOR word WITH d
DROP TABLE IF EXISTS a, s.b CASCADE
DROP VIEW v RESTRICT
DROP INDEX CONCURRENTLY i
DROP SEQUENCE s
DROP FUNCTION f(int, text), g
DROP PROCEDURE p
DROP AGGREGATE a(*)
DROP TYPE t
DROP DOMAIN d
DROP SCHEMA s CASCADE
DROP TRIGGER t ON orders
DROP RULE r ON t
DROP POLICY p ON t
DROP EXTENSION x
DROP ROLE a, b
DROP OWNED BY x CASCADE
REASSIGN OWNED BY a TO b
DROP DATABASE d WITH (FORCE)
DROP TABLESPACE ts
DROP CAST (a AS b)
DROP OPERATOR === (int, int)
DROP SUBSCRIPTION s
DROP PUBLICATION p
DROP SERVER s
DROP USER MAPPING FOR u SERVER s
DROP ACCESS METHOD am
DROP TRANSFORM FOR int LANGUAGE sql
DROP STATISTICS st
DROP MATERIALIZED VIEW mv
DROP COLLATION c
DROP CONVERSION c
DROP TEXT SEARCH PARSER p
GRANT SELECT (a, b), INSERT ON orders TO app WITH GRANT OPTION
GRANT ALL PRIVILEGES ON ALL TABLES IN SCHEMA public TO PUBLIC
GRANT role_a TO role_b WITH ADMIN OPTION GRANTED BY CURRENT_USER
GRANT EXECUTE ON FUNCTION f(int) TO x
GRANT SET ON PARAMETER x.y TO z
REVOKE GRANT OPTION FOR SELECT ON t FROM x CASCADE
REVOKE role_a FROM role_b
COMMENT ON TABLE orders IS 'the orders'
COMMENT ON COLUMN orders.a IS NULL
COMMENT ON FUNCTION f(int) IS E'a\nb'
SECURITY LABEL FOR p ON TABLE t IS 'x'
SELECT 1; SELECT 2
SELECT 1;;; SELECT 2;
;
;;
BEGIN; UPDATE t SET a = 1; COMMIT
SELECT 'a;b'; SELECT "c;d"; SELECT $$e;f$$; -- g;h
SELECT /* ; */ 1; SELECT 2
select a from t where b = 'x' and c in ('y', 'z') and d between 1 and 2 and e is null
select a.*, b.* from a left join b on b.tenant_id = a.tenant_id and b.id = a.b_id where a.tenant_id = $1 order by a.id limit $2
select "orders"."id" as "id", "orders"."total" as "total" from "orders" where ("orders"."tenant_id" = $1 and "orders"."id" in ($2, $3, $4)) limit $5
SELECT "public"."orders"."id" FROM "public"."orders" WHERE ("public"."orders"."tenant_id" = $1 AND 1=1) ORDER BY "public"."orders"."id" ASC LIMIT $2 OFFSET $3
SELECT "t0"."id", COALESCE("t1"."_aggr_count", 0) AS "_count" FROM "orders" AS "t0" LEFT JOIN (SELECT "order_id", COUNT(*) AS "_aggr_count" FROM "items" WHERE 1=1 GROUP BY "order_id") AS "t1" ON ("t0"."id" = "t1"."order_id")
SELECT COUNT(*) FROM (SELECT "orders"."id" FROM "orders" WHERE "orders"."tenant_id" = $1 LIMIT $2) AS "sub"
UPDATE "orders" SET "total" = ("orders"."total" + $1), "updated_at" = NOW() WHERE "orders"."tenant_id" = $2
INSERT INTO "orders" ("tenant_id", "note") VALUES ($1, $2) RETURNING "orders"."id"
select o1_0.id,o1_0.total from orders o1_0 where o1_0.tenant_id=? and o1_0.id=?
select pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) from pg_catalog.pg_attrdef d where d.adrelid = '16385'::pg_catalog.oid
SELECT n.nspname as "Schema", c.relname as "Name", CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as "Type" FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','') AND n.nspname !~ '^pg_toast' AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2
SELECT a FROM t WHERE b = 'x' /* trailing
SELECT 'unterminated
SELECT "unterminated
SELECT $$unterminated
SELECT $a$wrong tag$b$
SELECT E'unterminated\'
SELECT 1a, 2
SELECT 0x
SELECT 1e+
SELECT 1__0
SELECT ""
SELECT U&""
SELECT E'\u12'
SELECT E'\uD800'
SELECT E'\uD83D\uDE00'
SELECT $2147483648
SELECT * FROM t WHERE a = 'b' \g
SELECT {fn now()}
SELECT a ->> 'b' ->> 'c', -a, +-a, @-@ a, a !== b, a <=> b, a <#> b, a *= b FROM t
SELECT 1 AS a, 2 AS "A", 3 AS Å
