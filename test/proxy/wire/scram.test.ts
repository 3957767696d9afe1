import { createHash, randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { saslPrep } from '../../../proxy/wire/saslprep.js';
import { deriveScramKeys, makeVerifier, parseVerifier, ScramClient, ScramServer } from '../../../proxy/wire/scram.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';

const SECRET = randomBytes(32);
const b64 = (text: string): Buffer => Buffer.from(text, 'base64');

describe('the example of RFC 7677', () => {
  const salt = b64('W22ZaJ0SNY7soEsUEjb6gQ==');
  const clientFinal =
    'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=';
  const serverFinal = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

  test('server', async () => {
    const verifier = parseVerifier(await makeVerifier('pencil', salt, 4096));
    const server = new ScramServer('user', verifier, SECRET, {
      serverNonce: '%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0',
    });
    expect(server.first(Buffer.from('n,,n=user,r=rOprNGfwEbeRWgbNEkqO')).toString()).toBe(
      'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096',
    );
    const outcome = server.final(Buffer.from(clientFinal));
    expect(outcome?.message.toString()).toBe(serverFinal);
    expect(outcome?.keys).toEqual(await deriveScramKeys('pencil', salt, 4096));
  });
});

/** One whole exchange in memory; true when both sides are satisfied. */
async function exchange(client: ScramClient, server: ScramServer): Promise<boolean> {
  const outcome = server.final(await client.final(server.first(client.first())));
  if (outcome === null) return false;
  client.verify(outcome.message);
  return true;
}

describe('our client and our server', () => {
  test('agree on any password, and on the keys that the server recovers', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'grapheme' }), async (password) => {
        const verifier = parseVerifier(await makeVerifier(password, randomBytes(16), 2));
        const client = new ScramClient({ password });
        const server = new ScramServer('u', verifier, SECRET);
        const outcome = server.final(await client.final(server.first(client.first())));
        expect(outcome).not.toBeNull();
        if (outcome === null) return;
        expect(await exchange(new ScramClient({ keys: outcome.keys }), new ScramServer('u', verifier, SECRET))).toBe(
          true,
        );
        expect(
          await exchange(new ScramClient({ password: `${password}x` }), new ScramServer('u', verifier, SECRET)),
        ).toBe(false);
      }),
      { numRuns: 50 },
    );
  });

  test('a client that could bind and was not offered it says so: true to a server that cannot, and an attack to one that can', async () => {
    const verifier = parseVerifier(await makeVerifier('pw', randomBytes(16), 2));
    const client = () => new ScramClient({ password: 'pw' }, undefined, 'not offered');
    expect(client().first().toString()).toMatch(/^y,,n=,r=/);
    expect(await exchange(client(), new ScramServer('u', verifier, SECRET))).toBe(true);
    await expect(exchange(client(), new ScramServer('u', verifier, SECRET, { tls: true }))).rejects.toThrow(
      'SCRAM channel binding negotiation error',
    );
  });

  test('an unknown user is asked like any other, the same each time, and fails', async () => {
    const saltOf = (user: string): string | undefined =>
      /s=([^,]+)/.exec(new ScramServer(user, null, SECRET).first(Buffer.from('n,,n=,r=abc')).toString())?.[1];
    expect(saltOf('ghost')).toBe(saltOf('ghost'));
    expect(saltOf('ghost')).not.toBe(saltOf('ghost2'));
    expect(saltOf('ghost')).toHaveLength(24);
    expect(await exchange(new ScramClient({ password: 'x' }), new ScramServer('ghost', null, SECRET))).toBe(false);
  });

  test('a server that does not know the verifier is found out', async () => {
    const real = parseVerifier(await makeVerifier('pw', randomBytes(16), 2));
    if (real === null) throw new Error('no verifier');
    const thief = { ...real, serverKey: randomBytes(32) };
    await expect(exchange(new ScramClient({ password: 'pw' }), new ScramServer('u', thief, SECRET))).rejects.toThrow(
      'the server did not prove that it knows the password',
    );
  });
});

describe('malformed messages', () => {
  const server = (): ScramServer => new ScramServer('u', null, SECRET, { serverNonce: 'SERVER' });
  test.each([
    ['', '08P01', 'The message is empty.'],
    ['n,,n=,r=a\0b', '08P01', 'Message length does not match input length.'],
    ['p=tls-server-end-point,,n=,r=a', '08P01', 'SCRAM-SHA-256 without channel binding'],
    ['x,,n=,r=a', '08P01', 'Unexpected channel-binding flag'],
    ['n,a=joe,n=,r=a', '0A000', 'authorization identity'],
    ['n,,m=1,n=,r=a', '0A000', 'unsupported SCRAM extension'],
    ['n,,r=a', '08P01', 'Expected attribute "n"'],
    ['n,,n=', '08P01', 'Expected attribute "r"'],
    ['n,,n=,r=', '08P01', 'non-printable'],
    ['n,,n=,r=ä', '08P01', 'non-printable'],
  ])('first: %j', (text, sqlstate, words) => {
    let thrown: unknown;
    try {
      server().first(Buffer.from(text));
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toMatchObject({ sqlstate });
    expect(`${(thrown as Error).message} ${(thrown as { detail?: string }).detail}`).toContain(words);
  });

  test.each(['y', 'n'])('flag %s is accepted, and must be the same in the end', (flag) => {
    const proof = randomBytes(32).toString('base64');
    const cbind = Buffer.from(`${flag},,`).toString('base64');
    const other = Buffer.from(`${flag === 'y' ? 'n' : 'y'},,`).toString('base64');
    const good = server();
    good.first(Buffer.from(`${flag},,n=,r=abc`));
    expect(good.final(Buffer.from(`c=${cbind},r=abcSERVER,p=${proof}`))).toBeNull();
    const bad = server();
    bad.first(Buffer.from(`${flag},,n=,r=abc`));
    expect(() => bad.final(Buffer.from(`c=${other},r=abcSERVER,p=${proof}`))).toThrow(
      'unexpected SCRAM channel-binding',
    );
  });

  test.each([
    ['c=biws,r=abcOTHER,p=', 'invalid SCRAM response'],
    ['c=biws,r=abcSERVER,p=AAAA', 'malformed SCRAM message'],
    ['c=biws,r=abcSERVER', 'malformed SCRAM message'],
    ['c=biws', 'malformed SCRAM message'],
  ])('final: %j', (text, message) => {
    const s = server();
    s.first(Buffer.from('n,,n=,r=abc'));
    const proof = text.endsWith('p=') ? randomBytes(32).toString('base64') : '';
    expect(() => s.final(Buffer.from(text + proof))).toThrow(message);
  });

  test('a server-first-message that does not continue our nonce, or asks for endless work', async () => {
    const client = new ScramClient({ password: 'x' }, 'mine');
    await expect(client.final(Buffer.from('r=yours,s=AAAA,i=4096'))).rejects.toThrow('nonce mismatch');
    await expect(client.final(Buffer.from('r=mine,s=AAAA,i=4096'))).rejects.toThrow('nonce mismatch');
    await expect(client.final(Buffer.from('r=mineX,s=AAAA,i=4000000000'))).rejects.toThrow('iterations');
  });

  test.each(['', 'md5c4ca4238a0b923820dcc509a6f75849b', 'SCRAM-SHA-256$4096:AAAA$AAAA:AAAA', 'secret'])(
    'verifier %j is none',
    (text) => expect(parseVerifier(text)).toBeNull(),
  );
});

describe('passwords', () => {
  test.each([
    ['I\u00ADX', 'IX'],
    ['user', 'user'],
    ['\u00AA', 'a'],
    ['\u2168', 'IX'],
    ['a\u00A0b', 'a b'],
  ])('%j is prepared as in RFC 4013', (password, prepared) => {
    expect(saslPrep(password)).toBe(prepared);
  });

  test.each([['\u0007'], ['\u0627\u0031'], ['\u00AD'], ['a\u0378\u2168']])(
    '%j, which SASLprep prohibits, is used as it is',
    (password) => {
      expect(saslPrep(password)).toBe(password);
    },
  );
});

describe('against a real server', () => {
  let cluster: EmbeddedCluster;
  beforeAll(async () => {
    cluster = await startTestCluster();
  });

  // Mapping, normalisation, prohibition, bidirectional rule, unassigned in Unicode 3.2.
  const PASSWORDS = [
    'plain',
    'sp ace',
    'I\u00ADX\u2168',
    'a\u00A0b',
    'größe',
    '\u0627\u0031',
    '\u0627\u0661\u0628',
    'x\u0007ü\uFB01',
    'a\u0378\u2168',
    '\u{1F600}\u2168',
    '日本',
  ];

  test('our server takes the passwords that PostgreSQL has stored, and our verifiers are those of PostgreSQL', () =>
    withClient(cluster.url(), async (client) => {
      for (const [i, password] of PASSWORDS.entries()) {
        const user = `scram_${i}`;
        await client.query(`CREATE ROLE ${user} LOGIN PASSWORD ${client.escapeLiteral(password)}`);
        const { rows } = await client.query<{ rolpassword: string }>(
          'SELECT rolpassword FROM pg_authid WHERE rolname = $1',
          [user],
        );
        const stored = rows[0]?.rolpassword ?? '';
        const verifier = parseVerifier(stored);
        if (verifier === null) throw new Error(`not a verifier: ${stored}`);
        expect(await makeVerifier(password, verifier.salt, verifier.iterations), JSON.stringify(password)).toBe(stored);
        const server = new ScramServer(user, verifier, SECRET);
        const proven = new ScramClient({ password });
        const outcome = server.final(await proven.final(server.first(proven.first())));
        expect(outcome).not.toBeNull();
        expect(outcome && createHash('sha256').update(outcome.keys.clientKey).digest()).toEqual(verifier.storedKey);
      }
    }));
});
