import { loadModule } from 'libpg-query';
import { beforeAll, expect, it } from 'vitest';
import { sampleText } from '../../../proxy/router/sample-text.js';
import { makeRouter, SESSION, spreadTopology } from './setting.js';

beforeAll(() => loadModule());

it.each([
  `SELECT * FROM orders WHERE tenant_id = 5 AND note = 'it''s' AND total = 1.5 AND id IN (1, 2, 3)`,
  `SELECT * FROM orders WHERE tenant_id = $1 AND id IN ($2, $3) AND note = E'\\n' AND total = -1`,
  `INSERT INTO orders VALUES (1, 2, NULL, 'x', true), (2, 3, 'y', 1, false)`,
  `SELECT 5::int, '5'::text, B'10', x'ff', ":int", ARRAY[1, 2] FROM orders AS ":str ""x" LIMIT 5; SELECT 2`,
])('a text made from a template has that template, and parses: %s', (sql) => {
  const router = makeRouter(spreadTopology);
  const { template } = router.analyze(Buffer.from(sql), SESSION);
  const again = router.analyze(Buffer.from(sampleText(template)), SESSION);
  expect(again.syntaxError).toBe(false);
  expect(again.template).toBe(template);
});
