import { createHash, getHashes, type X509Certificate } from 'node:crypto';

/**
 * tls-server-end-point of RFC 5929, as PostgreSQL computes it: the certificate (DER) hashed with the hash of its signature's
 * algorithm, SHA-256 in the place of MD5 and SHA-1. null: the algorithm has no hash of its own (Ed25519), and the binding
 * is not defined.
 */
export function serverEndPoint(certificate: X509Certificate): Buffer | null {
  const hash = signatureHash(certificate.raw);
  return hash === null ? null : createHash(hash).update(certificate.raw).digest();
}

/** By object identifier, in hex without tag and length. RSASSA-PSS has its hash in its parameters. */
const HASH_OF_SIGNATURE: Readonly<Record<string, string>> = {
  '2a864886f70d010104': 'sha256', // md5WithRSAEncryption
  '2a864886f70d010105': 'sha256', // sha1WithRSAEncryption
  '2a864886f70d01010b': 'sha256',
  '2a864886f70d01010c': 'sha384',
  '2a864886f70d01010d': 'sha512',
  '2a864886f70d01010e': 'sha224',
  '2a8648ce3d0401': 'sha256', // ecdsa-with-SHA1
  '2a8648ce3d040301': 'sha224',
  '2a8648ce3d040302': 'sha256',
  '2a8648ce3d040303': 'sha384',
  '2a8648ce3d040304': 'sha512',
};
const RSASSA_PSS = '2a864886f70d01010a';
const HASH_OF_OID: Readonly<Record<string, string>> = {
  '2b0e03021a': 'sha256', // SHA-1
  '608648016503040201': 'sha256',
  '608648016503040202': 'sha384',
  '608648016503040203': 'sha512',
  '608648016503040204': 'sha224',
};

function signatureHash(der: Buffer): string | null {
  // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters }, signature }
  const [, algorithm] = elements(element(der, 0).content);
  if (algorithm === undefined) return null;
  const [oid, parameters] = elements(algorithm);
  const name = oid?.toString('hex') ?? '';
  const hash = name === RSASSA_PSS ? pssHash(parameters) : HASH_OF_SIGNATURE[name];
  return hash !== undefined && getHashes().includes(hash) ? hash : null;
}

/** RSASSA-PSS-params: its first field, [0], is the hash's AlgorithmIdentifier; SHA-1 when left out. */
function pssHash(parameters: Buffer | undefined): string | undefined {
  if (parameters === undefined || parameters[0] !== 0xa0) return 'sha256';
  const [oid] = elements(element(element(parameters, 0).content, 0).content);
  return HASH_OF_OID[oid?.toString('hex') ?? ''];
}

/** One DER element: its content, and where the next begins. */
function element(der: Buffer, at: number): { readonly content: Buffer; readonly end: number } {
  let length = der.readUInt8(at + 1);
  let start = at + 2;
  if (length > 0x80) {
    const size = length & 0x7f;
    length = der.readUIntBE(start, size);
    start += size;
  }
  return { content: der.subarray(start, start + length), end: start + length };
}

/** Contents of the elements one after the other. */
function elements(der: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; at < der.length; ) {
    const { content, end } = element(der, at);
    found.push(content);
    at = end;
  }
  return found;
}

/** The subject as RFC 2253 writes it, in ASCII: what OpenSSL prints with XN_FLAG_RFC2253, as PostgreSQL does. */
export function distinguishedName(certificate: X509Certificate): string {
  // Node gives one line for each relative name, escaped as RFC 2253 asks but for other characters than ASCII, the least specific first.
  return certificate.subject
    .split('\n')
    .map((line) => line.split(' + ').reverse().join('+'))
    .reverse()
    .join(',')
    .replace(/[^\0-\x7f]+/g, (text) =>
      Buffer.from(text).reduce((out, byte) => `${out}\\${byte.toString(16).toUpperCase()}`, ''),
    );
}

/** The first common name of the subject; null when it has none. */
export function commonName(certificate: X509Certificate): string | null {
  const { CN } = certificate.toLegacyObject().subject as { CN?: string | string[] };
  return (Array.isArray(CN) ? CN[0] : CN) ?? null;
}
