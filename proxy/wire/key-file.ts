import { statSync } from 'node:fs';
import { ForeshardError } from '../../topology/errors.js';

/**
 * A private key must be nobody else's to read: as check_ssl_key_file_permissions in PostgreSQL's be-secure-common.c, and libpq.
 * @param hint what to look at
 * @throws ForeshardError F0000
 */
export function checkKeyFile(path: string, hint: string): void {
  const refusal = (message: string, detail?: string): ForeshardError =>
    new ForeshardError('F0000', message, { hint, ...(detail === undefined ? {} : { detail }) });
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) throw refusal(`could not access private key file "${path}": no such file`);
  if (!stat.isFile()) throw refusal(`private key file "${path}" is not a regular file`);
  const self = process.geteuid?.();
  if (self === undefined) return; // Windows: neither owner nor mode says anything
  if (stat.uid !== self && stat.uid !== 0)
    throw refusal(`private key file "${path}" must be owned by the user of this process or root`);
  if ((stat.mode & (stat.uid === 0 ? 0o037 : 0o077)) !== 0)
    throw refusal(
      `private key file "${path}" has group or world access`,
      'File must have permissions u=rw (0600) or less if owned by the user of this process, or permissions u=rw,g=r (0640) or less if owned by root.',
    );
}
