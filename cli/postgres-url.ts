/** Why `text` is not a URL of a PostgreSQL database, or null. Never repeats the text: it may hold a password. */
export function urlProblem(text: string): string | null {
  if (!URL.canParse(text)) return 'is not a URL; expected postgresql://user@host:5432/database';
  const url = new URL(text);
  if (url.protocol !== 'postgresql:' && url.protocol !== 'postgres:')
    return `has the scheme "${url.protocol.slice(0, -1)}"; expected postgresql://user@host:5432/database`;
  if (url.pathname.length < 2) return 'names no database; expected postgresql://user@host:5432/database';
  return null;
}

/** `url` with its password set, when one is given. */
export function withPassword(url: string, password: string | undefined): string {
  if (password === undefined) return url;
  const parsed = new URL(url);
  parsed.password = encodeURIComponent(password);
  return parsed.href;
}
