import { createHash, timingSafeEqual } from 'node:crypto';
import { md5Hash } from '../wire/login-secret.js';
import { matchesVerifier, parseVerifier, type ScramVerifier } from '../wire/scram.js';

/** What is on record to check a client's password against, told apart as PostgreSQL's get_password_type does. */
export type UserSecret =
  | { readonly kind: 'scram'; readonly verifier: ScramVerifier }
  /** `md5` and 32 hexadecimal digits. */
  | { readonly kind: 'md5'; readonly hash: string }
  | { readonly kind: 'plain'; readonly password: string };

const MD5_HASH = /^md5[0-9a-f]{32}$/;

export function parseSecret(text: string): UserSecret {
  if (MD5_HASH.test(text)) return { kind: 'md5', hash: text };
  const verifier = parseVerifier(text);
  return verifier === null ? { kind: 'plain', password: text } : { kind: 'scram', verifier };
}

/** Takes the same time wherever they differ. */
export function equalText(given: string, expected: string): boolean {
  // Hashed, so that lengths do not matter.
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}

/** Checks a password that came in the clear. */
export async function matchesPassword(user: string, password: string, secret: UserSecret): Promise<boolean> {
  switch (secret.kind) {
    case 'scram':
      return matchesVerifier(password, secret.verifier);
    case 'md5':
      return equalText(md5Hash(password, user), secret.hash);
    case 'plain':
      return equalText(password, secret.password);
  }
}
