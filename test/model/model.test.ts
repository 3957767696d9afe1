import { describe, expect, test } from 'vitest';
import { CONFIGURATIONS, MUTATIONS, SECOND_LOCKS } from './searches.js';
import { run, whyNot } from './spin.js';

// The small searches of docs/model; `npm run model` does all of them.

const reason = whyNot();
if (reason !== null) process.stderr.write(`skipped: ${reason}\n`);

describe.skipIf(reason !== null)('the model of the flip', () => {
  test.each(CONFIGURATIONS.filter(({ small }) => small))('$name: nothing is violated', async (search) => {
    expect(await run(search)).toMatchObject({ verdict: 'holds', what: '' });
  });

  test.each(MUTATIONS)('$name: something is violated', async (search) => {
    expect(await run(search)).toMatchObject({ verdict: 'violated' });
  });

  test.each(SECOND_LOCKS)('$name: another precaution makes up for it', async (search) => {
    expect(await run(search)).toMatchObject({ verdict: 'holds', what: '' });
  });
});
