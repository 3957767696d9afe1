import type { Move } from './move.js';

/** A table that is copied, as `pg_subscription_rel` has it. */
export interface CopiedTable {
  readonly name: string;
  readonly state: string;
  /** What the slot of its worker begins with. */
  readonly slot: string;
}

/** How often the slots are looked at, ms. */
const LOOK_MS = 1000;
/** A worker drops its slot and notes at once that its table is through: one that has not after so long is dead. */
const LOST_MS = 5000;

/**
 * Notices copies that cannot end any more. When a table has caught up, its worker drops its slot at the source, and then commits that it has, without
 * waiting for the disk (`process_syncing_tables_for_sync` in PostgreSQL's tablesync.c). A destination that goes away in between comes back with rows
 * that are there and a state of before, and starts one worker after the other that asks for a slot which is gone: for ever, and it says so in its
 * log alone. What was written to the table since it was copied cannot be had any more.
 */
export class LostCopies {
  readonly #m: Move;
  #lookedAt = Number.NEGATIVE_INFINITY;
  /** Since when tables are without a slot. */
  readonly #since = new Map<string, number>();

  constructor(m: Move) {
    this.#m = m;
  }

  /** To be called often. @returns the name of a table whose copy is lost, or null */
  async look(tables: readonly CopiedTable[]): Promise<string | null> {
    const now = performance.now();
    if (now - this.#lookedAt < LOOK_MS) return null;
    this.#lookedAt = now;
    const copied = tables.filter(({ state }) => state === 'f');
    const slots = copied.length === 0 ? [] : await this.#slots();
    const without = copied.filter(({ slot }) => !slots.some((name) => name.startsWith(slot)));
    for (const name of this.#since.keys()) if (!without.some((t) => t.name === name)) this.#since.delete(name);
    for (const { name } of without) if (!this.#since.has(name)) this.#since.set(name, now);
    return without.find(({ name }) => now - (this.#since.get(name) ?? now) > LOST_MS)?.name ?? null;
  }

  async #slots(): Promise<string[]> {
    const rows = await this.#m.source.query<{ name: string }>(
      'SELECT slot_name AS name FROM pg_replication_slots WHERE database = current_database()',
    );
    return rows.map(({ name }) => name);
  }
}
