import { loadModule } from 'libpg-query';
import { beforeAll, it } from 'vitest';
import { makeRouter, SESSION, spreadTopology, summary, texts } from './setting.js';

beforeAll(() => loadModule());
it('tries', () => {
  const topology = spreadTopology();
  const r = makeRouter(() => topology);
  for (const q of [
    'select * from orders where tenant_id = 5',
    'select * from orders where tenant_id = 150 and id=3',
    'select * from orders',
    'select * from orders order by 1',
    "insert into orders (tenant_id,note) values (5,'x'),(6,'y')",
    'select 1',
    'begin',
  ]) {
    const a = r.analyze(Buffer.from(q), SESSION);
    console.log(
      q,
      a.statements.map((_, i) => summary(r.route(a, i, texts(), topology))),
      JSON.stringify(a.statements[0]?.plan),
    );
  }
});
