import pg from 'pg';
import { afterAll, beforeAll } from 'vitest';
import { Sharded } from './sharded.js';

export type Values = Record<string, string | number | boolean | null>;

/** A proxy on two shards that has administrators, one who may only look, and one who may nothing; and the consoles on it. */
export interface Administered {
  readonly s: Sharded;
  /** Logs in to the admin database. */
  admin(user?: string, password?: string): Promise<pg.Client>;
}

/** Starts one for the tests of this file, and ends it after them. */
export function administered(): Administered {
  let s: Sharded | null = null;
  const consoles = new Set<pg.Client>();
  const started = () => {
    if (s === null) throw new Error('not started yet');
    return s;
  };
  beforeAll(async () => {
    s = await Sharded.start({
      splitAt: 100,
      poolSize: 3,
      admin: { users: ['root', 'app'], statsUsers: ['watcher'] },
      auth: {
        method: 'scram-sha-256',
        users: new Map([
          ['root', { password: 'toor' }],
          ['watcher', { password: 'eyes' }],
          ['nobody', { password: 'nothing' }],
        ]),
      },
    });
  });
  afterAll(async () => {
    for (const client of consoles) await client.end().catch(() => undefined);
    await s?.stop();
  });
  return {
    get s() {
      return started();
    },
    async admin(user = 'root', password = 'toor') {
      const client = new pg.Client({
        host: '127.0.0.1',
        port: started().proxy.port,
        user,
        password,
        database: 'foreshard_admin',
        application_name: 'the console',
      });
      client.on('error', () => consoles.delete(client));
      await client.connect();
      consoles.add(client);
      return client;
    },
  };
}

export async function show(client: pg.Client, view: string): Promise<Values[]> {
  return (await client.query<Values>(`SHOW ${view}`)).rows;
}

/** What it fails with. */
export async function failure(run: Promise<unknown>): Promise<pg.DatabaseError> {
  try {
    await run;
  } catch (error) {
    return error as pg.DatabaseError;
  }
  throw new Error('expected an error');
}
