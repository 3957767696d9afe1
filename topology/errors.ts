/** What a client, or the person at the command line, is told. Message: lower case, no period; the hint says what to do. */
export class ForeshardError extends Error {
  /** SQLSTATE that a client sees. */
  readonly sqlstate: string;
  readonly hint: string | undefined;
  readonly detail: string | undefined;

  constructor(sqlstate: string, message: string, options: { hint?: string; detail?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.sqlstate = sqlstate;
    this.hint = options.hint;
    this.detail = options.detail;
  }
}

/** Bad input from the user of the command line or the configuration: exit code 2. */
export class UsageError extends ForeshardError {
  constructor(message: string, hint?: string) {
    super('22023', message, hint === undefined ? {} : { hint });
  }
}

/** The catalog moved on: a compare-and-set found another epoch, state or generation. */
export class ConflictError extends ForeshardError {
  constructor(message: string, hint?: string) {
    super('40001', message, hint === undefined ? {} : { hint });
  }
}

/** The catalog cannot be reached, or is not one. */
export class CatalogUnavailableError extends ForeshardError {
  constructor(message: string, options: { hint?: string; cause?: unknown } = {}) {
    super('08006', message, options);
  }
}
