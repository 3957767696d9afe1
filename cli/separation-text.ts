import { DAYS, type SeparationEffects } from './separation-effects.js';

/** Templates shown at most; --json has all. */
const SHOWN = 20;

/** For people: what will be refused, or cost more. */
export function effectLines({ templates, gathered, unread, objects }: SeparationEffects): string[] {
  const lines: string[] = [];
  if (templates.length + objects.length > 0)
    lines.push('What runs now, and will be refused as soon as a range of the two keyspaces is on another shard:');
  for (const object of objects) lines.push(`  ${object}`);
  if (templates.length > 0) lines.push(`  calls in ${DAYS} days`);
  for (const { template, calls, why } of templates.slice(0, SHOWN))
    lines.push(`  ${calls.toLocaleString('en').padStart(12)}  ${template}`, `${' '.repeat(16)}${why}`);
  if (templates.length > SHOWN) lines.push(`  and ${templates.length - SHOWN} more (--json has all)`);
  if (gathered.length > 0)
    lines.push('What will then need rows of both in one place, the home shard:', `  calls in ${DAYS} days`);
  for (const { template, calls } of gathered.slice(0, SHOWN))
    lines.push(`  ${calls.toLocaleString('en').padStart(12)}  ${template}`);
  if (gathered.length > SHOWN) lines.push(`  and ${gathered.length - SHOWN} more (--json has all)`);
  if (unread > 0) lines.push(`${unread} recorded template(s) could not be read.`);
  return lines;
}
