/** A libpq URL without its password: fit for messages and logs. */
export function redactUrl(url: string): string {
  return url
    .replace(/^([a-z]+:\/\/[^:@/?#]*):[^/?#]*@/i, '$1@')
    .replace(/([?&](?:password|sslpassword)=)[^&]*/gi, '$1***');
}

/** The SQLSTATE or the system's error code of a failed connection or query, or an empty string. */
export function errorCode(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return errorCode(error.errors[0]);
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : '';
}

const HINTS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Start the server, or correct host and port.',
  ETIMEDOUT: 'Check host, port and firewalls.',
  EHOSTUNREACH: 'Check host, port and firewalls.',
  ENOTFOUND: 'Check the host name.',
  EAI_AGAIN: 'Check the host name and the name server.',
  ECONNRESET: 'The server ended the connection: check its log.',
  '28P01': 'Correct the user or the password.',
  '28000': "Let the user in: check the role and the server's pg_hba.conf.",
  '3D000': 'Create the database, or correct its name.',
  '42501': 'Grant the user what it lacks.',
  '53300': "Raise the server's max_connections, or close connections.",
  '57P03': 'The server is starting up or shutting down: try again.',
};

/** Why a connection failed and what to do, in words. */
export function explainConnectError(error: unknown): { reason: string; hint: string } {
  const code = errorCode(error);
  const first = error instanceof AggregateError && error.errors.length > 0 ? error.errors[0] : error;
  const reason = first instanceof Error && first.message !== '' ? first.message : code || String(first);
  return { reason, hint: HINTS[code] ?? 'Check that the server runs and that the URL is right.' };
}
