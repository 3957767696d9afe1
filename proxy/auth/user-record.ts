import type { UserSecret } from './user-secret.js';

/** What is known of a user who may log in. */
export interface UserRecord {
  readonly source: 'configuration' | 'file' | 'catalog' | 'query';
  /** null: it has no password. */
  readonly secret: UserSecret | null;
  /** Past VALID UNTIL: no password is right. */
  readonly expired: boolean;
  /** False: a right password is not enough (NOLOGIN). */
  readonly canLogin: boolean;
}

/** Where users are looked up. Null: there is no such user. */
export interface UserSource {
  find(user: string): Promise<UserRecord | null>;
}

/** PostgreSQL's log says why there is no secret to compare with; null when there is one. */
export function whyNoSecret(user: string, record: UserRecord | null): string | null {
  if (record === null) return `Role "${user}" does not exist.`;
  if (record.secret === null) return `User "${user}" has no password assigned.`;
  if (record.expired) return `User "${user}" has an expired password.`;
  return null;
}
