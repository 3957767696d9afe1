/**
 * A value that follows the transaction and its savepoints: what a COMMIT keeps, a ROLLBACK and a ROLLBACK TO SAVEPOINT take back.
 * The value is replaced, never changed, so that going back is keeping a reference.
 */
export class Scoped<T> {
  value: T;
  #committed: T;
  #savepoints: { readonly name: string; readonly value: T }[] = [];

  constructor(initial: T) {
    this.value = initial;
    this.#committed = initial;
  }

  /** As the last commit left it. */
  get committed(): T {
    return this.#committed;
  }

  savepoint(name: string): void {
    this.#savepoints.push({ name, value: this.value });
  }

  release(name: string): void {
    const i = this.#find(name);
    if (i >= 0) this.#savepoints.length = i;
  }

  rollbackTo(name: string): void {
    const i = this.#find(name);
    if (i < 0) return;
    this.#savepoints.length = i + 1;
    this.value = (this.#savepoints[i] as { value: T }).value;
  }

  /** The transaction is over. */
  end(committed: boolean): void {
    if (this.#savepoints.length > 0) this.#savepoints = [];
    if (committed) this.#committed = this.value;
    else this.value = this.#committed;
  }

  #find(name: string): number {
    return this.#savepoints.findLastIndex((s) => s.name === name);
  }
}
