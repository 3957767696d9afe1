import { spawn } from 'node:child_process';
import { beforeAll } from 'vitest';
import type { CrashPoint } from '../../migrator/crash-points.js';
import type { MigratorOptions } from '../../migrator/options.js';
import type { MigrationState } from '../../topology/migration.js';
import type { Moves } from '../migrator/moves.js';
import { built } from './built.js';

const HOUR = 3_600_000;

/** Where a migrator dies; `point#2`: when it comes there for the second time. */
export type Place = CrashPoint | `${CrashPoint}#${number}`;

/** Migrators with one life each, in the tests of this file. */
export function startLives(moves: Moves): Lives {
  let file = '';
  beforeAll(async () => {
    file = await built('migrator-child');
  });
  return new Lives(moves, () => file);
}

/** Migrators with one life each. */
export class Lives {
  readonly #moves: Moves;
  readonly #file: () => string;

  constructor(moves: Moves, file: () => string) {
    this.#moves = moves;
    this.#file = file;
  }

  /** Program of a migrator; its arguments are the catalog's URL and, if any, options as JSON. */
  get file(): string {
    return this.#file();
  }

  /** Runs a migrator that kills itself at the place. @returns the signal that ended it */
  untilCrash(place: Place, wayBack = false, options: Partial<MigratorOptions> = {}): Promise<string | null> {
    return this.until(place, wayBack, options).ended;
  }

  until(
    place: Place,
    wayBack: boolean,
    options: Partial<MigratorOptions> = {},
  ): { readonly ended: Promise<string | null>; stop(): void } {
    const all = { wayBackMs: wayBack ? HOUR : 0, ...options };
    let stop = (): void => undefined;
    const ended = new Promise<string | null>((resolve, reject) => {
      const running = spawn(process.execPath, [this.file, this.#moves.s.catalogUrl, JSON.stringify(all)], {
        env: { ...process.env, FORESHARD_CRASH_POINT: place },
        stdio: ['ignore', 'ignore', 'inherit'],
      });
      stop = () => running.kill('SIGTERM');
      const tooLong = setTimeout(stop, 90_000);
      running.once('error', reject);
      running.once('exit', (_code, signal) => {
        clearTimeout(tooLong);
        this.#letLeaseEnd().then(() => resolve(signal), reject);
      });
    });
    return { ended, stop: () => stop() };
  }

  /** Runs a migrator that nobody kills. @returns the state in which the migration rests */
  async toTheEnd(id: bigint): Promise<MigrationState> {
    const stop = this.#moves.startMigrator({ pollMs: 50, leaseMs: 1000 });
    try {
      return await this.#moves.atRest(id);
    } finally {
      await stop();
    }
  }

  /** As if the time of the dead one's lease had passed. */
  async #letLeaseEnd(): Promise<void> {
    await this.#moves.s.catalog.pool.query(
      'UPDATE foreshard.migration SET lease_until = clock_timestamp() WHERE lease_until IS NOT NULL',
    );
  }
}
