import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { B, type Conversation, CP, converse, DP, DS, E, P, Q, S, whole } from '../support/oracle.js';
import { Documents } from './documents.js';

const bound = (sql: string, ...values: (string | null)[]) => [P('', sql), B('', '', ...values), DP(''), E(''), S];

const CONVERSATIONS: readonly Conversation[] = [
  {
    name: 'hot columns alone',
    steps: [
      ['Z', Q('SELECT views FROM documents WHERE tenant_id = 1 AND id = 1')],
      [
        'Z',
        Q('SELECT id, documents.views AS v, last_seen FROM documents WHERE tenant_id = 1 AND views > 15 ORDER BY id'),
      ],
      ['Z', Q('SELECT d.views FROM documents AS d WHERE d.tenant_id = 1 AND d.id = 2')],
      ['Z', Q('SELECT views FROM public.documents WHERE tenant_id = 1 AND id = 9')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 1')],
      [
        'Z',
        Q(
          'UPDATE documents SET views = documents.views + 1, last_seen = NULL WHERE tenant_id = 1 AND id = 1 RETURNING id, views, last_seen',
        ),
      ],
      ['Z', Q('UPDATE documents d SET views = 0 WHERE d.tenant_id = 2')],
      ['Z', Q(`UPDATE documents SET views = 'x' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q('UPDATE documents SET views = views / 0 WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q('SELECT sum(views), max(last_seen) FROM documents WHERE tenant_id = 1')],
      ['Z', ...bound('SELECT views FROM documents WHERE tenant_id = $1 AND id = $2', '1', '3')],
      [
        'Z',
        ...bound(
          'UPDATE documents SET views = views + $3 WHERE tenant_id = $1 AND id = $2 RETURNING views',
          '1',
          '3',
          '5',
        ),
      ],
      ['Z', ...bound(`SELECT views, 'x'::int FROM documents WHERE tenant_id = $1`, '1')],
      ['Z', ...bound('SELECT views FROM documents WHERE tenant_id = $1 AND views > $2', '1', 'no number')],
    ],
  },
  {
    name: 'hot columns alone, prepared',
    steps: [
      ['Z', P('u', 'UPDATE documents SET views = views + $3 WHERE tenant_id = $1 AND id = $2'), DS('u'), S],
      ['Z', B('', 'u', '1', '1', '1'), E(''), S],
      ['Z', B('', 'u', '1', '2', '1'), DP(''), E(''), S],
      [
        'Z',
        P('s', 'SELECT views FROM documents WHERE tenant_id = $1 AND id = $2'),
        DS('s'),
        B('', 's', '1', '1'),
        DP(''),
        E(''),
        S,
      ],
      ['Z', B('a', 's', '1', '1'), E('a'), B('', 's', '1', '2'), E(''), CP('a'), S],
      ['Z', Q('BEGIN')],
      ['Z', B('', 'u', '2', '1', '1'), E(''), S],
      ['Z', B('', 's', '2', '1'), E(''), S],
      ['Z', Q('COMMIT')],
      ['Z', P('', 'SELECT views FROM documents WHERE tenant_id = $1 AND id = $2'), S],
      ['Z', B('', '', '1', '2'), E(''), S],
      ['Z', B('', '', '2', '1'), E(''), S],
    ],
  },
  {
    name: 'both halves, one statement at a time',
    steps: [
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'new')`)],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title, views, last_seen) VALUES (1, 12, 'new', 7, '2026-05-05 05:05+00'), (1, 13, 'new', 8, NULL) RETURNING *`,
        ),
      ],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'again')`)],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 14, 'less', -1)`)],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 15, NULL)`)],
      ['Z', Q(`UPDATE documents SET title = 'other' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q(`UPDATE documents SET title = 'other', views = 99 WHERE tenant_id = 1 AND id = 2`)],
      ['Z', Q(`UPDATE documents SET title = 'seen', last_seen = '2026-06-06 00:00+00' WHERE tenant_id = 1 AND id = 4`)],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title) VALUES (1, 5, 'seen') ON CONFLICT (tenant_id, id) DO UPDATE SET last_seen = '2026-06-06 00:00+00'`,
        ),
      ],
      [
        'Z',
        Q(`UPDATE documents SET title = title || views, views = views + 1 WHERE tenant_id = 1 AND id = 3 RETURNING *`),
      ],
      ['Z', Q(`UPDATE documents SET body = 'much' WHERE tenant_id = 1 AND views >= 40`)],
      ['Z', Q(`UPDATE documents SET body = 'nothing' WHERE tenant_id = 1 AND id = 99`)],
      ['Z', Q(`UPDATE documents SET title = 'x', views = -5 WHERE tenant_id = 1 AND id = 3`)],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 12')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND views > 30 RETURNING *')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 RETURNING id, last_seen')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('SELECT title FROM documents WHERE tenant_id = 1 AND id = 1 FOR UPDATE')],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 1, 'there', 1), (1, 31, 'not there', 1) ON CONFLICT (tenant_id, id) DO UPDATE SET views = documents.views + EXCLUDED.views, title = EXCLUDED.title RETURNING *`,
        ),
      ],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 1, 'there', 1) ON CONFLICT DO NOTHING`)],
      ['Z', Q(`UPDATE documents SET title = 'x' WHERE tenant_id = 1 AND nothing = 1`)],
    ],
  },
  {
    name: 'both halves, with parameters',
    steps: [
      [
        'Z',
        ...bound(
          'INSERT INTO documents (tenant_id, id, title, views) VALUES ($1, $2, $3, $4) RETURNING *',
          '1',
          '11',
          'new',
          '3',
        ),
      ],
      ['Z', ...bound('INSERT INTO documents (tenant_id, id, title) VALUES ($1, $2, $3)', '1', '11', 'again')],
      [
        'Z',
        ...bound(
          'UPDATE documents SET title = $3, views = views + $4 WHERE tenant_id = $1 AND id = $2',
          '1',
          '1',
          'p',
          '5',
        ),
      ],
      [
        'Z',
        ...bound(
          'UPDATE documents SET title = $3 WHERE tenant_id = $1 AND id = $2 AND views > $4 RETURNING views, title',
          '1',
          '2',
          'p',
          '5',
        ),
      ],
      ['Z', P('d', 'DELETE FROM documents WHERE tenant_id = $1 AND id = $2 RETURNING *'), DS('d'), S],
      ['Z', B('', 'd', '1', '3'), E(''), S],
      ['Z', B('', 'd', '1', '3'), DP(''), E(''), S],
      ['Z', B('', 'd', '1', 'x'), E(''), S],
      [
        'Z',
        P('f', 'SELECT * FROM documents WHERE tenant_id = $1 AND id = $2 FOR UPDATE'),
        DS('f'),
        B('', 'f', '1', '4'),
        E(''),
        S,
      ],
      [
        'Z',
        P('', 'UPDATE documents SET title = $1 WHERE tenant_id = $2 AND id = $3'),
        B('', '', 'x', '1', '5'),
        E(''),
        S,
      ],
      ['Z', ...bound(`UPDATE documents SET title = $1 WHERE tenant_id = $2 AND views = 'x'`, 'x', '1')],
    ],
  },
  {
    name: 'in transaction blocks',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 11, 'new', 5)`)],
      ['Z', Q('SELECT views FROM documents WHERE tenant_id = 1 AND id = 11')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 11 RETURNING views')],
      ['Z', Q(`UPDATE documents SET title = 'v' || views WHERE tenant_id = 1 AND id = 11 RETURNING *`)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 2')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'again')`)],
      ['Z', Q('SELECT 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', ...bound('DELETE FROM documents WHERE tenant_id = $1 AND id = $2 RETURNING *', '1', '3')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('COMMIT')],
      [
        'Z',
        ...[P('', 'BEGIN'), B('', ''), E('')],
        ...bound('UPDATE documents SET title = $3, views = views + 1 WHERE tenant_id = $1 AND id = $2', '2', '5', 'x'),
      ],
      ['Z', ...bound('COMMIT')],
      ['Z', ...bound('BEGIN')],
      ['Z', ...bound('UPDATE documents SET title = $3, views = 1 WHERE tenant_id = $1 AND id = $2', '1', '4', 'gone')],
      ['Z', ...bound('ROLLBACK')],
      ['Z', Q('BEGIN')],
      ['Z', Q(`UPDATE documents SET title = 'kept' WHERE tenant_id = 1 AND id = 5`)],
      ['Z', Q('SAVEPOINT b')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1')],
      ['Z', Q('ROLLBACK TO b')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 1')],
      ['Z', Q('RELEASE b')],
      ['Z', Q('END')],
      ['Z', Q('BEGIN')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 2')],
      ['Z', Q('syntax error')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 3')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'both halves are read in transaction blocks',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`UPDATE documents SET title = 'mine' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 AND id = 1')],
      ['Z', ...bound('SELECT * FROM documents WHERE tenant_id = $1 AND id = $2', '1', '1')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 2')],
      ['Z', P('s', 'SELECT id, title, views, last_seen FROM documents WHERE tenant_id = $1 ORDER BY id'), DS('s'), S],
      ['Z', B('', 's', '1'), DP(''), E(''), S],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 3')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'new')`)],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('SELECT sum(views), count(*), max(title) FROM documents WHERE tenant_id = 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q(`SET LOCAL DateStyle = 'German'`)],
      ['Z', B('', 's', '2'), E(''), S],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('SELECT title, views FROM documents WHERE tenant_id = 1 AND views > 25 ORDER BY id')],
      ['Z', Q('SELECT 1 / (views - 10), title FROM documents WHERE tenant_id = 1 ORDER BY id')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', ...bound('SELECT title, nothing, views FROM documents WHERE tenant_id = $1', '1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('COMMIT')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET LOCAL DateStyle = 'German'`)],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('ROLLBACK')],
    ],
  },
];

let documents: Documents;
beforeAll(async () => {
  documents = await Documents.start();
}, 120_000);
afterAll(() => documents.stop());

/** Columns have other numbers in the hot table. */
const comparable = (reply: string) => (reply.startsWith('T ') ? reply.replace(/"columnNumber":\d+/g, '') : reply);

async function compare(conversation: Conversation): Promise<void> {
  await documents.reset();
  const { clusters, proxy } = documents.sharded;
  const alone = await converse(clusters[0].port, conversation, whole, true, 'plain');
  const proxied = await converse(proxy.port, conversation, whole, true);
  expect(proxied.replies.map(comparable)).toEqual(alone.replies.map(comparable));
  await documents.quiet();
  await documents.agree();
}

describe('together', () => {
  for (const conversation of CONVERSATIONS) it(conversation.name, () => compare(conversation));
});

describe('apart', () => {
  beforeAll(() => documents.part());

  for (const conversation of CONVERSATIONS) it(conversation.name, () => compare(conversation));
});
