import { createHash } from 'node:crypto';
import type { ScramSecret } from './scram.js';

/**
 * What logs in to a server: the password, SCRAM keys recovered from a client's own exchange, or a client's md5 hash, which is as good as the
 * password where the server asks for md5.
 */
export type LoginSecret = ScramSecret | { readonly md5: string };

/** As in pg_authid.rolpassword: `md5` + md5(password || user). */
export function md5Hash(password: string, user: string): string {
  return `md5${createHash('md5').update(password).update(user).digest('hex')}`;
}

/** The answer to AuthenticationMD5Password of whoever has the hash. */
export function md5Answer(hash: string, salt: Buffer): string {
  return `md5${createHash('md5').update(hash.slice(3)).update(salt).digest('hex')}`;
}
