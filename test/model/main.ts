/**
 * Searches all states of the model of the flip (docs/model) in every configuration, and then without each of its precautions,
 * which must be found out. Exit code 1 when a property fails, a mutation passes, or a search does not come to its end.
 * Run: npm run model [-- PART OF A NAME…]
 */
import { CONFIGURATIONS, MUTATIONS, SECOND_LOCKS, type Search } from './searches.js';
import { type Finding, run, whyNot } from './spin.js';

const HEADING = '| search | stored | states | depth | verdict | s |\n|---|---|---:|---:|---|---:|';

function row(search: Search, { verdict, what, states, depth, seconds }: Finding): string {
  const stored = search.store === 'bits' ? 'bits: not every state' : 'every state';
  const said = what === '' ? verdict : `${verdict}: ${what}`;
  const mark = verdict === search.expected ? '' : ` **expected: ${search.expected}**`;
  return `| ${search.name} | ${stored} | ${states} | ${depth} | ${said}${mark} | ${seconds.toFixed(1)} |`;
}

/** Null, with the exit code of a program that was told to stop, when that is the reason. */
function unlessStopped(signal: AbortSignal): (error: unknown) => null {
  return (error) => {
    if (!signal.aborted) throw error;
    process.exitCode = 130;
    return null;
  };
}

async function main(): Promise<void> {
  const reason = whyNot();
  if (reason !== null) {
    console.log(`skipped: ${reason}`);
    return;
  }
  const parts = process.argv.slice(2);
  const wanted = ({ name }: Search) => parts.length === 0 || parts.some((part) => name.includes(part));
  const stop = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => stop.abort());
  console.log(HEADING);
  let wrong = 0;
  for (const search of [...CONFIGURATIONS, ...SECOND_LOCKS, ...MUTATIONS].filter(wanted)) {
    const finding = await run(search, stop.signal).catch(unlessStopped(stop.signal));
    if (finding === null) return;
    console.log(row(search, finding));
    if (finding.verdict !== search.expected) wrong += 1;
  }
  if (wrong === 0) return;
  console.log(`\n${wrong} not as expected; docs/model/README.md says how to read a counterexample`);
  process.exitCode = 1;
}

await main();
