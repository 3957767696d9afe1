import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

/** Whether real certificates can be made here. */
export const hasOpenssl: boolean = (() => {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' });
    return true;
  } catch {
    process.stderr.write('openssl is not installed: tests that need certificates are skipped\n');
    return false;
  }
})();

const made: string[] = [];

// Here, because a hook that is added while a test runs is never called.
afterAll(() => {
  for (const dir of made.splice(0)) rmSync(dir, { recursive: true, force: true });
});

/** A key and its certificate, as PEM files. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/** A certificate authority with its certificates, in a directory that goes when the tests of the file are over. */
export class CertificateAuthority {
  readonly dir: string;
  readonly root: Certificate;

  /** @param newKey of its own key, which is what signs: arguments of `openssl req` */
  constructor(name = 'Foreshard test root', newKey: readonly string[] = EC_KEY) {
    this.dir = mkdtempSync(join(tmpdir(), 'foreshard-tls-'));
    made.push(this.dir);
    this.root = this.#paths('root');
    this.#openssl(
      'req',
      '-x509',
      ...newKey,
      '-nodes',
      '-keyout',
      this.root.key,
      '-out',
      this.root.cert,
      '-subj',
      `/CN=${name}`,
      '-days',
      '2',
    );
  }

  /** Signs a certificate. `subject` as `/O=x/CN=y`; `digest`: of its signature, null where the key allows no choice. */
  issue(
    file: string,
    subject: string,
    options: {
      readonly names?: string;
      readonly digest?: string | null;
      /** More arguments of `openssl x509`. */
      readonly signing?: readonly string[];
    } = {},
  ): Certificate {
    const { cert, key } = this.#paths(file);
    const request = join(this.dir, `${file}.csr`);
    const extensions = join(this.dir, `${file}.ext`);
    writeFileSync(
      extensions,
      options.names === undefined ? 'basicConstraints=CA:FALSE\n' : `subjectAltName=${options.names}\n`,
    );
    this.#openssl(
      'req',
      '-new',
      '-utf8',
      '-multivalue-rdn',
      ...EC_KEY,
      '-nodes',
      '-keyout',
      key,
      '-out',
      request,
      '-subj',
      subject,
    );
    this.#openssl(
      ...['x509', '-req', '-in', request, '-CA', this.root.cert, '-CAkey', this.root.key, '-CAcreateserial'],
      ...['-out', cert, '-days', '2', '-extfile', extensions, ...(options.signing ?? [])],
      ...(options.digest === null ? [] : [`-${options.digest ?? 'sha256'}`]),
    );
    chmodSync(key, 0o600);
    return { cert, key };
  }

  /** The same key, encrypted. @returns its file */
  encrypt(key: string, passphrase: string): string {
    const encrypted = `${key}.encrypted`;
    this.#openssl('pkey', '-in', key, '-aes256', '-passout', `pass:${passphrase}`, '-out', encrypted);
    chmodSync(encrypted, 0o600);
    return encrypted;
  }

  /** The subject of a certificate as OpenSSL, and PostgreSQL with it, writes it in the style of RFC 2253. */
  subject(cert: string): string {
    const args = ['x509', '-in', cert, '-noout', '-subject', '-nameopt', 'RFC2253'];
    return execFileSync('openssl', args, { encoding: 'utf8' })
      .trim()
      .replace(/^subject=/, '');
  }

  #paths(file: string): Certificate {
    return { cert: join(this.dir, `${file}.crt`), key: join(this.dir, `${file}.key`) };
  }

  #openssl(...args: string[]): void {
    execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  }
}

const EC_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];
