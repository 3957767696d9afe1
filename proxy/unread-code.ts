import { type CodeChange, namesOneOf } from './router/code-change.js';
import type { StatementPlan } from './router/route.js';
import { type Execution, planOf } from './session/placement.js';

interface Unread extends CodeChange {
  /** Which of our changes of the schema it was. */
  readonly number: number;
  /** Until then statements wait for it, on performance.now()'s clock. */
  readonly until: number;
}

/** Code that our clients have made and that is not in the metadata yet. */
export class UnreadCode {
  #all: Unread[] = [];

  add(unread: Unread): void {
    this.#all.push(unread);
  }

  /** The metadata has all changes up to this one. @returns whether some were unread */
  read(number: number): boolean {
    const before = this.#all.length;
    if (before > 0) this.#all = this.#all.filter((unread) => unread.number > number);
    return this.#all.length < before;
  }

  get isEmpty(): boolean {
    return this.#all.length === 0;
  }

  /** Whether one of these statements may run some of it. `now`: only what they should wait for at that moment counts. */
  mayBeRunBy(executions: readonly Execution[], now = 0): boolean {
    return executions.some((execution) => {
      const plan = planOf(execution);
      return plan !== null && runsCode(plan) && this.isNamedIn(execution.analyzed.text, now);
    });
  }

  isNamedIn(text: Buffer, now = 0): boolean {
    return this.#all.some(({ names, until }) => until > now && (names === null || namesOneOf(text, names)));
  }
}

/** DDL that only defines something runs nothing of it. */
function runsCode({ kind, command, asksSequences }: StatementPlan): boolean {
  if (kind === 'utility') return false;
  if (kind !== 'ddl' || asksSequences !== undefined) return true;
  return !/^(DROP|GRANT|REVOKE|COMMENT|(CREATE|ALTER) (FUNCTION|TRIGGER|VIEW|RULE|POLICY|OWNER))\b/.test(command);
}
