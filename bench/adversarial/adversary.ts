import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import type { Draw } from '../load/workloads.js';
import { type Asked, AskingClient } from './asking-client.js';
import { seeded } from './paced-load.js';
import { hugeDocument, lookUp, slowWork } from './questions.js';

/** What happens besides the statements that are timed. */
export interface Adversity {
  readonly to: Omit<Asked, 'protocol'>;
  /** URLs of the database, through the proxy and past it. */
  readonly through: string;
  readonly direct: string;
  readonly seed: number;
}

/** What has come of it. */
export interface Havoc {
  locks: number;
  updates: number;
  slowAnswers: number;
  cancels: number;
  canceled: number;
}

/** A lock is held for so long, and not for so long. */
const LOCK_MS = 200;
const UNLOCKED_MS = 600;
const UPDATING = 2;
const SLOW_READERS = 2;
const SLOW_BYTES_PER_SECOND = 5e6;
const CANCELING = 4;
/** Once in so many statements a canceled one is a long one. */
const LONG_ONCE_IN = 10;
/** Between the statements of one that has them canceled, at most: each request costs the server a process. */
const PAUSE_MS = 100;
const CANCEL_WITHIN_MS = 30;
const CANCEL_LOOK_UP_WITHIN_MS = 2;

/** Makes trouble until `work` has ended. @throws when anything fails in a way that was not asked for */
export async function amidst<T>(adversity: Adversity, work: () => Promise<T>): Promise<{ result: T; havoc: Havoc }> {
  const havoc: Havoc = { locks: 0, updates: 0, slowAnswers: 0, cancels: 0, canceled: 0 };
  const end = new AbortController();
  const { signal } = end;
  const draw = seeded(adversity.seed + 1);
  const each = (n: number, one: (i: number) => Promise<void>) => Array.from({ length: n }, (_, i) => one(i));
  const trouble = Promise.all([
    holdLocks(adversity.direct, havoc, signal),
    ...each(UPDATING, () => update(adversity.through, havoc, signal)),
    ...each(SLOW_READERS, () => readSlowly(adversity, havoc, draw, signal)),
    ...each(CANCELING, (i) => cancelAtRandom(adversity, i, havoc, draw, signal)),
  ]);
  try {
    const failed = trouble.then(() => new Promise<never>(() => undefined));
    return { result: await Promise.race([work(), failed]), havoc };
  } finally {
    end.abort();
    await trouble;
  }
}

async function withClient(url: string, work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}

/** Nobody reads the one table, and nobody writes the one row, while this one holds its locks. */
function holdLocks(url: string, havoc: Havoc, signal: AbortSignal): Promise<void> {
  return withClient(url, async (client) => {
    while (!signal.aborted) {
      await client.query('BEGIN; UPDATE counter SET n = n + 1 WHERE id = 1; LOCK TABLE hot IN ACCESS EXCLUSIVE MODE');
      await pause(LOCK_MS);
      await client.query('COMMIT');
      havoc.locks += 1;
      await pause(UNLOCKED_MS);
    }
  });
}

function update(url: string, havoc: Havoc, signal: AbortSignal): Promise<void> {
  return withClient(url, async (client) => {
    while (!signal.aborted) {
      await client.query('UPDATE counter SET n = n + 1 WHERE id = 1');
      havoc.updates += 1;
      await pause(20);
    }
  });
}

async function withAsking(to: Asked, work: (client: AskingClient) => Promise<void>): Promise<void> {
  const client = await AskingClient.connect(to);
  try {
    await work(client);
  } finally {
    client.end();
  }
}

/** Reads a large document slowly, and a small answer for once in between. */
function readSlowly({ to }: Adversity, havoc: Havoc, draw: Draw, signal: AbortSignal): Promise<void> {
  return withAsking({ ...to, protocol: 'simple' }, async (client) => {
    signal.addEventListener('abort', () => client.hurry(), { once: true });
    while (!signal.aborted) {
      for (const question of [lookUp(draw), hugeDocument(draw)])
        expect(await client.ask(question, SLOW_BYTES_PER_SECOND), []);
      havoc.slowAnswers += 1;
    }
  });
}

/** Has some of its statements canceled while they stand in line, are under way, or have just been answered. */
function cancelAtRandom({ to }: Adversity, i: number, havoc: Havoc, draw: Draw, signal: AbortSignal): Promise<void> {
  return withAsking({ ...to, protocol: i % 2 === 0 ? 'simple' : 'prepared' }, async (client) => {
    while (!signal.aborted) {
      const long = draw(LONG_ONCE_IN) === 1;
      const answer = client.ask(long ? slowWork(draw) : lookUp(draw));
      if (long || draw(3) === 1) {
        await pause(draw(long ? CANCEL_WITHIN_MS : CANCEL_LOOK_UP_WITHIN_MS) - 1);
        await client.cancel();
        havoc.cancels += 1;
      }
      const sqlstate = await answer;
      expect(sqlstate, ['57014']);
      if (sqlstate !== null) havoc.canceled += 1;
      await pause(draw(PAUSE_MS));
    }
  });
}

function expect(sqlstate: string | null, errors: readonly string[]): void {
  if (sqlstate !== null && !errors.includes(sqlstate)) throw new Error(`a client was told ${sqlstate}`);
}
