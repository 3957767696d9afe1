import { saysSettings } from '../router/function-settings.js';
import type { StatementPlan } from '../router/route.js';
import { tellsTransaction, valueTells } from '../router/telling.js';
import { type Execution, planOf } from './placement.js';
import { SETS_LOCALLY } from './refusals.js';

// What statements mean for the transaction and the server connection that they run in. Pure.

export const MAY_CHANGE_SETTINGS = 'a statement that may change settings';
/** Whether these end the failure of a transaction, or of its savepoint, and then go on with rows. */
export function revives(executions: readonly Execution[]): boolean {
  let alive = false;
  for (const execution of executions) {
    const plan = planOf(execution);
    if (alive && plan?.target.kind !== 'any') return true;
    const kind = plan?.effect?.kind;
    if (kind === 'rollback' || kind === 'rollback-to' || kind === 'commit') alive = true;
  }
  return false;
}

/** Whether it tells when its transaction began, or which one it is. */
export function tells(execution: Execution): boolean {
  const { analyzed, params } = execution;
  const { text } = analyzed;
  const sets = planOf(execution)?.setsOffTelling;
  if (sets === 'always' || tellsTransaction(text)) return true;
  const told = (value: Buffer | null, i: number) => value !== null && params?.formats[i] !== 1 && valueTells(value);
  if (params?.values.some(told)) return true;
  return sets === 'by-default' && /\bdefault\b/i.test(text.toString('latin1'));
}

/** What a statement leaves in its transaction that can be neither had on another shard nor prepared; null: nothing. */
export function tying({
  command,
  executesText,
  kind,
  notifies,
  setsLocally,
  unsureOfState,
}: StatementPlan): string | null {
  if (command.startsWith('DECLARE')) return 'a cursor';
  if (command === 'NOTIFY' || notifies === true) return 'NOTIFY';
  if (command === 'SET CONSTRAINTS') return command;
  if (kind === 'ddl') return 'DDL';
  if (setsLocally === true) return SETS_LOCALLY;
  return unsureOfState === true || executesText === true ? MAY_CHANGE_SETTINGS : null;
}

/** Whether other sessions see what it does to the schema. */
export const isDdl = (plan: StatementPlan): boolean => plan.kind === 'ddl' && plan.temporary !== true;

/** Whether the statement hands a text that changes settings to what executes texts. */
export function handsOverSettings(text: string, { params }: Execution): boolean {
  return saysSettings(text) || (params?.values.some((v) => v !== null && saysSettings(v.toString('latin1'))) ?? false);
}
