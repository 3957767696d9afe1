import { readFileSync } from 'node:fs';

/** Something a driver or an ORM does that several shards refuse today. */
export interface Refusal {
  /** What the application calls. */
  readonly what: string;
  /** What the error says. */
  readonly message: string;
}

const PAGE = new URL('../../docs/driver-refusals.md', import.meta.url);

/**
 * What the documentation says of a driver: the rows of the table under its heading.
 * @throws {Error} when the page does not have it
 */
export function refusalsOf(driver: string): readonly Refusal[] {
  const section = readFileSync(PAGE, 'utf8')
    .split(/^## /m)
    .find((s) => s.startsWith(`${driver}\n`));
  if (section === undefined) throw new Error(`docs/driver-refusals.md does not speak of ${driver}`);
  return [...section.matchAll(/^\| `(.+)` \| (.+) \|$/gm)].map(([, what, message]) => ({
    what: what as string,
    message: message as string,
  }));
}
