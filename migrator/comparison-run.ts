import type { HowToCompare, Place } from './compare.js';
import type { Move, MovingTable } from './move.js';
import type { TableInfo } from './schema-read.js';
import { readSourceTables } from './steps/prepare.js';
import type { Throttle } from './throttle.js';
import { measureVolumes, sumOf, type Volume } from './volumes.js';

interface Options {
  /** Where an earlier run has got to in this table. */
  readonly from?: Place;
  readonly passed?: HowToCompare['passed'];
}

/** One comparison of all tables, table after table, which says how far it is. */
export class ComparisonRun {
  readonly tables: readonly { readonly t: MovingTable; readonly info: TableInfo; readonly volume: Volume }[];
  readonly #m: Move;
  readonly #throttle: Throttle;
  readonly #rowsTotal: number;
  readonly #began = performance.now();
  /** Of tables that are through, and of the one that is read now. */
  #before = 0;
  #now = 0;
  /** Which an earlier run has read. */
  #skipped = 0;

  private constructor(m: Move, throttle: Throttle, tables: ComparisonRun['tables']) {
    this.#m = m;
    this.#throttle = throttle;
    this.tables = tables;
    this.#rowsTotal = sumOf(tables.map(({ volume }) => volume)).rows;
  }

  /** @param m the migration with source and destination as they are now */
  static async begin(m: Move, throttle: Throttle): Promise<ComparisonRun> {
    const infos = await readSourceTables(m);
    const volumes = await measureVolumes(m);
    const tables = m.tables.flatMap((t, i) => {
      const [info, volume] = [infos[i], volumes[i]];
      return info === undefined || volume === undefined ? [] : [{ t, info, volume }];
    });
    return new ComparisonRun(m, throttle, tables);
  }

  /** An earlier run has compared so many rows of a table. */
  skip(rows: number): void {
    this.#before += rows;
    this.#skipped += rows;
  }

  /** For the comparison of the next table, whose rows this run tells of. */
  how(volume: Volume, note: string, { from, passed }: Options = {}): HowToCompare {
    this.#before += this.#now;
    this.#now = from?.rows ?? 0;
    this.#skipped += this.#now;
    return {
      throttle: this.#throttle,
      volume,
      ...(from === undefined ? {} : { from }),
      read: async (rows) => {
        this.#now = rows;
        await this.#tell(note);
      },
      passed: passed ?? (async () => undefined),
    };
  }

  async end(): Promise<void> {
    await this.#m.exec.progress({ note: null, compared: null, etaSeconds: null });
  }

  async #tell(note: string): Promise<void> {
    const rows = this.#before + this.#now;
    const rowsPerSecond = ((rows - this.#skipped) * 1000) / (performance.now() - this.#began);
    // More than were counted before have come meanwhile.
    const rowsTotal = Math.max(rows, this.#rowsTotal);
    const why = this.#throttle.note;
    await this.#m.exec.progress({
      note: why === null ? note : `${note}, ${why}`,
      compared: { rows, rowsTotal, rowsPerSecond },
      etaSeconds: rowsPerSecond > 0 ? (rowsTotal - rows) / rowsPerSecond : null,
    });
  }
}
