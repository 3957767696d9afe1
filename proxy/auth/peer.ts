/** What is known of a client's connection when it is asked who it is. Made by the listener, judged by `authenticateClient`. */
export interface ConnectionFacts {
  readonly kind: 'tcp' | 'unix';
  /** IP address of the client, behind a PROXY header the one that it names; null over a Unix socket. */
  readonly address: string | null;
  /** null: in the clear. */
  readonly tls: TlsFacts | null;
}

export interface TlsFacts {
  /**
   * tls-server-end-point of RFC 5929, as PostgreSQL computes it: our certificate (DER) hashed with the hash of its signature's
   * algorithm, SHA-256 in the place of MD5 and SHA-1. null: that algorithm has none (Ed25519), and channel binding is not to be offered.
   */
  readonly serverEndPoint: Buffer | null;
  /** Common name of the client's certificate; null when it has none, or there is no verified certificate. */
  readonly clientCommonName: string | null;
  /** Whole subject as RFC 2253 writes it, most specific part first (`CN=app,OU=web,O=example`); null: no verified certificate. */
  readonly clientDistinguishedName: string | null;
}

/** The facts of a socket that nothing was negotiated on. */
export function plainFacts(socket: { readonly remoteAddress?: string | undefined }): ConnectionFacts {
  const { remoteAddress } = socket;
  if (remoteAddress === undefined) return { kind: 'unix', address: null, tls: null };
  return { kind: 'tcp', address: remoteAddress.replace(/^::ffff:(?=\d+\.)/, ''), tls: null };
}
