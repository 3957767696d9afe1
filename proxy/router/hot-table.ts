import { HALVES_SETTING } from '../../topology/halves-sql.js';
import type { TableName } from '../../topology/topology.js';
import type { Refusal } from './route.js';

/** What is said to whoever changes a hot table by its own name. */
export function hotTableRefusal(hot: TableName, of: TableName): Refusal {
  return {
    sqlstate: '0A000',
    message: `"${hot.table}" has columns of "${of.table}", and is not to be changed by its own name`,
    hint: `Change "${of.table}": "${hot.table}" follows.`,
  };
}

/** By it the proxy tells triggers of its own what it is about. */
export function isOwnSetting(name: string): boolean {
  return name.toLowerCase() === HALVES_SETTING;
}

export const OWN_SETTING: Refusal = {
  sqlstate: '42501',
  message: `parameter "${HALVES_SETTING}" is the proxy's own`,
};
