import type { ColumnEffects } from './column-effects.js';
import type { AffectedTemplate, SeparationEffects } from './separation-effects.js';
import { TEMPLATE_DAYS } from './template-days.js';

/** Templates shown at most; --json has all. */
const SHOWN = 20;

/** For people: what will be refused, or cost more. */
export function effectLines({ templates, gathered, unread, objects }: SeparationEffects): string[] {
  const lines: string[] = [];
  if (templates.length + objects.length > 0)
    lines.push('What runs now, and will be refused as soon as a range of the two keyspaces is on another shard:');
  for (const object of objects) lines.push(`  ${object}`);
  if (templates.length > 0) lines.push(`  calls in ${TEMPLATE_DAYS} days`);
  for (const { template, calls, why } of templates.slice(0, SHOWN))
    lines.push(`  ${calls.toLocaleString('en').padStart(12)}  ${template}`, `${' '.repeat(16)}${why}`);
  if (templates.length > SHOWN) lines.push(`  and ${templates.length - SHOWN} more (--json has all)`);
  lines.push(...templateLines('What will then need rows of both in one place, the home shard:', gathered));
  if (unread > 0) lines.push(`${unread} recorded template(s) could not be read.`);
  return lines;
}

/** For people: what becomes of statements once the columns are on another shard than the rest of their rows. */
export function columnLines(effects: ColumnEffects): string[] {
  return [
    ...templateLines('What will run where the columns are, and need nothing of the table:', effects.hot),
    ...templateLines('What will then be committed on two shards, in two phases:', effects.written),
    ...effectLines(effects),
  ];
}

function templateLines(head: string, templates: readonly Omit<AffectedTemplate, 'why'>[]): string[] {
  if (templates.length === 0) return [];
  const shown = templates.slice(0, SHOWN);
  const more = templates.length - shown.length;
  return [
    head,
    `  calls in ${TEMPLATE_DAYS} days`,
    ...shown.map(({ template, calls }) => `  ${calls.toLocaleString('en').padStart(12)}  ${template}`),
    ...(more === 0 ? [] : [`  and ${more} more (--json has all)`]),
  ];
}
