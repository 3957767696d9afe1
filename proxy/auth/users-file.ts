import type { FileProblem } from './hba.js';

/**
 * Users in the format of PgBouncer's userlist.txt: `"name" "secret"` a line, quotes doubled inside, `;` starts a comment line, what is behind the
 * second quote is ignored. The secret is a SCRAM verifier, an md5 hash or the password itself.
 */
export function parseUsersFile(text: string): {
  readonly users: ReadonlyMap<string, string>;
  readonly problems: readonly FileProblem[];
} {
  const users = new Map<string, string>();
  const problems: FileProblem[] = [];
  text.split(/\r?\n/).forEach((content, i) => {
    const line = i + 1;
    if (/^\s*(?:[;#].*)?$/.test(content)) return;
    const match = /^\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"/.exec(content);
    if (match === null) problems.push({ line, problem: 'expected "name" "secret", both in double quotes' });
    else {
      const [name, secret] = match.slice(1).map((part) => part.replaceAll('""', '"')) as [string, string];
      if (name === '') problems.push({ line, problem: 'the name is empty' });
      else if (users.has(name)) problems.push({ line, problem: `user "${name}" is there already` });
      else users.set(name, secret);
    }
  });
  return { users, problems };
}
