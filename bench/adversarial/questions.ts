import { createHash } from 'node:crypto';
import type pg from 'pg';
import type { Draw } from '../load/workloads.js';

/**
 * What is asked: look-ups by key for the most part, and others whose cost depends on the key, so that one text is fast or slow, and
 * its answer small or huge. `hot` is a table that somebody else locks now and then.
 */
export type Kind = 'key' | 'work' | 'document' | 'hot' | 'sleep';

/** One question and what tells its answer from any other. */
export interface Question {
  readonly kind: Kind;
  readonly id: number;
  /** It takes long, or answers much, whoever asks it. */
  readonly slow: boolean;
  /** Its own cost depends on who holds a lock. */
  readonly locked: boolean;
}

const SQL: Readonly<Record<Kind, string>> = {
  key: 'SELECT id, v FROM look_up WHERE id = $1',
  work: 'SELECT id, (SELECT count(*) FROM generate_series(1, n)) FROM work WHERE id = $1',
  document: 'SELECT id, body FROM document WHERE id = $1',
  hot: 'SELECT id, v FROM hot WHERE id = $1',
  sleep: 'SELECT $1::int, pg_sleep(0.2)',
};

export const textOf = ({ kind }: Question): string => SQL[kind];

const KEYS = 10_000;
const ROWS = 1_000;
/** Keys from here on are those of the slow ones. */
const SLOW_FROM = 1_001;
const SLOW_KEYS = 4;
const SMALL_WORK = 10;
/** Bytes of a large document. */
const HUGE_BYTES = 10_000_000;
const SLOW_MS = 200;

export const hugeDocument = (draw: Draw): Question => question('document', SLOW_FROM - 1 + draw(SLOW_KEYS));
export const slowWork = (draw: Draw): Question => question('work', SLOW_FROM - 1 + draw(SLOW_KEYS));
export const lookUp = (draw: Draw): Question => question('key', draw(KEYS));

/**
 * Of a thousand statements ten have 10 MB for an answer, and ten take 200 ms: two by their work, three because they say so, and of the
 * twenty of the table that is locked at times the five that come then. (More work than that keeps two processors busy by itself: then
 * everybody waits for these.)
 */
export function drawn(draw: Draw): Question {
  const n = draw(1_000);
  if (n <= 2) return slowWork(draw);
  if (n <= 5) return question('sleep', draw(ROWS));
  if (n <= 15) return hugeDocument(draw);
  if (n <= 50) return question('work', draw(ROWS));
  if (n <= 80) return question('document', draw(ROWS));
  if (n <= 100) return question('hot', draw(ROWS));
  return lookUp(draw);
}

function question(kind: Kind, id: number): Question {
  return { kind, id, slow: kind === 'sleep' || (kind !== 'key' && id >= SLOW_FROM), locked: kind === 'hot' };
}

/** The second column of the answer, or so many bytes of it and its length; the first is the number that was asked for. */
function answerTo({ kind, id, slow }: Question, work: number): { readonly starts: string; readonly bytes: number } {
  const whole = (text: string) => ({ starts: text, bytes: text.length });
  switch (kind) {
    case 'work':
      return whole(String(slow ? work : SMALL_WORK));
    case 'document':
      return slow ? { starts: `large ${id} `, bytes: HUGE_BYTES } : whole(`document ${id}`);
    case 'sleep':
      return whole('');
    default:
      return whole(createHash('md5').update(`${kind} ${id}`).digest('hex'));
  }
}

/** Whether a DataRow of so many bytes that starts like this is the answer. @param work what makes 200 ms, as `makeTables` has found */
export function isAnswer(asked: Question, row: Buffer, bytes: number, work: number): boolean {
  const id = String(asked.id);
  const { starts, bytes: length } = answerTo(asked, work);
  const head = Buffer.alloc(7);
  head[0] = 0x44;
  head.writeInt32BE(14 + id.length + length, 1);
  head.writeInt16BE(2, 5);
  const lengths = [id.length, length].map((n) => {
    const word = Buffer.alloc(4);
    word.writeInt32BE(n);
    return word;
  });
  const expected = Buffer.concat([
    head,
    lengths[0] as Buffer,
    Buffer.from(id),
    lengths[1] as Buffer,
    Buffer.from(starts),
  ]);
  return bytes === 15 + id.length + length && row.subarray(0, expected.length).equals(expected);
}

/** So much of a row tells whose answer it is. */
export const ROW_HEAD_BYTES = 128;

/** Makes the tables. @returns rows that the server counts in 200 ms */
export async function makeTables(client: pg.Client): Promise<number> {
  const work = await calibrated(client);
  await client.query(`
    CREATE TABLE look_up (id int PRIMARY KEY, v text);
    INSERT INTO look_up SELECT i, md5('key ' || i) FROM generate_series(1, ${KEYS}) i;
    CREATE TABLE hot (id int PRIMARY KEY, v text);
    INSERT INTO hot SELECT i, md5('hot ' || i) FROM generate_series(1, ${ROWS}) i;
    CREATE TABLE counter (id int PRIMARY KEY, n int);
    INSERT INTO counter VALUES (1, 0);
    CREATE TABLE work (id int PRIMARY KEY, n int);
    INSERT INTO work SELECT i, CASE WHEN i < ${SLOW_FROM} THEN ${SMALL_WORK} ELSE ${work} END
      FROM generate_series(1, ${ROWS + SLOW_KEYS}) i;
    CREATE TABLE document (id int PRIMARY KEY, body text);
    ALTER TABLE document ALTER body SET STORAGE EXTERNAL;
    INSERT INTO document SELECT i, 'document ' || i FROM generate_series(1, ${ROWS}) i;
    INSERT INTO document SELECT i, rpad('large ' || i || ' ', ${HUGE_BYTES}, 'x')
      FROM generate_series(${SLOW_FROM}, ${ROWS + SLOW_KEYS}) i`);
  await client.query('VACUUM ANALYZE look_up, hot, work, document');
  return work;
}

/** How many rows of generate_series the server counts in 200 ms, when it has nothing else to do. */
async function calibrated(client: pg.Client): Promise<number> {
  const rows = 500_000;
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 4; i++) {
    const start = performance.now();
    await client.query(`SELECT count(*) FROM generate_series(1, ${rows})`);
    best = Math.min(best, performance.now() - start);
  }
  return Math.round((rows * SLOW_MS) / best);
}
