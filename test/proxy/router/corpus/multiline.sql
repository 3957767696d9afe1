SELECT 'first '
  'second'
---
SELECT 'first ' -- a note
  -- and another
  'second'
---
SELECT 'first' /* block */
  'second'
---
SELECT E'a\'b'
'c\n'
 , X'1F'
'2E', B'01'
'10', U&'\0041'
'b', N'x'
'y'
---
SELECT 'a'	
'b'
---
SELECT
	a, -- the first; with a semicolon
	b  /* the second;
	      over two lines */
FROM
	t
WHERE
	c = 'x
y'
---
INSERT INTO t (a, b)
VALUES
  (1, 'one'),
  (2, 'two')
ON CONFLICT (a)
DO UPDATE SET b = EXCLUDED.b
---
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  -- it's fine
  EXECUTE 'SELECT $1' USING NEW.a;
  RETURN NEW;
END;
$body$
---
CREATE FUNCTION g(a int) RETURNS int
BEGIN ATOMIC
  SELECT 1;
  SELECT a + 1;
END;
SELECT 2
---
DO $do$
DECLARE x int := 1;
BEGIN
  PERFORM $q$nested; $$ quotes$q$;
END
$do$
---

  -- nothing but a comment
---
/* nothing */ ; -- at all
---
SELECT 1 -- no newline at the end
---
BEGIN;
  UPDATE t SET a = 'x;y' WHERE b = 1;
  -- between
  INSERT INTO t VALUES (1); /* after */
COMMIT;
---
SELECT a
  FROM t
 WHERE b = $1 -- first
   AND c = $2 /* second */
   AND d = "e
f"
